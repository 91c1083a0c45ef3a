"""INSERT … ON CONFLICT, which both databases have and SQL has not."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@cache
def insert_new(table: Table, dialect: str) -> Any:
    """Insert a row unless its key is there; rowcount says which."""
    made = _INSERT[dialect](table).on_conflict_do_nothing()
    return made.execution_options(preserve_rowcount=True)  # psycopg's is gone otherwise


@cache
def insert_or_set(table: Table, dialect: str, *columns: str) -> Any:
    """Insert a row, or set these columns of the one that has its key."""
    made = _INSERT[dialect](table)
    keys = [column.name for column in table.primary_key]
    return made.on_conflict_do_update(index_elements=keys, set_={c: made.excluded[c] for c in columns})
