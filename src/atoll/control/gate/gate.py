"""The one door for what clients send: each answer is looked at in a process that may die of it.

    gate = Gate(kept=folder)
    checked = await gate.check(want, head, path)     # or ProtocolError: who, and why not
    answer = answer_of(checked, path)                # wire/body.py

The worker (control/gate/gate_worker.py) starts with the first answer, looks at one after the other and
may hold no more memory than they need. If it dies, or gives no sign of life for `patience` seconds,
a new one looks again; an answer that ends it twice is refused and a copy of it kept for the operator.
What the worker says is checked again for its form, so that even a worker taken over could only let in
numbers in the model's own shapes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import IO, cast

import msgspec

from ...core.errors import ProtocolError, StateError
from ...wire.body import Checked, layout_of
from ..pipes import LENGTH, ended, framed
from .gate_worker import Case, Verdict
from .want import Want

_ROOM = 128 << 20  # bytes of memory to read any answer, besides its file
_GROWTH = 64  # bytes of memory that a byte of plain values may take while it is read
_UNPACKED = 24  # bytes of memory that a number of a compact update may take while it is read
_KEPT = 16  # answers kept aside: whoever sends more of them shall not fill the disk
_STRIKES = 2
_QUARANTINED = "twice it ended the process that reads it; it is in quarantine"
_START = 60.0  # seconds in which a worker must have begun, on a busy machine with a slow disk
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
_VERDICT = msgspec.json.Decoder(Verdict)

COMMAND = (sys.executable, "-m", "atoll.control.gate.gate_worker")


class _Open:
    """A case under way."""

    def __init__(self, case: Case, done: asyncio.Future[Verdict]) -> None:
        self.case = case
        self.done = done
        self.strikes = 0
        self.frame = framed(msgspec.json.encode(case))


class Gate:
    """Looks at answers in a worker process. One per server, used from one event loop; `close` it.

    `kept`: where answers that ended the worker twice are kept, None for nowhere. `patience`: seconds
    without a sign of life. `command`: how the worker is started.
    `started`, `struck`: how many workers were started, and how many of them an answer ended.
    """

    def __init__(
        self, *, kept: Path | None = None, patience: float = 20.0, command: Sequence[str] = COMMAND
    ) -> None:
        self.kept = kept
        self.patience = patience
        self.started = 0
        self.struck = 0
        self._command = tuple(command)
        self._numbers = count(1)
        self._open: dict[int, _Open] = {}  # in the order in which the worker sees them
        self._most = 0
        self._process: asyncio.subprocess.Process | None = None
        self._runner: asyncio.Task[None] | None = None
        self._closed = False
        self._stdin: asyncio.StreamWriter | None = None
        self._replaced = False  # the worker was ended by us, through no fault of the case under way
        self._heard = 0.0
        self._early = False

    async def check(self, want: Want, head: bytes, path: Path) -> Checked:
        """What may come in of the answer whose frame 0 is `head` and whose buffer is the file at `path`.

        Raises ProtocolError, which names the member and the reason and quotes no values; StateError
        where no worker can be started.
        """
        if self._closed:
            raise StateError("the gate is closed: this server is on its way down")
        this = _Open(self._case(want, head, path), asyncio.get_running_loop().create_future())
        await self._put(this)
        try:
            verdict = await this.done
        except ProtocolError as error:
            await asyncio.to_thread(self._keep, want, head, path)
            raise _refusal(want, str(error)) from None
        if verdict.failed:
            raise StateError(f"the answer of {want.member} cannot be read from the disk: {verdict.failed}")
        if verdict.refused or verdict.values is None:
            raise _refusal(want, verdict.refused or "it cannot be read")
        return Checked(verdict.values, verdict.sections, layout_of(want.leaves))

    def start(self) -> None:
        """Start the worker before the first answer comes; otherwise that one waits for it."""
        self._early = True
        if self._runner is None or self._runner.done():
            self._runner = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """End the worker; what is still under way is refused with StateError."""
        self._closed = True
        self._kill()
        if self._runner is not None:
            await self._runner

    async def _put(self, this: _Open) -> None:
        """Give a case to the worker, or to the one that is about to start."""
        self._open[this.case.number] = this
        if len(self._open) == 1:
            self._heard = asyncio.get_running_loop().time()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.ensure_future(self._run())
        elif self._stdin is not None:
            if this.case.room > self._most:  # no worker may raise its own limit: start one that has more
                self._replaced = True
                self._kill()
                return
            self._stdin.write(this.frame)
            with suppress(ConnectionError):  # it just died: the next one is given all that is open
                await self._stdin.drain()

    async def _run(self) -> None:
        """Keep a worker for as long as there is something to look at, and afterwards."""
        try:
            while (self._open or self._early) and not self._closed:
                self._early = False
                self._most = max(self._most, _doubled(max(map(_room, self._open.values()), default=_ROOM)))
                with tempfile.TemporaryFile() as said:
                    began = await self._live(said)
                    if not began and not self._closed:
                        said.seek(0)
                        last = said.read()[-500:].decode("utf-8", "replace").strip().rpartition("\n")[2]
                        self._fail(f"the gate's worker does not start: {last or 'it says nothing'}")
                self._strike()
        except OSError as error:
            self._fail(f"the gate's worker does not start: {error.strerror}")
        finally:  # nobody waits for ever
            self._fail("the gate was closed before this answer was looked at")

    async def _live(self, said: IO[bytes]) -> bool:
        """One worker's life, its last words in `said`; False if it never began."""
        worker = await asyncio.create_subprocess_exec(
            *self._command,
            str(self._most),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=said,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
        self.started += 1
        self._process, self._replaced = worker, False
        if self._closed:  # meanwhile
            self._kill()
        try:
            return await self._serve(worker)
        finally:
            self._stdin = None
            await ended(worker)
            self._process = None

    async def _serve(self, worker: asyncio.subprocess.Process) -> bool:
        """Hand over all that is open and take verdicts until the worker ends; False if it never began."""
        stdout = cast("asyncio.StreamReader", worker.stdout)
        verdict = await self._hear(stdout, max(self.patience, _START))
        if verdict is None:
            return False
        await self._hand_over(cast("asyncio.StreamWriter", worker.stdin))
        while (verdict := await self._hear(stdout, self.patience)) is not None:
            if not verdict.number:
                self._replaced = True  # it makes room for a fresh one
            elif not verdict.busy:
                self._done(verdict)
        return True

    async def _hear(self, stdout: asyncio.StreamReader, patience: float) -> Verdict | None:
        """The next verdict, None at the worker's end, which comes if it is silent for too long."""
        now = asyncio.get_running_loop().time
        reading = asyncio.ensure_future(_read(stdout))
        self._heard = now()
        while not reading.done():
            await asyncio.wait({reading}, timeout=patience)
            if self._open and now() - self._heard >= patience:
                await asyncio.wait({reading}, timeout=min(patience, 1.0))  # it may be we who were late
                if not reading.done():
                    self._kill()
        return reading.result()

    async def _hand_over(self, stdin: asyncio.StreamWriter) -> None:
        """Give all that is open to a worker that has begun."""
        if max(map(_room, self._open.values()), default=0) > self._most:
            self._replaced = True
            self._kill()
            return
        for this in self._open.values():
            stdin.write(this.frame)
        self._stdin = stdin
        with suppress(ConnectionError):
            await stdin.drain()

    def _case(self, want: Want, head: bytes, path: Path) -> Case:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise StateError(f"the answer of {want.member} is not on the disk: {error.strerror}") from None
        if size > want.size:
            raise _refusal(want, f"it has {size} bytes, and such an answer has at most {want.size}")
        room = _ROOM + size + _GROWTH * (len(head) + min(size, want.text))
        if want.form in ("raw", "gather") and not want.bits:
            room += _UNPACKED * want.numbers
        return Case(next(self._numbers), want, head, str(path.absolute()), room)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _done(self, verdict: Verdict) -> None:
        this = self._open.pop(verdict.number, None)
        if this is not None and not this.done.done():
            this.done.set_result(verdict)

    def _strike(self) -> None:
        """Who was looked at when the worker ended is suspect; the second time it is out."""
        if self._replaced or not self._open or self._closed:
            return
        number, this = next(iter(self._open.items()))
        self.struck += 1
        this.strikes += 1
        if this.strikes == _STRIKES:
            self._open.pop(number)
            if not this.done.done():
                this.done.set_exception(ProtocolError(_QUARANTINED))

    def _fail(self, why: str) -> None:
        for this in self._open.values():
            if not this.done.done():
                this.done.set_exception(StateError(why))
        self._open.clear()

    def _keep(self, want: Want, head: bytes, path: Path) -> None:
        """Keep an answer for the operator, while there are few of them."""
        if self.kept is None:
            return
        name = f"{want.member}-{want.request}-{sha256(head).hexdigest()[:16]}"
        with suppress(OSError):  # the refusal stands, whether or not there is room for this
            self.kept.mkdir(parents=True, exist_ok=True)
            if sum(1 for _ in self.kept.glob("*.head")) < _KEPT:
                (self.kept / f"{name}.head").write_bytes(head)
                shutil.copyfile(path, self.kept / name)


def _refusal(want: Want, reason: str) -> ProtocolError:
    return ProtocolError(f"the answer of {want.member} to request {want.request} is refused: {reason}")


def _room(this: _Open) -> int:
    return this.case.room


def _doubled(room: int) -> int:
    """The next power of two, so that growing answers seldom need another worker."""
    return 1 << (room - 1).bit_length()


async def _read(stdout: asyncio.StreamReader) -> Verdict | None:
    """The next verdict, None where the worker has ended or speaks nonsense."""
    try:
        (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
        return _VERDICT.decode(await stdout.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError):
        return None
