"""Retention: what is old enough goes, its blobs with it."""

from __future__ import annotations

from sqlalchemy import delete, or_, select, update

from ...core.errors import MisuseError
from . import schema as t
from .blobs import OLD, Blobs
from .database import Database, transition
from .runs import FINAL

DAY = 86400.0
_PRUNE, _TRIM = transition("prune"), transition("trim")


class Retention(Database):
    """What a store forgets, and when."""

    blobs: Blobs

    def prune(
        self, keep_days: float, keep_runs: int, *, keep_events_days: float | None = None, older: float = OLD
    ) -> dict[str, int]:
        """Forget runs that ended more than `keep_days` ago, but the last `keep_runs` that ended, and
        old logs, tokens and certificates that ran out then; then collect blobs nobody names.

        Models stay. Events stay unless `keep_events_days` is given: older ones go, and the chain
        begins with the first that stays. `older`: as in `Blobs.collect`. Returns {runs, events, blobs}.
        """
        if keep_days < 0 or keep_runs < 0 or (keep_events_days is not None and keep_events_days < 0):
            raise MisuseError("what is kept is counted in days and runs, at least 0 of them")
        runs = self._prune_runs(keep_days, keep_runs)
        events = 0 if keep_events_days is None else self._trim(keep_events_days)
        return {"runs": runs, "events": events, "blobs": self.blobs.collect(older)}

    def _prune_runs(self, keep_days: float, keep_runs: int) -> int:
        with self.write(_PRUNE) as tx:
            since = tx.now - keep_days * DAY
            r = t.runs.c
            over = select(r.id, r.ended).where(r.state.in_(FINAL)).order_by(r.ended.desc(), r.number.desc())
            gone = [row.id for row in tx.run(over).all()[keep_runs:] if row.ended <= since]
            for run in gone:
                tx.run(delete(t.pins).where(t.pins.c.owner.startswith(f"{run} ", autoescape=True)))
                for table in (t.answers, t.asks, t.notes, t.scopes, t.logs):
                    tx.run(delete(table).where(table.c.run == run))
                tx.run(delete(t.runs).where(r.id == run))
            tx.run(delete(t.logs).where(t.logs.c.at < since))
            k, c = t.tokens.c, t.certificates.c
            old = delete(t.tokens).where(k.until < since).returning(k.digest)
            tokens = sorted(tx.run(old).scalars())
            ended = tx.run(delete(t.certificates).where(c.until < since)).rowcount
            if gone or tokens or ended:
                tx.event("pruned", {"runs": gone, "tokens": tokens, "before": since})
            return len(gone)

    def _trim(self, keep_days: float) -> int:
        with self.write(_TRIM) as tx:
            e = t.events.c
            young = or_(e.at >= tx.now - keep_days * DAY, e.seq == select(t.head.c.seq).scalar_subquery())
            first = tx.run(select(e.seq).where(young).order_by(e.seq).limit(1)).scalar()
            last = tx.run(select(e.seq, e.hash).where(e.seq < (first or 0)).order_by(e.seq.desc()).limit(1))
            base = last.one_or_none()
            if base is None:
                return 0
            gone = tx.run(delete(t.events).where(e.seq <= base.seq)).rowcount
            tx.run(delete(t.seals).where(t.seals.c.seq < base.seq))
            tx.run(update(t.head).values(base_seq=base.seq, base_hash=base.hash))
            tx.event("trimmed", {"events": gone, "to": base.seq})
            return gone
