"""Stores on each database."""

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

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


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is one, for what is killed and not for what loses power."""
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


Urls = Callable[[str], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest) -> Urls:
    """The URL of the database called so, empty the first time it is asked for."""
    if request.param == "sqlite":
        return lambda _name: ""
    return cache(lambda _name: request.getfixturevalue("postgres_database")())
