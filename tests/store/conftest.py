"""Stores on each database."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.store import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Databases]:
    """Makes empty PostgreSQL databases; skips, with the reason, where there can be no server."""
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.server() as database:
        yield database


@pytest.fixture
def postgres_database(postgres_server: postgres.Databases) -> Iterator[Callable[[], str]]:
    """The URL of an empty database at each call; they last as long as the test."""
    with ExitStack() as databases:
        yield lambda: databases.enter_context(postgres_server())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of each kind; "" is SQLite in the store's own folder."""
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres_database")()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is one, for what is killed and not for what loses power."""
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


Urls = Callable[[str], str]
Run = Callable[..., int]


@pytest.fixture(params=["sqlite", "postgresql"])
def urls(request: pytest.FixtureRequest) -> Urls:
    """The URL of the database called so, empty the first time it is asked for."""
    if request.param == "sqlite":
        return lambda _name: ""
    database = request.getfixturevalue("postgres_database")
    return cache(lambda _name: database())


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Does one task in a process of its own; returns its exit status."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "src"), str(root)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.nursery"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout

    def once(mode: str, url: str, folder: Path, seed: int, arm: str = "", **more: Any) -> int:
        folder.mkdir(exist_ok=True)
        task = {"mode": mode, "url": url, "folder": str(folder), "seed": seed, "arm": arm, **more}
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield once
    process.stdin.close()
    process.wait()
    process.stdout.close()
