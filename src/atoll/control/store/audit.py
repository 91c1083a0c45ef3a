"""The chain of events, read and verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, insert, select

from . import schema as t
from .chain import link
from .database import Database, transition
from .plain import canonical, parsed
from .told import Told

_SEAL = transition("seal")
_MANY = 5_000  # events read at a time
STEPS = ("asked", "answered", "closed", "note", "checkpoint")  # of a run's own way (journal.py)
_NEWS = select(t.events.c.seq).where(t.events.c.seq > bindparam("n"), t.events.c.kind.not_in(STEPS)).limit(1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found: `ok`, how many events it read, and the first fault in words.

    `seq`: the number of the altered or missing event, 0 where it is another row.
    """

    ok: bool
    events: int
    fault: str = ""
    seq: int = 0


class Audit(Database):
    """The events of a store."""

    def events(self, after: int = 0, limit: int = 1000, *, run: str | None = None) -> list[dict[str, Any]]:
        """{seq, at, kind, run, node, actor, body, hash} after that number, in order."""
        found = select(t.events).where(t.events.c.seq > after).order_by(t.events.c.seq).limit(limit)
        rows = self.rows(found if run is None else found.where(t.events.c.run == run))
        return [{**row._mapping, "body": parsed(row.body)} for row in rows]

    def news(self, after: int) -> tuple[int, bool]:
        """The last event's number, and whether one after `after` is more than a step of a run."""
        with self.read() as conn:
            last = conn.execute(select(t.head.c.seq)).scalar_one()
            return last, conn.execute(_NEWS, {"n": after}).first() is not None

    def head(self) -> tuple[int, str]:
        """The last event's number and hash; keep them elsewhere, and `verify` finds a cut end."""
        row = self.rows(select(t.head.c.seq, t.head.c.hash))[0]
        return row.seq, row.hash

    def seal(self, sign: Callable[[bytes], bytes]) -> int:
        """Sign the chain's end, so that nobody without the key can write another; returns its number."""
        with self.write(_SEAL) as tx:
            end = tx.run(select(t.head.c.seq, t.head.c.hash)).one()
            seq, digest = end.seq, end.hash
            if seq and not tx.run(select(t.seals.c.seq).where(t.seals.c.seq == seq)).one_or_none():
                signature = sign(_payload(seq, digest)).hex()
                row = {"seq": seq, "at": tx.now, "hash": digest, "signature": signature}
                tx.run(insert(t.seals), row)
            return int(seq)

    def verify(
        self,
        *,
        check: Callable[[bytes, bytes], bool] | None = None,
        head: tuple[int, str] | None = None,
    ) -> Verdict:
        """Walk the chain from its beginning; names the first altered or missing row.

        `check(payload, signature)`: whether a seal's signature is right. `head`: an end seen earlier
        (`head()`), which the chain must still hold.
        """
        with self.read() as conn:
            kept = conn.execute(select(t.head)).one()
            seals = {row.seq: row for row in conn.execute(select(t.seals))}
            seq, digest, count = kept.base_seq, kept.base_hash, 0
            seen = {seq: digest}
            told = Told(whole=not seq)
            wanted = set(seals) | ({head[0]} if head else set())
            page = select(t.events).order_by(t.events.c.seq).limit(_MANY)
            while rows := conn.execute(page.where(t.events.c.seq > seq)).all():
                for row in rows:
                    fault = _fault(row._mapping, seq + 1, digest)
                    if fault:
                        return Verdict(ok=False, events=count, fault=fault, seq=seq + 1)
                    seq, digest, count = row.seq, row.hash, count + 1
                    told.tell(row._mapping)
                    if seq in wanted:
                        seen[seq] = digest
            fault = (
                _end(kept, seq, digest)
                or _sealed(seals, seen, kept.base_seq, check)
                or _known(head, seen, kept.base_seq)
            )
            if fault:
                return Verdict(ok=False, events=count, fault=fault, seq=seq + 1)
            fault = told.fault(conn)
            return Verdict(ok=not fault, events=count, fault=fault)


def _fault(row: Any, expected: int, before: str) -> str:
    if row["seq"] != expected:
        return f"event {expected} is missing: the next one there is {row['seq']}"
    if link(before, row) != row["hash"]:
        return f"event {expected} ({row['kind']}) was altered: its hash does not fit its row"
    return ""


def _end(kept: Any, seq: int, digest: str) -> str:
    if (kept.seq, kept.hash) == (seq, digest):
        return ""
    if seq < kept.seq:
        return f"event {seq + 1} is missing: the chain ends at {seq}, {kept.seq} were written"
    return f"event {seq} is not the end that was written last: the head says {kept.seq}"


def _payload(seq: int, digest: str) -> bytes:
    return canonical(["atoll audit", seq, digest]).encode()


def _sealed(seals: Any, seen: Any, base: int, check: Callable[[bytes, bytes], bool] | None) -> str:
    for seq, seal in sorted(seals.items()):
        if seq >= base and seen.get(seq) != seal.hash:
            return f"event {seq} is not the one that was sealed"
        try:
            right = check is None or check(_payload(seq, seal.hash), bytes.fromhex(seal.signature))
        except ValueError:
            right = False
        if not right:
            return f"the seal of event {seq} is not signed by the given key"
    return ""


def _known(head: tuple[int, str] | None, seen: Any, base: int) -> str:
    if head and head[0] >= base and seen.get(head[0]) != head[1]:
        return f"event {head[0]} is not the one seen before: the chain was cut or written again"
    return ""
