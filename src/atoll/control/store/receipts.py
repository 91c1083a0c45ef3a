"""Receipts of budgets: what each member has signed of its ledgers, the newest, to be shown to it again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, select

from . import schema as t
from .database import Database, transition
from .plain import clean, digest
from .upsert import insert_or_set

_KEEP = transition("receipt_keep")
_KNOWN = select(t.receipts.c.entries).where(
    t.receipts.c.node == bindparam("n"), t.receipts.c.budget == bindparam("b")
)


class Receipts(Database):
    """The receipts of a store."""

    def receipt_keep(self, node: str, budget: str, entries: int, text: str) -> bool:
        """Keep a signed receipt; False where one of as many entries is here already."""
        node, budget = clean(node), clean(budget)
        with self.write(_KEEP) as tx:
            before = tx.run(_KNOWN, {"n": node, "b": budget}).scalar()
            if before is not None and before >= entries:
                return False
            row = {"node": node, "budget": budget, "entries": entries, "text": text}
            tx.run(insert_or_set(t.receipts, self.dialect, "entries", "text"), row)
            body = {"budget": budget, "entries": entries, "text": digest(text)}
            tx.event("budget.receipt", body, node=node)
            return True

    def receipts(self) -> list[dict[str, Any]]:
        """{node, budget, entries, text} of each."""
        found = select(t.receipts).order_by(t.receipts.c.node, t.receipts.c.budget)
        return [dict(row._mapping) for row in self.rows(found)]
