"""Stores on each database."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from tests.store import postgres


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[Callable[[], str]]:
    """Makes empty PostgreSQL databases; skips, with the reason, where there can be no server."""
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.server() as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of each kind; "" is SQLite in the store's own folder."""
    if request.param == "sqlite":
        return ""
    made: str = request.getfixturevalue("postgres_database")()
    return made


Urls = Callable[[str], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest) -> Urls:
    """The URL of the database called so, empty the first time it is asked for."""
    if request.param == "sqlite":
        return lambda _name: ""
    return cache(lambda _name: request.getfixturevalue("postgres_database")())
