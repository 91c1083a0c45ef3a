"""Blobs on their way out: frames read off the event loop, in batches, once for all who ask near in time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from pathlib import Path

from ..core.errors import Gone, ProtocolError
from ..wire.plain import FRAME
from .frames import FrameFile
from .link import ALONG

BATCH = 4  # frames of one visit to the worker thread


class Blobs:
    """Files of frames, and the batches read last: members that fetch one model at once share them."""

    def __init__(self, pool: Executor, cache: int) -> None:
        self._pool = pool
        self._room = max(1, cache // (BATCH * FRAME))
        self._files: OrderedDict[Path, FrameFile] = OrderedDict()
        self._batches: OrderedDict[tuple[Path, int], asyncio.Future[list[bytes]]] = OrderedDict()
        self._readers = 0
        self._small: tuple[Path | None, bytes] = None, b""  # the last one that was wanted at once

    def small(self, path: Path) -> bytes:
        """All frames of a blob that goes along with letters; nothing of a longer one, or one that left."""
        if path != self._small[0]:
            try:
                data = path.read_bytes() if path.stat().st_size <= ALONG else b""
            except FileNotFoundError:
                return b""
            self._small = path, data
        return self._small[1]

    async def frames(self, path: Path, start: int) -> AsyncGenerator[bytes]:
        """Frame `start` and all after it. Raises StateError for a damaged file, Gone for one that left."""
        file = await self._file(path)
        if not 0 <= start <= file.told.frames:
            raise ProtocolError(f"the blob has {file.told.frames} frames, asked was for number {start} on")
        self._readers += 1
        try:
            while start < file.told.frames:
                batch = await self._batch(file, start // BATCH)
                for frame in batch[start % BATCH :]:
                    yield frame
                    start += 1
        finally:
            self._readers -= 1
            if not self._readers and len(self._batches) > 1:  # of a small model the only one stays
                self._batches.clear()

    async def _file(self, path: Path) -> FrameFile:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._pool, FrameFile.of, path)
        except FileNotFoundError:
            raise Gone("the blob is not here any more") from None
        self._files[path] = made
        while len(self._files) > 256:
            self._files.popitem(last=False)
        return made

    async def _batch(self, file: FrameFile, index: int) -> list[bytes]:
        key = file.path, index
        future = self._batches.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._pool, file.read, index * BATCH, BATCH)
            self._batches[key] = future
            while len(self._batches) > self._room:
                self._batches.popitem(last=False)
        else:
            self._batches.move_to_end(key)
        try:
            return await asyncio.shield(future)
        except FileNotFoundError:
            self._files.pop(file.path, None)
            self._batches.pop(key, None)
            raise Gone("the blob is not here any more") from None
        except OSError:
            self._batches.pop(key, None)
            raise
