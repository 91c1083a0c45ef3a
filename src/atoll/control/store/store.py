"""The store: everything a coordinator or an edge must not forget.

    store = Store.open("", folder)        # SQLite in the folder; or "postgresql://…"

    folder/atoll.db        the tables (schema.py)
    folder/blobs/          content by name (blobs.py)
    folder/spool/          uploads under way; on the same file system, so that they can be adopted

Its verbs stand in one file per topic: runs, journal, nodes, records, tokens, models, rollouts, receipts,
logs, audit.
Each is one short transaction; callers that must not wait run them in `store.thread`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ...core.errors import StateError
from ...wire.files import Files
from .audit import Audit
from .backup import Backup
from .blobs import Blobs
from .database import Database
from .logs import Logs
from .migrate import migrate
from .nodes import Nodes
from .receipts import Receipts
from .records import Records
from .restore import restore
from .retention import Retention
from .rollouts import Rollouts
from .runs import Runs
from .tokens import Tokens


class Store(Runs, Nodes, Records, Tokens, Rollouts, Receipts, Logs, Audit, Backup, Retention):
    """A database and a folder of blobs.

    `changed`: functions called after each commit with the last event's number, in the thread that
    wrote; an event loop is woken with `loop.call_soon_threadsafe`. Close it when done.
    """

    @classmethod
    def open(
        cls,
        url: str,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        files: Files | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> Store:
        """Open a store, made or migrated if need be.

        Raises ConfigError for a URL that names no database, StateError for one that cannot be
        reached, is damaged or is newer than this Atoll.
        """
        files = files or Files()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds what lets people in
        (folder / "spool").mkdir(exist_ok=True)
        store = cls(url, folder, clock, files, random)
        try:
            with store.disk.watch():
                migrate(store.engine)
        except BaseException:
            store.close()
            raise
        store.blobs.sweep()
        return store

    @classmethod
    def restore(
        cls,
        path: Path,
        url: str,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        files: Files | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> Store:
        """Open the store a backup holds, in an empty folder and database.

        Raises StateError where there is a store already, or the backup is damaged or newer.
        """
        files = files or Files()
        manifest = restore(path, url, folder, clock=clock, files=files, random=random)
        store = cls.open(url, folder, clock=clock, files=files, random=random)
        verdict = store.verify(head=tuple(manifest["head"]))
        if not verdict.ok:
            store.close()
            raise StateError(f"the backup's events do not verify: {verdict.fault}")
        return store

    @cached_property
    def blobs(self) -> Blobs:  # type: ignore[override]
        """The blobs of this store."""
        return Blobs(self)

    @cached_property
    def thread(self) -> ThreadPoolExecutor:
        """The one thread an event loop runs this store's verbs in."""
        return ThreadPoolExecutor(1, "atoll-store")

    @property
    def spool(self) -> Path:
        """Where uploads under way lie."""
        return self.folder / "spool"

    def close(self) -> None:
        """Finish what `thread` was given, then let go of the database."""
        made: Any = self.__dict__.get("thread")
        if made is not None:
            made.shutdown()
        Database.close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
