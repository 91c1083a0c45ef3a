"""Records: what runs have shown of members, whom later runs do without, and that an admin reinstates them.

    judged ─► quarantined, until ─► reinstate: its record begins anew

A run notes each member's `cleared` when it begins: how often it has been reinstated. What it comes to know is
kept only where that is so still, so that a reinstatement is not undone by a run that was at work meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select, update

from . import schema as t
from .database import Database, Tx, transition
from .plain import canonical, clean, digest, parsed
from .upsert import insert_or_set

_JUDGED, _REINSTATE = transition("judged"), transition("reinstate")
_ONE = select(t.records).where(t.records.c.name == bindparam("n"))
_ALL = select(t.records).order_by(t.records.c.name)
_OUT = _ALL.where(t.records.c.quarantined.is_(True))
_COLUMNS = ("record", "score", "run", "at", "quarantined")


class Standing(NamedTuple):
    """A member as a run leaves it. `record`: plain values; `score`: 0 to 1; `cleared` as the run knew it."""

    record: Mapping[str, Any]
    score: float
    cleared: int = 0


class Records(Database):
    """The records of members in a store."""

    def judged(
        self, run: str, found: Mapping[str, tuple[Any, ...]], quarantine: Collection[str] = ()
    ) -> tuple[str, ...]:
        """What a run has shown of members, a Standing by name; who is quarantined by it, and was not before.

        Members that were reinstated since the run began stay as they are. The same again: nothing.
        """
        with self.write(_JUDGED) as tx:
            changed, new = {}, {}
            for name in sorted(found):
                now = Standing(*found[name])
                out = self._judge(tx, run, name, now, quarantine=name in quarantine)
                if out is not None:
                    changed[name] = digest(canonical(dict(now.record)))
                if out:
                    new[name] = now.score
            if changed:
                tx.event("judged", {"records": changed}, run=run)
            for name, score in new.items():
                tx.event("node.quarantined", {"score": score}, run=run, node=name)
            return tuple(new)

    def _judge(self, tx: Tx, run: str, name: str, now: Standing, *, quarantine: bool) -> bool | None:
        """Write one member's record; whether it is quarantined by that, None where nothing changes."""
        before = tx.run(_ONE, {"n": name}).one_or_none()
        out, text = before is not None and before.quarantined, canonical(dict(now.record))
        new = quarantine and not out
        if before is not None and (before.cleared != now.cleared or (before.record == text and not new)):
            return None
        row = {"name": name, "record": text, "score": now.score, "run": clean(run), "at": tx.now}
        row |= {"quarantined": out or new, "cleared": now.cleared}
        tx.run(insert_or_set(t.records, self.dialect, *_COLUMNS), row)
        return new

    def reinstate(self, name: str, actor: str = "") -> bool:
        """Nothing is held against a member any more; False where nothing was."""
        with self.write(_REINSTATE) as tx:
            r = t.records.c
            held = update(t.records).where(r.name == name, r.record != "{}")
            clear = {
                "record": "{}",
                "score": 0.0,
                "quarantined": False,
                "cleared": r.cleared + 1,
                "at": tx.now,
            }
            if not tx.run(held.values(**clear)).rowcount:
                return False
            tx.event("node.reinstated", {}, node=name, actor=actor)
            return True

    def records(self, *, quarantined: bool = False) -> dict[str, dict[str, Any]]:
        """By name of member: {record, score, run, at, quarantined, cleared}; of all or of whoever is so."""
        rows = self.rows(_OUT if quarantined else _ALL)
        return {row.name: {**row._mapping, "record": parsed(row.record)} for row in rows}
