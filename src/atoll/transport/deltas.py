"""Deltas between blobs, made once for all who ask."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import Executor
from pathlib import Path

from ..core.errors import StateError
from .frames import FrameFile

MOST = 256  # at once: members that were not drawn for some rounds each hold another model


class Deltas:
    """Deltas made once for all who ask, in a folder of their own; beyond `keep`, the oldest are removed once
    all together have more than `room` bytes.
    """

    def __init__(
        self, folder: Path, pool: Executor | None = None, keep: int = 8, room: int = 1 << 28
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier life
        folder.mkdir(parents=True)
        self._folder = folder
        self._pool = pool
        self._keep = keep
        self._room = room
        self._made: dict[tuple[str, str], asyncio.Future[Path | None]] = {}

    async def path(self, old: Path, new: Path, names: tuple[str, str]) -> Path | None:
        """The file of the delta between two blobs called `names`, None where it does not pay."""
        future = self._made.get(names)
        if future is None:
            future = asyncio.get_running_loop().run_in_executor(self._pool, self._make, old, new, names)
            self._made[names] = future
            self._tidy()
        return await asyncio.shield(future)

    def _tidy(self) -> None:
        while len(self._made) > self._keep and (len(self._made) > MOST or self._taken() > self._room):
            oldest = next(iter(self._made))
            del self._made[oldest]
            self._file(oldest).unlink(missing_ok=True)

    def _taken(self) -> int:
        return sum(path.stat().st_size for path in self._folder.glob("*.delta"))

    def _file(self, names: tuple[str, str]) -> Path:
        return self._folder / f"{names[0][:32]}-{names[1][:32]}.delta"

    def _make(self, old: Path, new: Path, names: tuple[str, str]) -> Path | None:
        from .delta import make  # it needs numpy, and a member that waits does not

        path = self._file(names)
        try:
            return path if make(FrameFile.of(old), FrameFile.of(new), path) else None
        except (FileNotFoundError, StateError):  # an old one that goes, or is damaged
            return None
