"""Logs: what nodes had to say about a run, tracebacks for example. Not chained: many, and their words."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, insert, select

from . import schema as t
from .database import Database, transition
from .plain import clean

MOST = 10_000  # entries of one run; the oldest go
_ADD = transition("log_add")


class Logs(Database):
    """The logs of a store."""

    def log_add(self, run: str, node: str, level: str, text: str, at: float | None = None) -> None:
        """Keep what a node said, at most 64 KiB of it. `at`: when; now by default."""
        with self.write(_ADD) as tx:
            row = {"run": clean(run), "node": clean(node), "level": clean(level, 32), "text": clean(text)}
            made = tx.run(insert(t.logs), {**row, "at": tx.now if at is None else at})
            key = made.inserted_primary_key
            if key is not None and key[0] % 256 == 0:  # now and then
                kept = select(t.logs.c.id).where(t.logs.c.run == row["run"]).order_by(t.logs.c.id.desc())
                last = tx.run(kept.offset(MOST).limit(1)).scalar()
                if last is not None:
                    tx.run(t.logs.delete().where(t.logs.c.run == row["run"], t.logs.c.id <= last))

    def logs(self, run: str | None = None, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """{id, run, node, level, text, at} after that id, oldest first; of one run or of all."""
        found = select(t.logs).where(t.logs.c.id > after).order_by(t.logs.c.id).limit(limit)
        rows = self.rows(found if run is None else found.where(t.logs.c.run == run))
        return [dict(row._mapping) for row in rows]

    def log_count(self) -> int:
        """How many there are."""
        return int(self.rows(select(func.count()).select_from(t.logs))[0][0])
