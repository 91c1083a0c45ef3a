"""What a run's rounds come to, read once each: the page looks every few seconds, a run may have thousands.

Records are only ever added, so what was read before holds; the next look reads those that came since.
Only the store's own thread comes here.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import select

from ..store import MAIN, Store
from ..store.schema import notes

KEPT = 64  # runs
_SHORT = ("round", "seconds", "clients", "cohort", "up", "down", "metrics")


@dataclass
class Told:
    """A run so far. `rounds`: one short record each; `up`, `down`: bytes of all; `sites`: each site's last
    metrics by client number; `failed`: what clients failed at since; `metrics`: of the last evaluation;
    `suspects`: clients that seem to lie by now, and which of them rounds do without, by number.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    up: int = 0
    down: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    sites: Mapping[str, Any] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    suspects: Mapping[str, bool] = field(default_factory=dict)
    number: int = -1

    def add(self, number: int, record: dict[str, Any]) -> None:
        """One more record."""
        self.number = number
        failed = record.get("failed", {})
        self.up += record.get("up", 0)
        self.down += record.get("down", 0)
        self.metrics = record.get("metrics") or self.metrics
        self.sites = record.get("sites", self.sites)
        self.failed = {**record.get("sites_failed", {}), **failed}
        if "suspects" in record:
            self.suspects = {str(c): c in record["aside"] for c in record["suspects"]}
        short = {name: record[name] for name in _SHORT if name in record}
        self.rounds.append({**short, "failed": len(failed)})


_told: WeakKeyDictionary[Store, OrderedDict[str, Told]] = WeakKeyDictionary()


def told(store: Store, run: str) -> Told:
    """All rounds of a run until now."""
    kept = _told.setdefault(store, OrderedDict())
    found = kept.setdefault(run, Told())
    kept.move_to_end(run)
    here = (notes.c.run == run, notes.c.scope == MAIN, notes.c.number > found.number)
    for row in store.rows(select(notes.c.number, notes.c.record).where(*here).order_by(notes.c.number)):
        found.add(row.number, json.loads(row.record))
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return found
