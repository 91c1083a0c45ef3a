"""One SQLAlchemy engine for many SQLite stores, one open at a time: statements are compiled once.

Compiling them is most of the time a test that opens hundreds of stores would take. Everything else is as
in a process of its own: each opens its own file, with its own connections.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from atoll.control.store import database, engine


@contextmanager
def warm() -> Iterator[None]:
    """While this lasts, stores in SQLite share an engine; close one before the next is opened."""
    cold, place = database.connect, {"file": ""}

    @cache
    def shared() -> Engine:
        made = cold("", Path("unused"))

        @event.listens_for(made, "do_connect")
        def elsewhere(_dialect: Any, _record: Any, arguments: list[Any], _options: Any) -> None:
            arguments[0] = place["file"]

        return made

    def connect(url: str, folder: Path) -> Engine:
        if url:
            return cold(url, folder)
        place["file"] = str(folder / engine.FILE)
        return shared()

    database.connect = connect
    try:
        yield
    finally:
        database.connect = cold
