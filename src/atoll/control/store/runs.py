"""Runs: a queue of jobs, each in one state.

    queued ─► running ─► done
      │  ▲─────┘│  ▲ └──► failed
      │         ▼  │
      │       paused
      └──► stopped ◄── stopping ◄── running, paused

Who works on a run holds its lease, for a while; nobody else may take it before that is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Double, Row, cast, func, insert, or_, select, update

from ...core.errors import MisuseError, StateError
from . import schema as t
from .blobs import Blobs
from .database import Database, transition
from .journal import MAIN, Journal
from .plain import canonical, clean, digest, parsed

STATES = ("queued", "running", "paused", "stopping", "done", "failed", "stopped")
FINAL = ("done", "failed", "stopped")
_NEXT = {
    "queued": {"running", "stopped", "failed"},
    "running": {"paused", "stopping", "done", "failed", "stopped", "queued"},
    "paused": {"running", "stopping", "stopped", "failed"},
    "stopping": {"stopped", "done", "failed"},
}
_DATABASE_TIME = select(cast(func.extract("epoch", func.clock_timestamp()), Double))
_SUBMIT, _MOVE, _LEASE = transition("submit"), transition("move"), transition("lease")
_REPORT = transition("report")
REPORT = "run.report"  # the event's kind


class Runs(Database):
    """The runs of a store."""

    blobs: Blobs

    def submit(self, table: Mapping[str, Any], seed: int, actor: str, *, name: str = "") -> str:
        """Queue a job, its job file's values; returns the run's id, text that can name a file."""
        job = canonical(dict(table))
        with self.write(_SUBMIT) as tx:
            number = (tx.run(select(func.max(t.runs.c.number))).scalar() or 0) + 1
            # The digits keep runs apart where a store was wiped and counts from one again.
            run = f"r{number:04d}-{int.from_bytes(self.random(4), 'little') % 10**6:06d}"
            row = {"id": run, "number": number, "name": clean(name), "state": "queued", "job": job}
            empty = {"started": None, "ended": None, "reason": "", "rounds": 0, "holder": "", "lease": 0.0}
            tx.run(insert(t.runs), {**row, "seed": str(seed), "created": tx.now, **empty})
            body = {"name": clean(name), "seed": str(seed), "job": digest(job)}
            tx.event("run.submitted", body, run=run, actor=actor)
        return run

    def runs(self, *, state: str = "") -> list[dict[str, Any]]:
        """All runs, or those in one state, oldest first; as `run` gives them."""
        found = select(t.runs).order_by(t.runs.c.number)
        return [_record(row) for row in self.rows(found.where(t.runs.c.state == state) if state else found)]

    def run(self, run: str) -> dict[str, Any]:
        """{id, name, state, table, seed, created, started, ended, reason, rounds, holder, lease}.

        Raises StateError if there is none.
        """
        found = self.rows(select(t.runs).where(t.runs.c.id == run))
        if not found:
            raise StateError(f"there is no run {run[:80]!r}: `atoll runs` lists them")
        return _record(found[0])

    def next_queued(self) -> str | None:
        """The run that has waited longest, None if none waits."""
        found = select(t.runs.c.id).where(t.runs.c.state == "queued").order_by(t.runs.c.number).limit(1)
        return next((row.id for row in self.rows(found)), None)

    def move(self, run: str, to: str, *, frm: Sequence[str], reason: str = "", actor: str = "") -> bool:
        """Bring a run from one of the states `frm` to `to`; False if it is in none of them.

        Raises MisuseError for a step the picture above does not have.
        """
        for state in frm:
            if to not in _NEXT.get(state, ()):
                raise MisuseError(f"a run does not go from {state!r} to {to!r}")
        with self.write(_MOVE) as tx:
            values: dict[str, Any] = {"state": to, "reason": clean(reason)}
            if to == "running":
                values["started"] = func.coalesce(t.runs.c.started, tx.now)
            if to in FINAL:
                values["ended"] = tx.now
            if to in FINAL or to == "queued":
                values |= {"holder": "", "lease": 0.0}
            change = update(t.runs).where(t.runs.c.id == run, t.runs.c.state.in_(tuple(frm))).values(values)
            if not tx.run(change).rowcount:
                return False
            tx.event(f"run.{to}", {"reason": clean(reason)}, run=run, actor=actor)
            return True

    def run_reported(self, run: str, report: str) -> None:
        """Keep a run's signed report in the log, once; the first one stays."""
        with self.write(_REPORT) as tx:
            c = t.events.c
            if tx.run(select(c.seq).where(c.run == run, c.kind == REPORT)).first() is None:
                tx.event(REPORT, {"signed": report}, run=run)

    def run_lease(self, run: str, holder: str, until: float) -> bool:
        """Take or prolong the right to work on a run until then; False while another one has it."""
        with self.write(_LEASE) as tx:
            now = tx.now
            if self.dialect == "postgresql":  # machines share it, whose clocks may be far apart
                shared = tx.run(_DATABASE_TIME).scalar_one()
                now, until = shared, until - now + shared
            mine = or_(t.runs.c.holder.in_(("", holder)), t.runs.c.lease <= now)
            before = tx.run(select(t.runs.c.holder).where(t.runs.c.id == run)).scalar()
            change = update(t.runs).where(t.runs.c.id == run, mine, t.runs.c.state.not_in(FINAL))
            if not tx.run(change.values(holder=holder, lease=until)).rowcount:
                return False
            if before != holder:  # prolonging is no change of state
                tx.event("run.leased", {"until": until}, run=run, actor=holder)
            return True

    def journal(self, run: str, scope: str = MAIN) -> Journal:
        """The journal of one scope of a run; the notes of the scope `main` are its history."""
        return Journal(self, self.blobs, run, scope)

    def open_asks(self) -> list[tuple[str, str, int]]:
        """(run, scope, request) of every request that has not closed, of runs that go on."""
        c, over = t.asks.c, select(t.runs.c.id).where(t.runs.c.state.in_(FINAL))
        found = select(c.run, c.scope, c.request).where(c.closed == 0, c.run.not_in(over))
        return [(row.run, row.scope, row.request) for row in self.rows(found)]

    def scopes(self) -> list[tuple[str, str]]:
        """(run, scope) of every journal that holds a request."""
        found = select(t.asks.c.run, t.asks.c.scope).distinct()
        return [(row.run, row.scope) for row in self.rows(found)]

    def history(self, run: str) -> list[dict[str, Any]]:
        """The records of a run's rounds so far."""
        return self.journal(run).notes()


def _record(row: Row[Any]) -> dict[str, Any]:
    found = dict(row._mapping)
    del found["number"]
    job = found.pop("job")
    return {**found, "table": parsed(job), "seed": int(found["seed"])}
