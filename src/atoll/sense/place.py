"""Where a store's files lie, who may touch them when, and how they are taken away.

    folder/sense/press.db      see store.py
    folder/sense/press.key     the store's own key, sealed by the client's vault
    folder/sense/press.wiping  a wipe is under way: whoever finds it goes on with it

Who writes holds the folder's lock (flock) together with others for the time of a commit, who makes or wipes a
store holds it alone: a command may wipe a store while its client runs, and the client's next commit finds
another key and begins anew. Where a system has no such locks its files cannot be taken from under a client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..core.errors import StateError
from ..privacy.hazmat.suite import KEY
from ..privacy.vault import Vault
from ..wire.failpoint import declare, hit

_WIPE = declare("sense.wipe.before"), declare("sense.wipe.shredded")


class Absent(StateError):  # noqa: N818  it says what is
    """There is no such store yet."""


def files(folder: Path, name: str) -> tuple[Path, Path]:
    """The database of a store and the file of its key."""
    path = folder / "sense" / f"{name}.db"
    return path, path.with_suffix(".key")


@contextmanager
def locked(folder: Path, *, alone: bool) -> Iterator[None]:
    """Nobody wipes or makes a store of this folder meanwhile, and with `alone` nobody writes to one."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    place = folder / "sense"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(held)


def stamp(lock: Path) -> tuple[int, int] | None:
    """Tells one key's file from the next one in its place."""
    try:
        found = lock.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def cut_off(folder: Path, name: str) -> bool:
    """Whether a wipe of it was begun, and ended by nobody yet."""
    return files(folder, name)[0].with_suffix(".wiping").exists()


def key_of(folder: Path, name: str, vault: Vault, *, make: bool) -> tuple[bytes, tuple[int, int] | None]:
    """A store's key and its stamp, for who holds the lock; `make`: where there is none yet.

    Ends a wipe that was cut off. Raises Absent where there is none, StateError where a key is missing or
    another vault's.
    """
    path, lock = files(folder, name)
    if cut_off(folder, name):
        _wiped(folder, name)
    if not lock.exists():
        if path.exists():
            raise StateError(f"{lock} is missing, and {path.name} needs it: restore it, or wipe the store")
        if not make:
            raise Absent(f"there are no readings of {name!r} here yet")
        vault.write(lock, os.urandom(KEY))
    found = stamp(lock)
    return vault.read(lock), found


def wipe(folder: Path, name: str) -> None:
    """Take a store away: first its key, without which the rest is noise, then its files.

    The key is overwritten in place; on a disk that writes elsewhere (SSD, snapshots) its old place may last,
    sealed by the client's own key. Killed in the midst, it is done by the next who opens the store. A client
    that runs begins the store anew.
    """
    with locked(folder, alone=True):
        _wiped(folder, name)


def _wiped(folder: Path, name: str) -> None:
    path, lock = files(folder, name)
    mark = path.with_suffix(".wiping")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch()
    hit(_WIPE[0])
    if lock.exists():
        with closing(lock.open("r+b", buffering=0)) as file:
            file.write(os.urandom(lock.stat().st_size))
            os.fsync(file.fileno())
        lock.unlink()
    hit(_WIPE[1])
    for suffix in (".db-wal", ".db-shm", ".db"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    mark.unlink()
