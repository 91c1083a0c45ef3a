"""Uploads as they arrive: frames checked, written at their place and hashed, off the event loop.

The spool file is the bare buffer of the message, so that it can be mapped as it is; the head stands
beside it. What is in the file *is* the committed offset: it survives the connection, the member and,
short of a power cut, the machine. After a power cut the file may hold what was never written; then
its SHA-256 is wrong and the upload starts again, once, without blame. A message of one frame that
comes with its head has no head on disk: both are kept together, or sent again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import CodecError, Gone, IntegrityError, ProtocolError, Refused
from ..wire.files import early
from ..wire.heap import give_back
from ..wire.plain import FRAME, Bytes, payload
from .frames import Announced, announced, number
from .link import KEPT
from .pump import AHEAD, pump, thread

if TYPE_CHECKING:
    from .service import Desk

MANY = 64 << 20  # bytes of uploads after which freed frames are worth giving back
ALL_AHEAD = 16  # frames of all uploads in memory, beyond one of each and those being written
SETTLE = 1.0  # seconds that another connection with the same upload has for its next frame, or its end,
LONG = 10.0  # and for all that it still has, while the offset waits for it


class Spool:
    """The file of one upload. Its methods block: a worker thread calls them, one at a time."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.frames = 0  # committed, the head included
        self.head = b""
        self.told: Announced | None = None
        self.found = False  # some of it was written by an earlier process
        self.lasts = True  # there may be a file of the head, from which to go on after a kill
        self._digest: Any = None  # of the buffer up to `frames`; None until it is needed

    @property
    def beside(self) -> Path:
        """The head's file."""
        return self.path.with_name(self.path.name + ".head")

    @property
    def whole(self) -> bool:
        """All frames are there."""
        return self.told is not None and self.frames == self.told.frames

    @property
    def checked(self) -> bool:
        """`verify` need not read the file: what came was hashed as it was written."""
        return self._digest is not None

    def find(self) -> None:
        """Take up what an earlier process left."""
        try:
            head = self.beside.read_bytes()
            told = announced(head)
            length = self.path.stat().st_size
        except (FileNotFoundError, CodecError):
            return
        if told.size > self.limit:
            return
        self.frames = told.frames if length >= told.size else 1 + length // FRAME
        self.head, self.told, self.found, self._digest = head, told, self.frames > 1, None

    def write(self, frames: Sequence[Bytes]) -> None:
        """Commit these. Raises ProtocolError at the first that is wrong, those before it kept."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        file = os.open(self.path, flags, 0o600)
        try:
            for frame in frames:
                self._write(file, frame, len(frames))
        finally:
            os.close(file)

    def _write(self, file: int, frame: Bytes, together: int) -> None:
        sequence = number(frame)
        data = payload(frame)
        if sequence == 0:
            self._begin(file, data, together)
            return
        if sequence < self.frames:
            return  # sent again: it is here
        if self.told is None or sequence != self.frames:
            raise CodecError(f"expected frame {self.frames}, got {sequence}")
        if sequence >= self.told.frames or len(data) != self.told.length(sequence):
            raise CodecError(f"frame {sequence} has {len(data)} bytes, more or fewer than the head announces")
        if self._digest is None:
            self._digest = self._hash(file)
        place = (sequence - 1) * FRAME
        self._digest.update(data)
        done = 0
        while done < len(data):
            done += os.pwrite(file, data[done:], place + done)
        early(file, place, done)
        self.frames += 1

    def _begin(self, file: int, head: memoryview, together: int) -> None:
        if self.frames and head == self.head:
            return
        told = announced(head)
        if told.size > self.limit:
            raise ProtocolError(
                f"expected an upload of at most {self.limit} bytes, its head says {told.size}"
            )
        if self.lasts:
            self.beside.unlink(missing_ok=True)  # first: a new head over an old buffer would look whole
        os.ftruncate(file, 0)
        self.lasts = told.frames > min(together, 2)
        if self.lasts:  # of a message of one frame that is here, a kill loses no more than that
            part = self.beside.with_name(self.beside.name + ".part")
            part.write_bytes(head)
            part.replace(self.beside)
        self.head, self.told, self.frames = bytes(head), told, 1
        self.found, self._digest = False, sha256()

    def _hash(self, file: int) -> Any:
        """Of what is there already."""
        digest = sha256()
        end = self.told.size if self.whole and self.told else (self.frames - 1) * FRAME
        for start in range(0, end, FRAME):
            digest.update(os.pread(file, min(FRAME, end - start), start))
        return digest

    def verify(self) -> None:
        """Raises Gone (start again) or IntegrityError unless the buffer is the one announced.

        A disk that failed in the middle of taking the answer in has moved the buffer away: it comes again.
        """
        if not self.path.exists():
            self.drop()
            raise Gone("what was kept of this upload was lost when the disk failed: start again at frame 0")
        if self._digest is None:
            with self.path.open("rb", buffering=0) as file:
                self._digest = self._hash(file.fileno())
        if self.told and self._digest.digest() == self.told.sha256:
            return
        again = self.found
        self.drop()
        if again:
            raise Gone("what was kept of this upload is damaged: start again at frame 0")
        raise IntegrityError("the upload's SHA-256 is not the one its head announced")

    def drop(self) -> None:
        """Forget and remove it."""
        self.beside.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.frames, self.head, self.told, self.found, self._digest = 0, b"", None, False, None


class _Upload:
    """One upload under way: its spool, and whose turn it is to fill it."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.turn = asyncio.Lock()
        self.cut: Callable[[str], None] | None = None  # ends the connection whose turn it is
        self.moved = 0.0
        self.users = 0
        self.commit: asyncio.Task[dict[str, Any]] | None = None
        self.known = False  # whether the disk was looked at


