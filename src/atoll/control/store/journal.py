"""A role's journal: what it asked, who answered, what closed, since its last checkpoint.

    journal = store.journal(run, scope)
    journal.asked(0, {…}); journal.answered(0, "bank-a", blob=…); journal.closed(0, ["bank-a"], {})
    journal.note(1, {"round": 1, …}); journal.checkpoint(state, requests=1, notes=1)
    … killed …
    journal.resume()        # exactly what was acknowledged, in the order it was recorded

Laws (atoll.testing.check_store): each call is all or nothing, and on disk when it returns; a second
call of the same kind for the same thing changes nothing; a request takes no answer after it closed;
what a checkpoint holds is not replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from ...core.errors import StateError
from ...transport.drive import Answered, Closed, Resumed, Stored
from . import schema as t
from .blobs import Blobs
from .database import Database, Tx, transition
from .plain import canonical, clean, digest, parsed
from .upsert import insert_new, insert_or_set

MAIN = "main"  # the scope whose notes are a run's history
_ASKED, _ANSWERED, _CLOSED = transition("asked"), transition("answered"), transition("closed")
_NOTE, _CHECKPOINT, _DROP = transition("note"), transition("checkpoint"), transition("drop")


def _here(table: Any) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.run == bindparam("r"), table.c.scope == bindparam("s")


def _this(table: Any) -> tuple[ColumnElement[bool], ...]:
    return *_here(table), table.c.request == bindparam("q")


_SCOPE = select(t.scopes.c.state, t.scopes.c.requests, t.scopes.c.notes).where(*_here(t.scopes))
_ASK = select(t.asks.c.closed, t.asks.c.replied, t.asks.c.missing).where(*_this(t.asks))
_ONE = select(t.answers.c.seq).where(*_this(t.answers), t.answers.c.peer == bindparam("p"))
_CLOSE = (
    update(t.asks)
    .where(*_this(t.asks), t.asks.c.closed == 0)
    .values(closed=bindparam("n"), replied=bindparam("yes"), missing=bindparam("no"))
)
_NEW = ("run", "scope", "request", "peer", "seq", "blob", "reason", "info")
_IF_OPEN = select(
    *(t.asks.c[name] for name in _NEW[:3]),
    *(bindparam(name, type_=t.answers.c[name].type) for name in _NEW[3:]),
).where(*_this(t.asks), t.asks.c.closed == 0)
_ASKS = select(t.asks).where(*_here(t.asks)).order_by(t.asks.c.request)
_ANSWERS = select(t.answers).where(*_here(t.answers)).order_by(t.answers.c.seq)
_ANSWER = select(t.answers).where(*_this(t.answers), t.answers.c.peer == bindparam("p"))
_COUNT_ROUND = update(t.runs).where(t.runs.c.id == bindparam("r")).values(rounds=t.runs.c.rounds + 1)
_NOTES = select(t.notes.c.number, t.notes.c.record).where(*_here(t.notes)).order_by(t.notes.c.number)
_KEPT: Any = bindparam("keep", expanding=True)
_OLD = t.answers.c.request < bindparam("q"), t.answers.c.request.not_in(_KEPT)
_OLD_BLOBS = select(t.answers.c.blob).where(*_here(t.answers), *_OLD)
_FORGET_ANSWERS = delete(t.answers).where(*_here(t.answers), *_OLD)
_LEFT = t.pins.c.owner == bindparam("o"), t.pins.c.blob.not_in(_KEPT)
_UNPIN, _UNPINNED = delete(t.pins).where(*_LEFT), select(t.pins.c.blob).where(*_LEFT)
_FORGET_ASKS = delete(t.asks).where(
    *_here(t.asks), t.asks.c.request < bindparam("q"), t.asks.c.request.not_in(_KEPT)
)


@cache
def _answer(dialect: str) -> Any:
    """Insert an answer of a request under way, unless its peer has one: rowcount says which."""
    return insert_new(t.answers, dialect).from_select(_NEW, _IF_OPEN)


class Journal:
    """The journal of one scope of one run; one role writes it at a time."""

    def __init__(self, db: Database, blobs: Blobs, run: str, scope: str) -> None:
        self.run = run
        self.scope = scope
        self._db = db
        self._blobs = blobs
        self._key = {"run": run, "scope": scope}
        self._at = {"r": run, "s": scope}

    def batch(self) -> AbstractContextManager[None]:
        """Join the calls inside into one transaction: all of them are on disk at its end, or none."""
        return self._db.batch()

    def resume(self) -> Resumed:
        """Everything since the last checkpoint. Raises StateError if its blob is gone."""
        with self._db.read() as conn:
            found = conn.execute(_SCOPE, self._at).one_or_none()
            state, requests, notes = found or ("", 0, 0)
            asks = conn.execute(_ASKS, self._at).all()
            answers = conn.execute(_ANSWERS, self._at).all()
        over = sorted((a for a in asks if a.closed), key=lambda a: a.closed)
        return Resumed(
            self._blobs.read(state) if state else None,
            requests,
            notes,
            {a.request: parsed(a.detail) for a in asks},
            [Answered(a.request, a.peer, a.blob, a.reason, parsed(a.info)) for a in answers],
            {a.request: Closed(tuple(parsed(a.replied)), parsed(a.missing)) for a in over},
        )

    def answer(self, request: int, peer: str) -> Answered | None:
        """What `peer` answered, None if nothing is recorded, or no longer."""
        found = self._db.rows(_ANSWER, {**self._at, "q": request, "p": peer})
        return next((Answered(a.request, a.peer, a.blob, a.reason, parsed(a.info)) for a in found), None)

    def asked(self, request: int, detail: Mapping[str, Any]) -> None:
        """A request goes out. Again: nothing. Raises StateError for one that a checkpoint holds."""
        with self._db.write(_ASKED) as tx:
            if tx.run(_ASK, {**self._at, "q": request}).one_or_none() is not None:
                return
            self._not_before_checkpoint(tx, request)
            text = canonical(dict(detail))
            row = {**self._key, "request": request, "detail": text, "closed": 0}
            tx.run(insert(t.asks), {**row, "replied": "[]", "missing": "{}"})
            body = {"scope": self.scope, "request": request, "detail": digest(text)}
            tx.event("asked", body, run=self.run)

    def answered(
        self,
        request: int,
        peer: str,
        *,
        blob: str | None = None,
        reason: str = "",
        info: Mapping[str, Any] | None = None,
    ) -> bool:
        """`peer` answered, with a blob or with the reason why not; False if it had answered already.

        Raises StateError if the request was not asked or is closed, or if the blob is not here.
        """
        with self._db.write(_ANSWERED) as tx:
            at = {**self._at, "q": request}
            peer, reason, kept = clean(peer), clean(reason), canonical(dict(info or {}))
            row = {**at, "peer": peer, "seq": tx.seq + 1, "blob": blob, "reason": reason, "info": kept}
            if not tx.run(_answer(self._db.dialect), row).rowcount:
                return self._known(tx, at, peer)
            if blob is not None:
                self._blobs.need(blob)
            body = {"scope": self.scope, "request": request, "blob": blob, "reason": reason}
            tx.event("answered", {**body, "info": digest(kept)}, run=self.run, node=peer)
            return True

    def _known(self, tx: Tx, at: Mapping[str, Any], peer: str) -> bool:
        """False where this peer's answer is here already. Raises StateError where it may not be."""
        ask, request = tx.run(_ASK, at).one_or_none(), at["q"]
        if ask is None:
            self._not_before_checkpoint(tx, request)
            raise StateError(f"request {request} of {self.run}/{self.scope} was not asked")
        if tx.run(_ONE, {**at, "p": peer}).one_or_none() is None:
            raise StateError(f"request {request} of {self.run}/{self.scope} is closed")
        return False

    def closed(self, request: int, replied: Sequence[str], missing: Mapping[str, str]) -> None:
        """The request is over. The same again: nothing.

        Raises StateError if it was not asked, or closed otherwise.
        """
        with self._db.write(_CLOSED) as tx:
            at = {**self._at, "q": request}
            yes = canonical(list(replied))
            no = canonical({peer: clean(reason) for peer, reason in missing.items()})
            if tx.run(_CLOSE, {**at, "n": tx.seq + 1, "yes": yes, "no": no}).rowcount:
                body = {"scope": self.scope, "request": request, "replied": list(replied)}
                tx.event("closed", {**body, "missing": parsed(no)}, run=self.run)
                return
            ask = tx.run(_ASK, at).one_or_none()
            if ask is None:
                self._not_before_checkpoint(tx, request)
                raise StateError(f"request {request} of {self.run}/{self.scope} was not asked")
            if (ask.replied, ask.missing) != (yes, no):
                raise StateError(f"request {request} of {self.run}/{self.scope} was closed otherwise before")

    def note(self, number: int, record: Mapping[str, Any]) -> bool:
        """A record of the run, a round's for example; False if this number is there already."""
        with self._db.write(_NOTE) as tx:
            text = canonical(dict(record))
            row = {**self._key, "number": number, "record": text}
            if not tx.run(insert_new(t.notes, self._db.dialect), row).rowcount:
                return False
            if self.scope == MAIN:
                tx.run(_COUNT_ROUND, {"r": self.run})
            body = {"scope": self.scope, "number": number, "record": digest(text)}
            tx.event("note", body, run=self.run)
            return True

    def notes(self) -> list[dict[str, Any]]:
        """All records of this scope, by number."""
        return [parsed(row.record) for row in self._db.rows(_NOTES, self._at)]

    def checkpoint(
        self, state: bytes | str | Stored, requests: int, notes: int, keep: Sequence[int] = ()
    ) -> None:
        """All before `requests` is in `state`, bytes or the name of a blob with them: forget it, but for
        the requests in `keep`, which are still under way. What a stored state refers to is kept with it.

        The blobs of what is forgotten go, unless something else names them. Raises StateError where
        the counts go back.
        """
        name, others = state if isinstance(state, Stored) else (state, ())
        if isinstance(name, bytes):
            name = self._blobs.put(name)
        with self._db.write(_CHECKPOINT) as tx:
            self._blobs.need(name)
            found = tx.run(_SCOPE, self._at).one_or_none()
            if found is not None and (found.requests > requests or found.notes > notes):
                raise StateError(
                    f"{self.run}/{self.scope} has a checkpoint after {found.requests} requests and"
                    f" {found.notes} notes: one after {requests} and {notes} would go back"
                )
            row = {**self._key, "state": name, "requests": requests, "notes": notes}
            columns = ("state", "requests", "notes")
            tx.run(insert_or_set(t.scopes, self._db.dialect, *columns), row)
            self._pin(tx, others)
            self._forget(tx, requests, keep, [found.state] if found else [])
            body = {"scope": self.scope, "requests": requests, "notes": notes, "blob": name}
            tx.event("checkpoint", {**body, "keep": sorted(keep)}, run=self.run)

    def drop(self) -> None:
        """The scope is over: forget all of it, its notes too."""
        with self._db.write(_DROP) as tx:
            state = tx.run(_SCOPE, self._at).one_or_none()
            top = tx.run(select(func.max(t.asks.c.request)).where(*_here(t.asks)), self._at).scalar()
            gone = self._forget(tx, 0 if top is None else top + 1, (), [state.state] if state else [])
            self._pin(tx, ())
            for table in (t.notes, t.scopes):
                gone += tx.run(delete(table).where(*_here(table)), self._at).rowcount
            if gone:
                tx.event("dropped", {"scope": self.scope}, run=self.run)

    def _pin(self, tx: Tx, blobs: Sequence[str]) -> None:
        """These are what the checkpoint refers to, and no others any more."""
        at = {"o": f"{self.run} {self.scope}", "keep": list(blobs)}
        for blob in blobs:
            self._blobs.need(blob)
            tx.run(insert_new(t.pins, self._db.dialect), {"blob": blob, "owner": at["o"]})
        gone = list(tx.run(_UNPINNED, at).scalars())
        if gone:
            tx.run(_UNPIN, at)
            tx.after.append(lambda: self._blobs.superfluous(gone))

    def _forget(self, tx: Tx, requests: int, keep: Sequence[int], blobs: list[str]) -> int:
        at = {**self._at, "q": requests, "keep": list(keep)}
        blobs += [blob for blob in tx.run(_OLD_BLOBS, at).scalars() if blob]
        tx.run(_FORGET_ANSWERS, at)
        if blobs:
            tx.after.append(lambda: self._blobs.superfluous(blobs))
        return tx.run(_FORGET_ASKS, at).rowcount

    def _not_before_checkpoint(self, tx: Tx, request: int) -> None:
        found = tx.run(_SCOPE, self._at).one_or_none()
        if found is not None and request < found.requests:
            raise StateError(f"request {request} of {self.run}/{self.scope} is closed: a checkpoint holds it")
