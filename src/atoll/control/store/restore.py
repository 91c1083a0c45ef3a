"""Restore a backup into an empty place: files first, rows last and in one transaction.

Killed half-way, the place still counts as empty and the next try begins again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, Table, insert, select, update

from ...core.errors import StateError
from ...wire.failpoint import declare, hit
from ...wire.files import Files
from . import schema as t
from .backup import check, members
from .blobs import Blobs
from .database import Database
from .migrate import migrate, revision

_MANY = 500  # rows in one statement
_COPIED = declare("store.restore.copied")
_BEFORE, _AFTER = declare("store.restore.before_commit"), declare("store.restore.after_commit")


def restore(
    path: Path,
    url: str,
    folder: Path,
    *,
    clock: Callable[[], float],
    files: Files,
    random: Callable[[int], bytes],
) -> dict[str, Any]:
    """Fill an empty folder and database with a backup; returns its manifest.

    Raises StateError where the place holds a store already, or the backup is damaged or newer.
    """
    manifest = check(path)
    if manifest["schema"] > t.REVISION:
        raise StateError(f"{path} was made by a newer Atoll (schema {manifest['schema']}): upgrade first")
    files.make_folder(folder / "spool")
    db = Database(url, folder, clock, files, random)
    try:
        with db.disk.watch():
            _empty(db, manifest["schema"])
            _copy(path, db, Blobs(db))
            _fill(path, db)
            migrate(db.engine)
    finally:
        db.close()
    return manifest


def _empty(db: Database, wanted: str) -> None:
    with db.engine.execution_options(atoll_read=True).connect() as conn, conn.begin():
        found = revision(conn)
        used = bool(found) and conn.execute(select(t.head.c.seq)).scalar()
    if used or found not in {"", wanted}:
        raise StateError("this place holds a store already: restore into an empty folder and database")
    migrate(db.engine, to=wanted)


def _copy(path: Path, db: Database, blobs: Blobs) -> None:
    for name, _, source in members(path):
        kind, _, rest = name.partition("/")
        if kind == "blobs" and rest.endswith(".head"):
            with db.files.whole(blobs.head(rest.removesuffix(".head"))) as out:
                out.write(source.read())
        elif kind == "blobs":
            blobs.put(iter(lambda s=source: s.read(1 << 20), b""), name=rest)  # type: ignore[misc]
        elif kind == "beside":
            with db.files.whole(db.folder / rest) as out:
                (db.folder / rest).parent.chmod(0o700)
                out.write(source.read())
            (db.folder / rest).chmod(0o600)
        hit(_COPIED)


def _fill(path: Path, db: Database) -> None:
    """Every row, into the tables as they were when the backup was made."""
    tables = MetaData()
    with db.engine.connect() as conn:
        with conn.begin():
            tables.reflect(conn)
            lines = {}
            for name, _, source in members(path):
                if name.startswith("tables/"):
                    lines[Path(name).stem] = source.read().decode().splitlines()
            for table in tables.sorted_tables:
                if table.name in lines:
                    conn.execute(table.delete())
                    _insert(conn, table, lines[table.name])
            # Nobody works on a run here, nobody is connected.
            conn.execute(update(tables.tables["runs"]).values(holder="", lease=0.0))
            conn.execute(update(tables.tables["nodes"]).values(online=False))
            hit(_BEFORE)
        hit(_AFTER)


def _insert(conn: Any, table: Table, lines: list[str]) -> None:
    rows = map(json.loads, lines)
    while some := list(islice(rows, _MANY)):
        if table.name == "logs":  # numbered anew: the database counts on from there
            some = [{name: value for name, value in row.items() if name != "id"} for row in some]
        conn.execute(insert(table), some)