class Uploads:
    """All uploads of a service, by member and id."""

    def __init__(
        self, desk: Desk, pool: Executor, *, window: float, takeover: float, keep: int = 4096
    ) -> None:
        self._desk = desk
        self._pool = pool
        self._window = window
        self._takeover = takeover
        self._keep = keep
        self._open: dict[tuple[str, str], _Upload] = {}
        self._reading = 0  # uploads whose frames come at this moment
        self._came = 0  # bytes since the C library last gave freed frames back

    async def offset(self, name: str, upload: str) -> int:
        """Frames on disk."""
        if await self._desk.receipt(name, upload) is not None:
            return KEPT
        one = await self._find(name, upload)
        await self._settled(one)
        return one.spool.frames

    async def _settled(self, one: _Upload) -> None:
        """What came over a connection that has just broken is still being written: it need not come again."""
        loop = asyncio.get_running_loop()
        began, each = loop.time(), min(SETTLE, self._takeover)
        while (until := min(max(began, one.moved) + each, began + LONG)) > loop.time():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until), one.turn:
                    return

    async def take(
        self,
        name: str,
        upload: str,
        start: int,
        incoming: AsyncIterator[Bytes] | list[memoryview],
        cut: Callable[[str], None],
    ) -> dict[str, Any]:
        """Read frames from number `start` on until the message is whole; the receipt. A list is short.

        `cut(reason)` ends this call, for a later connection that takes over from a dead one.
        """
        if (done := await self._desk.receipt(name, upload)) is not None:
            return dict(done)
        one = await self._find(name, upload)
        one.users += 1
        try:
            await self._wait(one)
            one.cut = cut
            try:
                if (done := await self._desk.receipt(name, upload)) is not None:
                    return dict(done)
                if start > one.spool.frames:
                    raise Gone(f"the server has {one.spool.frames} frames of this upload: go on from there")
                if isinstance(incoming, list):
                    one.spool.write(incoming)
                else:
                    await self._read(one, incoming)
                if not one.spool.whole:
                    raise Gone(f"the upload ended after {one.spool.frames} frames: go on from there")
                return await self._commit(name, upload, one)
            finally:
                one.cut = None
                one.turn.release()
        finally:
            one.users -= 1
            self._forget()

    async def _find(self, name: str, upload: str) -> _Upload:
        offer = await self._desk.offered(name, upload)
        key = name, upload
        one = self._open.pop(key, None)
        if one is None or one.spool.path != offer.path:
            one = _Upload(Spool(offer.path, offer.limit))
        self._open[key] = one  # the latest used stands last
        if not one.known:
            async with one.turn:
                if not one.known:
                    one.spool.lasts = one.spool.beside.exists()
                    if one.spool.lasts:
                        await thread(self._pool, one.spool.find)
                    one.known = True
        return one

    async def _wait(self, one: _Upload) -> None:
        """For its turn; from a connection that stands still it is taken."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(self._takeover):
                    await one.turn.acquire()
            except TimeoutError:
                if one.cut and one.commit is None and loop.time() - one.moved >= self._takeover:
                    one.cut("another connection goes on with this upload")
            else:
                one.moved = loop.time()
                return

    async def _read(self, one: _Upload, incoming: AsyncIterator[Bytes]) -> None:
        loop = asyncio.get_running_loop()
        spool = one.spool

        def moved() -> None:
            one.moved = loop.time()

        self._reading += 1
        try:
            await pump(
                incoming,
                spool.write,
                lambda: spool.told and spool.told.frames,
                have=spool.frames,
                pool=self._pool,
                window=self._window,
                moved=moved,
                ahead=lambda: max(1, min(AHEAD, ALL_AHEAD // self._reading)),
            )
        finally:
            self._reading -= 1
            self._came += spool.told.size if spool.told else 0
        if not self._reading and self._came >= MANY:  # what follows needs room: answers are added up
            self._came = 0
            await thread(self._pool, give_back)

    async def _commit(self, name: str, upload: str, one: _Upload) -> dict[str, Any]:
        """Goes on when the member is gone: it will ask for the receipt."""
        if one.commit is None:
            one.commit = asyncio.get_running_loop().create_task(self._finish(name, upload, one))
            one.commit.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(one.commit)
        finally:
            if one.commit is not None and one.commit.done():
                one.commit = None

    async def _finish(self, name: str, upload: str, one: _Upload) -> dict[str, Any]:
        spool = one.spool
        if spool.checked:
            spool.verify()
        else:
            await thread(self._pool, spool.verify)
        try:
            receipt = await self._desk.uploaded(name, upload, spool.head, spool.path)
        except (ProtocolError, Refused):
            with suppress(OSError):
                await thread(self._pool, spool.drop)
            raise
        if spool.lasts:
            with suppress(OSError):
                spool.beside.unlink(missing_ok=True)
        self._open.pop((name, upload), None)
        return dict(receipt)

    def _forget(self) -> None:
        """Keep the latest used; the disk knows about the others."""
        while len(self._open) > self._keep:
            idle = next((key for key, one in self._open.items() if not one.users), None)
            if idle is None:
                return
            del self._open[idle]
