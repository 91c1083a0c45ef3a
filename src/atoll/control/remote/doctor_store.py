"""The doctor beside a store: its disk, whether it can be reached and takes writes, its schema."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ...core.errors import AtollError
from .finding import ROOM, Finding, Level


def disk(folder: Path) -> Iterator[Finding]:
    """Room at `folder`, and whether it can be written."""
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free at {folder}"
    if free < ROOM:
        yield Finding("disk", "warn", text, "free some space: a full disk makes the store read-only")
    else:
        yield Finding("disk", "ok", text)
    if not os.access(folder, os.W_OK):
        remedy = "give the folder to the user that runs atoll (chown)"
        yield Finding("disk", "bad", f"{folder} cannot be written", remedy)


def elsewhere(store: str) -> Iterator[Finding]:
    """A coordinator's store by its URL alone: what holds it, and its schema."""
    from ..store.engine import parse

    try:
        where = parse(store, Path())
    except AtollError as error:
        yield Finding("store", "bad", str(error), "name it as the coordinator's `store` does")
        return
    if where.drivername == "sqlite":
        file = Path(str(where.database))
        if not file.is_file():
            remedy = "name the file as the coordinator's `store` does; its first start makes it"
            yield Finding("store", "bad", f"there is no database {file}", remedy)
            return
        yield from disk(file.parent)
    yield from schema(Path(), store)


def schema(folder: Path, store: str) -> Iterator[Finding]:
    """The store's schema, read without opening the store: that would migrate it."""
    if not store and not (folder / "atoll.db").exists():
        return
    from sqlalchemy.exc import SQLAlchemyError

    from ..store.engine import parse
    from ..store.schema import REVISION

    server: list[Finding] = []
    try:
        where = parse(store, folder)
        sqlite = where.drivername == "sqlite"
        if sqlite and not Path(str(where.database)).exists():
            return
        found = _in_sqlite(str(where.database)) if sqlite else _in_postgres(store, folder, server)
    except sqlite3.Error as error:
        yield Finding("schema", "bad", f"the store cannot be read: {error}", "atoll restore a backup")
        return
    except (AtollError, SQLAlchemyError) as error:
        text = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        remedy = "see that PostgreSQL runs, and that `store` in the settings names its host, user and name"
        yield Finding("schema", "bad", f"the store cannot be reached: {text}", remedy)
        return
    yield from server
    text = f"the store is at schema {found or 'none'}, this atoll has {REVISION}"
    level: Level = "ok"
    remedy = ""
    if found > REVISION:
        level, remedy = "bad", "upgrade atoll here: a newer one wrote this store"
    elif found < REVISION:
        level, remedy = "warn", "start the coordinator once: it migrates the store; back up before"
    yield Finding("schema", level, text, remedy)


def _in_sqlite(path: str) -> str:
    """The schema of a file. Raises sqlite3.Error for one that is damaged."""
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT version_num FROM alembic_version").fetchone()
        whole = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if whole != "ok":
        raise sqlite3.DatabaseError(f"it is damaged: {whole}")
    return str(found[0]) if found else ""


def _in_postgres(store: str, folder: Path, server: list[Finding]) -> str:
    """The schema of a database; what its server says of itself goes to `server`."""
    from ..store.engine import connect
    from ..store.migrate import revision

    engine = connect(store, folder)
    try:
        with engine.connect() as conn:
            server.append(_server(conn))
            return revision(conn)
    finally:
        engine.dispose()


def _server(conn: Any) -> Finding:
    said = "SELECT current_setting('server_version'), current_setting('transaction_read_only'),"
    number, closed, size = conn.exec_driver_sql(f"{said} pg_database_size(current_database())").one()
    text = f"PostgreSQL {number.split()[0]}, {size / 1e9:.2f} GB in this database"
    if closed == "off":
        return Finding("store", "ok", text)
    remedy = "name the server that writes: a standby does not, nor default_transaction_read_only"
    return Finding("store", "bad", f"{text}, which takes no writes", remedy)
