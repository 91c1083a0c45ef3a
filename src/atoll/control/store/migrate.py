"""Bring a database to the schema of this Atoll, in one transaction: old or new, never between.

Alembic runs from here; there is no alembic.ini and nothing for users to call. Two processes that
start at once take turns. Alembic itself is only imported when there is something to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event, inspect, text

from ...core.errors import StateError
from ...wire.failpoint import declare, hit
from .schema import REVISION

FOLDER = Path(__file__).with_name("migrations")
VERSIONS = (FOLDER / "versions",)
_STEP = declare("store.migrate.step")  # after each statement
_BEFORE, _AFTER = declare("store.migrate.before_commit"), declare("store.migrate.after_commit")
_LOCK = 0x41544C  # PostgreSQL's name for "a store is being migrated"


def migrate(engine: Engine, *, to: str = REVISION, versions: Sequence[Path] = VERSIONS) -> str:
    """Bring the database to revision `to`; returns the one it was at, "" for a new database.

    Raises StateError where it is newer than this Atoll.
    """
    reader = engine.execution_options(atoll_read=True)
    with reader.connect() as conn, conn.begin():
        if revision(conn) == to:
            return to
    with engine.connect() as conn:
        with conn.begin():
            if engine.dialect.name == "postgresql":
                conn.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK})
            before = revision(conn)
            if before != to:
                _upgrade(conn, versions, to)
            hit(_BEFORE)
        hit(_AFTER)
    return before


def revision(conn: Connection) -> str:
    """The revision a database is at, "" before its first."""
    if not inspect(conn).has_table("alembic_version"):
        return ""
    found = conn.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return str(found or "")


def _upgrade(conn: Connection, versions: Sequence[Path], to: str) -> None:
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    scripts = ScriptDirectory(str(FOLDER), version_locations=[str(path) for path in versions])

    def steps(heads: Any, _context: Any) -> Any:
        try:
            return scripts._upgrade_revs(to, heads)
        except CommandError:
            raise StateError(
                f"this store is at schema {revision(conn)}, newer than the {to} of this Atoll:"
                " upgrade Atoll, or restore a backup made by it"
            ) from None

    # SQLite's schema changes are transactional once the driver begins no transactions itself;
    # alembic does not count on it, so it is told.
    context = MigrationContext.configure(conn, opts={"fn": steps, "transactional_ddl": True})

    def stepped(*_: Any) -> None:
        hit(_STEP)

    event.listen(conn, "after_cursor_execute", stepped)
    try:
        with Operations.context(context):
            context.run_migrations()
    finally:
        event.remove(conn, "after_cursor_execute", stepped)
