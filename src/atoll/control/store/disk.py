"""Full and failing disks, and databases out of reach: the store says why, and heals itself.

The first write that finds no space, or an I/O error, degrades the store: until space returns each
write raises StateError at once, before it changes anything, and reads go on. A write after a
while (PROBE seconds) first tries whether the disk takes data again; so does health(). A database that was
reached once and cannot be now is tried anew by each call; the first time is the caller's to wait for.
"""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError, OperationalError

from ...core.errors import StateError
from ...wire.files import Files

PROBE = 1.0  # seconds between two tries
HEALS = "it goes on by itself"  # ends every reason that passes
FILLER = 1 << 18  # bytes a try writes

_AGAIN = ("starting up", "shutting down", "recovery", "too many")  # of a server that will take us later
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BROKEN = {errno.EIO, errno.EROFS}


class AwayError(StateError):
    """A database that was never reached, and perhaps only is not there yet."""


class Disk:
    """The health of the disk under a store; `probe` tries the database."""

    def __init__(
        self, folder: Path, files: Files, clock: Callable[[], float], probe: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._files = files
        self._clock = clock
        self._probe = probe
        self._reason = ""
        self._tried = 0.0
        self._reached = False  # the database, once

    def allow(self) -> None:
        """Raise StateError while the store is read-only; tries to heal it now and then."""
        if self._reason and not self._healed():
            raise StateError(self._reason)

    def health(self) -> dict[str, Any]:
        """{ok, reason, free}: whether writes are taken, why not, bytes free."""
        ok = not self._reason or self._healed()
        with suppress(OSError):
            return {"ok": ok, "reason": self._reason, "free": shutil.disk_usage(self._folder).free}
        return {"ok": False, "reason": f"{self._folder} cannot be reached", "free": 0}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Turn what a disk or database says into StateError, and degrade where it is the disk."""
        try:
            yield
            self._reached = True
        except OSError as error:
            if error.errno not in _FULL | _BROKEN:
                raise
            raise self._degrade(full=error.errno in _FULL, said=error.strerror or str(error)) from error
        except DBAPIError as error:
            raise self._of_database(error) from error

    def _of_database(self, error: DBAPIError) -> Exception:
        said = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no reason"
        name = getattr(error.orig, "sqlite_errorname", "") or getattr(error.orig, "sqlstate", "") or ""
        if name.startswith("SQLITE_FULL") or name == "53100":
            return self._degrade(full=True, said=said)
        if name.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")) or name == "58030":
            return self._degrade(full=False, said=said)
        if name.startswith("SQLITE_BUSY"):
            return StateError("another process holds the store's database: end it, or try again")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return StateError(f"the store's database is damaged ({said}): restore a backup")
        never = not name and isinstance(error, OperationalError)  # psycopg: a connection it never had
        if never or error.connection_invalidated or name.startswith(("08", "57P")):
            what = f"the store's database cannot be reached ({said})"
            if self._reached:
                return StateError(f"{what}; {HEALS}")
            there = "FATAL" in str(error.orig) and not any(text in str(error.orig) for text in _AGAIN)
            return (StateError if there else AwayError)(f"{what}: check its URL")
        return error

    def _degrade(self, *, full: bool, said: str) -> StateError:
        what = "the disk is full" if full else f"the disk fails ({said})"
        self._reason = (
            f"{what}: the store at {self._folder} is read-only;"
            f" {'free some space' if full else 'look at the disk'}, {HEALS}"
        )
        self._tried = self._clock()
        return StateError(self._reason)

    def _healed(self) -> bool:
        now = self._clock()
        if 0 <= now - self._tried < PROBE:
            return False
        self._tried = now
        trial = self._folder / f".probe-{secrets.token_hex(4)}"
        try:
            with self._files.create(trial) as file:
                file.write(b"\0" * FILLER)
                self._files.sync(file)
            self._files.unlink(trial)
            self._probe()
        except (OSError, DBAPIError):
            with suppress(OSError):
                self._files.unlink(trial)
            return False
        self._reason = ""
        return True
