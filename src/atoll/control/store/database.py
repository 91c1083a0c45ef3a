"""A database and its transactions: what every part of the store stands on.

A writing transaction is one of these, or nothing:

    with self.write("answered") as tx:      # one writer at a time, across processes
        tx.run(statement, values)           # rows
        tx.event("answered", {…}, run=run)  # the chained event that says so
    # committed, on disk, and those who watch `changed` were called

Inside `with store.batch():` they join into one, with one sync at its end: nothing is acknowledged
before that. SQLite: WAL, synchronous=FULL, BEGIN IMMEDIATE; other processes wait for their turn.
PostgreSQL: whoever adds to the chain locks its head row.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, bindparam, insert, select, update
from sqlalchemy.exc import DBAPIError

from ...core.errors import StateError
from ...wire.failpoint import declare, hit
from ...wire.files import Files
from . import schema as t
from .chain import link
from .disk import Disk
from .engine import connect
from .plain import canonical, clean

_HEAD = select(t.head.c.seq, t.head.c.hash).where(t.head.c.id == 1).with_for_update()
_MOVE_HEAD = (
    update(t.head).where(t.head.c.id == 1).values(seq=bindparam("new_seq"), hash=bindparam("new_hash"))
)
_EVENT = insert(t.events)

_points: dict[str, tuple[str, str]] = {}


def transition(op: str) -> str:
    """Declare the failpoints on both sides of a transaction's commit; returns its name."""
    _points[op] = declare(f"store.{op}.before_commit"), declare(f"store.{op}.after_commit")
    return op


_BATCH = transition("batch")


class Tx:
    """A writing transaction under way. `now`: its time, the same in all its rows; `after`: what to do once
    it is committed.
    """

    __slots__ = ("_events", "_hash", "after", "conn", "now", "seq")

    def __init__(self, conn: Connection, now: float, seq: int, digest: str) -> None:
        self.conn = conn
        self.now = now
        self.seq = seq
        self._hash = digest
        self._events: list[dict[str, Any]] = []
        self.after: list[Callable[[], None]] = []

    def run(self, statement: Executable, values: Mapping[str, Any] | None = None) -> CursorResult[Any]:
        """Execute one statement."""
        return self.conn.execute(statement, values)

    def event(
        self, kind: str, body: Mapping[str, Any], *, run: str = "", node: str = "", actor: str = ""
    ) -> int:
        """Append to the chain; returns the event's number."""
        self.seq += 1
        row = {
            "seq": self.seq,
            "at": self.now,
            "kind": kind,
            "run": clean(run),
            "node": clean(node),
            "actor": clean(actor),
            "body": canonical(dict(body)),
        }
        row["hash"] = self._hash = link(self._hash, row)
        self._events.append(row)
        return self.seq

    @property
    def digest(self) -> str:
        """The last event's hash."""
        return self._hash

    def close(self) -> None:
        """Write the events and the chain's new end."""
        if self._events:
            self.conn.execute(_EVENT, self._events)
            self.conn.execute(_MOVE_HEAD, {"new_seq": self.seq, "new_hash": self._hash})
            self._events = []


class Database:
    """One store's connection, folder, clock and health."""

    def __init__(
        self,
        url: str,
        folder: Path,
        clock: Callable[[], float],
        files: Files,
        random: Callable[[int], bytes],
    ) -> None:
        self.folder = folder
        self.clock = clock
        self.files = files
        self.random = random
        self.changed: list[Callable[[int], None]] = []
        self.engine = connect(url, folder)
        self._reader = self.engine.execution_options(atoll_read=True)
        if self.dialect == "postgresql":
            self._reader = self._reader.execution_options(isolation_level="REPEATABLE READ")
        self.disk = Disk(folder, files, clock, self._probe)
        self._local = threading.local()

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one moment of the store; inside `batch`, the batch's own."""
        tx: Tx | None = getattr(self._local, "tx", None)
        if tx is not None:
            tx.close()
            yield tx.conn
            return
        with self.disk.watch(), self._reader.connect() as conn, conn.begin():
            yield conn

    @contextmanager
    def write(self, op: str) -> Iterator[Tx]:
        """A transaction; commits when the block ends well. Raises StateError where the disk is full."""
        tx: Tx | None = getattr(self._local, "tx", None)
        before, after = _points[op]
        if tx is not None:  # the failpoints of what is joined stand here, before its one commit
            yield tx
            hit(before)
            hit(after)
            return
        self.disk.allow()
        ready = False
        with self.disk.watch():
            try:
                with self.engine.connect() as conn, conn.begin():
                    start = conn.execute(_HEAD).one()
                    made = Tx(conn, self.clock(), start.seq, start.hash)
                    self._local.tx = made
                    try:
                        yield made
                        made.close()
                        hit(before)
                        ready = True
                    finally:
                        self._local.tx = None
            except DBAPIError as error:
                if not (ready and error.connection_invalidated and self._committed(made, start.seq)):
                    raise
        hit(after)
        for work in made.after:
            with suppress(StateError, OSError):  # what is committed is acknowledged; the rest is tidying
                work()
        if made.seq > start.seq:
            self._tell(made.seq)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Join what is written inside into one transaction: all of it is durable at the end, or none."""
        with self.write(_BATCH):
            yield

    def rows(self, statement: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        """Read rows, outside any transaction of the caller's."""
        with self.read() as conn:
            return conn.execute(statement, values).all()

    def health(self) -> dict[str, Any]:
        """{ok, reason, free, database}: whether the store takes writes, why not, bytes free on its disk."""
        found = self.disk.health()
        try:
            with self.read() as conn:
                conn.execute(select(t.head.c.seq)).one()
        except (StateError, DBAPIError) as error:
            return {**found, "ok": False, "reason": str(error), "database": self.dialect}
        return {**found, "database": self.dialect}

    def close(self) -> None:
        """Let go of the database; committed work is on disk already."""
        self.engine.dispose()

    def _committed(self, tx: Tx, start: int) -> bool:
        """Whether a transaction was done though the connection broke before it was said."""
        found = self.rows(select(t.events.c.hash).where(t.events.c.seq == tx.seq))
        return tx.seq > start and [row.hash for row in found] == [tx.digest]

    def _tell(self, seq: int) -> None:
        for watcher in tuple(self.changed):
            try:
                watcher(seq)
            except Exception:
                # What is committed is acknowledged, whatever becomes of those who watch.
                logging.getLogger("atoll.store").exception("a watcher of the store failed")

    def _probe(self) -> None:
        """Take some pages and give them back: fails where the database has no room."""
        with self.engine.connect() as conn:
            with conn.begin():
                conn.execute(insert(t.probes), {"filler": "x" * 65536})
            with conn.begin():
                conn.execute(t.probes.delete())
