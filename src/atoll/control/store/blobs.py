"""Blobs: files under `blobs/ab/abcd…`, named by 64 hex digits, durable before they are named in SQL.

    temp in blobs/tmp ─► fsync ─► rename ─► fsync folder ─► (a row may now name it)

A name is hexadecimal, so no path can be formed from anybody's text. A blob is kept while an answer,
a checkpoint, a model or a pin names it; `collect` takes away the others once they are old enough
for their row to have been written. A file `NAME.head` beside a blob belongs to it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import CompoundSelect, select, union

from ...core.errors import MisuseError, StateError
from ...wire.failpoint import declare, hit
from ...wire.files import early
from . import schema as t
from .database import Database, transition
from .upsert import insert_new

OLD = 3600.0  # seconds an unnamed blob, or a temp of a process elsewhere, is left alone
_NAME = re.compile(r"[0-9a-f]{64}")
_BATCH = 256  # files taken away while the database is held
_COLLECT, _LET_GO = transition("collect"), transition("let_go")
_KEEP, _RELEASE = transition("keep"), transition("release")
_TAKEN = declare("store.collect.unlinked")
_NAMED = union(
    select(t.answers.c.blob).where(t.answers.c.blob.is_not(None)),
    select(t.scopes.c.state),
    select(t.models.c.blob),
    select(t.pins.c.blob),
)


def named_by() -> CompoundSelect[Any]:
    """The query for the blobs that some row names."""
    return _NAMED


_live: set[str] = set()  # temps this process is writing


class Blobs:
    """The blobs of one store."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._files = db.files
        self.folder = db.folder / "blobs"
        self._temp = self.folder / "tmp"
        self._lock = threading.Lock()
        self._fresh: set[str] = set()  # put here, and not yet named by a row
        self._held: set[str] = set()  # read here, though no row names them
        self._copying = 0  # backups of this process under way
        self._late: set[str] = set()  # what became superfluous during them

    def path(self, name: str) -> Path:
        """Where the blob called `name` is, or would be. Raises MisuseError unless it is 64 hex digits."""
        if not _NAME.fullmatch(name):
            raise MisuseError(f"a blob's name is 64 hexadecimal digits, got {name[:80]!r}")
        return self.folder / name[:2] / name

    def exists(self, name: str) -> bool:
        """Whether it is here."""
        return self.path(name).is_file()

    def need(self, name: str) -> None:
        """A row is about to name this blob. Raises StateError if it is not here."""
        if not self.exists(name):
            raise StateError(f"blob {name} is missing: put it before the row that names it")
        self._fresh.discard(name)

    def read(self, name: str) -> bytes:
        """All of it. Raises StateError if it is not here."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            raise StateError(f"blob {name} is missing: restore a backup") from None

    def put(self, data: bytes | memoryview | Iterable[bytes], name: str = "") -> str:
        """Keep bytes, whole or in pieces; returns the blob's name, their SHA-256 unless one is given.

        Durable when it returns. Raises StateError where the disk is full.
        """
        whole = isinstance(data, (bytes, bytearray, memoryview))
        pieces: Iterable[bytes] = [data] if whole else data  # type: ignore[list-item,assignment]
        self._db.disk.allow()
        with self._db.disk.watch():
            if whole and not name:
                name = hashlib.sha256(data).hexdigest()  # type: ignore[arg-type]
            if name and self.touch(name):
                self._fresh.add(name)
                return name
            temp, size = self._new(), 0
            try:
                digest = hashlib.sha256()
                with self._files.create(temp) as out:
                    for piece in pieces:
                        written = out.write(piece)
                        early(out.fileno(), size, written)
                        size += written
                        if not name:
                            digest.update(piece)
                    self._files.sync(out)
                name = name or digest.hexdigest()
                self._fresh.add(name)
                self._settle(temp, name)
            finally:
                with suppress(OSError):
                    self._files.unlink(temp)
                _live.discard(temp.name)
        return name

    def adopt(self, path: Path, name: str, *, head: bool = True) -> Path:
        """Take a file in under this name, with `head` also `PATH.head` where there is one; durable by then.

        It must lie on the store's file system (its `spool` does). Again with the same name: the
        file that is there stays. Raises StateError where the disk is full or `path` is missing.
        """
        self._db.disk.allow()
        with self._db.disk.watch():
            target = self.path(name)
            beside = path.with_name(path.name + ".head")
            self._fresh.add(name)
            if self.touch(name):
                self._files.unlink(path)
                if head:
                    self._files.unlink(beside)
                return target
            try:
                self._files.sync_path(path)
                if head and beside.exists():  # first: a blob that is there has its head
                    self._files.sync_path(beside)
                    self._files.make_folder(target.parent)
                    self._files.replace(beside, self.head(name))
                self._settle(path, name)
            except FileNotFoundError:
                if not target.is_file():
                    raise StateError(f"{path.name} is missing: it has to be sent again") from None
        return target

    def head(self, name: str) -> Path:
        """The file that came along with a blob."""
        path = self.path(name)
        return path.with_name(path.name + ".head")

    def keep(self, name: str, owner: str) -> None:
        """Pin a blob for `owner` until it is released. Raises StateError if it is not here."""
        with self._db.write(_KEEP) as tx:
            self.need(name)
            tx.run(insert_new(t.pins, self._db.dialect), {"blob": name, "owner": owner})

    def release(self, name: str, owner: str) -> None:
        """Take the pin away; the file goes when nothing else names it and it is collected."""
        with self._db.write(_RELEASE) as tx:
            tx.run(t.pins.delete().where(t.pins.c.blob == name, t.pins.c.owner == owner))

    def named(self) -> set[str]:
        """The blobs that something keeps."""
        return {row[0] for row in self._db.rows(_NAMED) if row[0]}

    def names(self) -> Iterator[str]:
        """The blobs that are here."""
        if self.folder.is_dir():
            for part in sorted(self.folder.iterdir()):
                if len(part.name) == 2:
                    yield from sorted(p.name for p in part.iterdir() if _NAME.fullmatch(p.name))

    def hold(self, name: str) -> None:
        """Spare a blob that no row names, such as a model on its way, until `let_go` or the process ends."""
        with self._lock:  # not while it is being taken away: who looks afterwards sees whether it is here
            self._held.add(name)

    def let_go(self, name: str) -> None:
        """Nobody here needs it any more: it is superfluous, unless a row names it."""
        self._held.discard(name)
        self._fresh.discard(name)

    def superfluous(self, names: Collection[str]) -> None:
        """Some rows named these blobs and are gone: so are the blobs, unless somebody else needs them."""
        with self._db.write(_LET_GO) as tx, self._lock:
            if self._copying:
                self._late.update(names)
                return
            kept = {row[0] for row in tx.run(_NAMED)} | self._fresh | self._held
            for name in sorted(set(names) - kept):
                self._take_away(name)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Nothing is taken away by this process meanwhile; what became superfluous goes afterwards."""
        with self._lock:
            self._copying += 1
        try:
            yield
        finally:
            with self._lock:
                self._copying -= 1
                late: set[str] = set()
                if not self._copying:
                    late, self._late = self._late, late
            if late:
                self.superfluous(late)

    def collect(self, older: float = OLD) -> int:
        """Take away blobs that nothing names and nobody touched for `older` seconds; returns how many."""
        names, gone = list(self.names()), 0
        for start in range(0, len(names), _BATCH):
            # Whoever names a blob holds the same lock and sees whether it is still there.
            with self._db.write(_COLLECT) as tx, self._lock:
                if self._copying:
                    break
                kept = {row[0] for row in tx.run(_NAMED)} | self._held
                for name in names[start : start + _BATCH]:
                    if name not in kept and self._age(name) >= older:
                        self._take_away(name)
                        gone += 1
        return gone

    def _take_away(self, name: str) -> None:
        path = self.path(name)
        self._files.unlink(path)
        self._files.unlink(path.with_name(path.name + ".head"))
        self._fresh.discard(name)
        hit(_TAKEN)

    def sweep(self) -> None:
        """Remove what killed writers left; called when a store opens."""
        if not self._temp.is_dir():
            return
        for path in self._temp.iterdir():
            if self._orphan(path):
                with suppress(OSError):
                    self._files.unlink(path)

    def _orphan(self, path: Path) -> bool:
        host, _, rest = path.name.partition(".")
        pid = rest.partition(".")[0]
        if host != _host() or not pid.isdecimal():
            with suppress(OSError):
                return time.time() - path.stat().st_mtime > OLD
            return False
        if int(pid) == os.getpid():
            return path.name not in _live
        import psutil

        return not psutil.pid_exists(int(pid))

    def _new(self) -> Path:
        self._files.make_folder(self._temp)
        path = self._temp / f"{_host()}.{os.getpid()}.{secrets.token_hex(8)}"
        _live.add(path.name)
        return path

    def _settle(self, temp: Path, name: str) -> None:
        target = self.path(name)
        self._files.make_folder(target.parent)
        self._files.replace(temp, target)
        self._files.sync_folder(target.parent)

    def touch(self, name: str) -> bool:
        """Whether the blob is here; if so it counts as young, and is not collected for a while."""
        with self._lock:
            try:
                os.utime(self.path(name))
            except FileNotFoundError:
                return False
        self._files.sync_folder(self.path(name).parent)  # its first writer may have died before this
        return True

    def _age(self, name: str) -> float:
        try:
            return time.time() - self.path(name).stat().st_mtime
        except FileNotFoundError:
            return -1.0


def _host() -> str:
    """A short name of this machine: process ids mean nothing on another."""
    import platform

    return f"{zlib.crc32(platform.node().encode()):08x}"
