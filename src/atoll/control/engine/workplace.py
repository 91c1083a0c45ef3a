"""Where a client's learning runs: in a process of its own, or in this one.

    workplace = Apart(settings, vault)         # what `atoll client` does
    workplace = Here(settings, vault, held)    # rows and parts that are in this process: at.run_client

Apart, a learner that crashes or takes all memory ends its own process and not the client, and the memory
that libraries, rows and models take is given back once nothing is asked for `settings.linger` seconds.
The process (learner.py) starts with the first ask, for one after the other. One that an ask ended is
started again; an ask that ends it twice is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from ...core.errors import Refused, StateError
from ...privacy.vault import Vault
from ...wire import failpoint
from ...wire.heap import give_back, leave_code
from ..pipes import LENGTH, ended, framed
from ..settings import Client
from .spoken import Begin, Order, Said

if TYPE_CHECKING:
    from .datasets import Held

log = logging.getLogger("atoll.client")
COMMAND = (sys.executable, "-m", "atoll.control.engine.learner")
STRIKES = 2
GRACE = 5.0  # seconds for work that nobody waits for any more to end, before its process is ended


class Workplace(Protocol):
    """What an agent needs of it. Raises Refused with the reason, Spoiled where the model's file is."""

    async def about(self) -> Mapping[str, Any]:
        """What the federation may know of the rows. Raises ConfigError or DataError for unusable ones."""

    async def answer(
        self,
        head: Mapping[str, Any],
        model: Path,
        to: Path,
        *,
        sound: bool,
        roots: bytes,
        federation: str,
        rate: float = 0.0,
    ) -> None:
        """Write the answer to an ask, one after the other (learning.py). `rate`: of the link, as Dial's."""

    async def begin(self, head: Mapping[str, Any], to: Path, *, roots: bytes, federation: str) -> None:
        """Make the model that an ask's run starts from, unless it comes out as another here."""

    async def restore(self, old: Path, delta: Path, to: Path) -> None:
        """Make a blob of the one before and a delta (transport/delta.py)."""

    async def lighten(self, graph: Path, to: Path, data: str) -> None:
        """Write an ONNX file in 8-bit integers, sealed, calibrated on the rows of a data set."""

    async def tune(
        self, base: Path, rows: Path, to: Path, values: Mapping[str, Any], *, roots: bytes, federation: str
    ) -> Mapping[str, Any]:
        """Fine-tune the model this site serves (tuning.py); what it took."""

    async def close(self) -> None:
        """End what runs."""


class Here:
    """In this process, in a thread beside the event loop."""

    def __init__(self, settings: Client, vault: Vault, held: Mapping[str, Held] | None = None) -> None:
        from .learning import Learning

        self._learning = Learning(settings, held, vault)
        self._turn = asyncio.Lock()

    async def about(self) -> Mapping[str, Any]:
        """See Workplace."""
        return self._learning.about()

    async def answer(
        self,
        head: Mapping[str, Any],
        model: Path,
        to: Path,
        *,
        sound: bool,
        roots: bytes,
        federation: str,
        rate: float = 0.0,
    ) -> None:
        """See Workplace."""
        call = partial(self._learning.answer, sound=sound, roots=roots, federation=federation, rate=rate)
        async with self._turn:
            await asyncio.to_thread(call, head, model, to)

    async def begin(self, head: Mapping[str, Any], to: Path, *, roots: bytes, federation: str) -> None:
        """See Workplace."""
        async with self._turn:
            await asyncio.to_thread(self._learning.begin, head, to, roots=roots, federation=federation)

    async def restore(self, old: Path, delta: Path, to: Path) -> None:
        """See Workplace."""
        from ...transport.delta import restore

        await asyncio.to_thread(restore, old, delta, to)

    async def lighten(self, graph: Path, to: Path, data: str) -> None:
        """See Workplace."""
        async with self._turn:
            await asyncio.to_thread(self._learning.lighten, graph, to, data)

    async def tune(
        self, base: Path, rows: Path, to: Path, values: Mapping[str, Any], *, roots: bytes, federation: str
    ) -> Mapping[str, Any]:
        """See Workplace."""
        call = partial(self._learning.tune, base, rows, to, values, roots=roots, federation=federation)
        async with self._turn:
            return await asyncio.to_thread(call)

    async def close(self) -> None:
        """Nothing to end: a thread ends with its work."""


class Apart:
    """In a process of its own. `command`: how it is started. `started`: how many were."""

    def __init__(self, settings: Client, vault: Vault, command: Sequence[str] = ()) -> None:
        self.started = 0
        self._vault = vault
        self._settings = msgspec.structs.replace(settings, token="")
        self._command = tuple(command) or COMMAND
        self._about: Mapping[str, Any] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._doing: asyncio.Task[Mapping[str, Any]] | None = None  # who has the turn
        self._left: asyncio.Task[Mapping[str, Any]] | None = None  # nobody waits for it: its process is ended
        self._struck = False
        self._resting: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def about(self) -> Mapping[str, Any]:
        """See Workplace."""
        async with self._turn:
            if not self._about:
                await self._started()
                self._rest_later()
        return self._about

    async def answer(
        self,
        head: Mapping[str, Any],
        model: Path,
        to: Path,
        *,
        sound: bool,
        roots: bytes,
        federation: str,
        rate: float = 0.0,
    ) -> None:
        """See Workplace. Where it is cancelled, the work has GRACE seconds to end."""
        await self._ask(Order(_names(model, to), dict(head), sound, roots, federation, rate))

    async def begin(self, head: Mapping[str, Any], to: Path, *, roots: bytes, federation: str) -> None:
        """See Workplace."""
        await self._ask(Order(_names(to), dict(head), roots=roots, federation=federation))

    async def restore(self, old: Path, delta: Path, to: Path) -> None:
        """See Workplace."""
        await self._ask(Order(_names(old, delta, to)))

    async def lighten(self, graph: Path, to: Path, data: str) -> None:
        """See Workplace."""
        await self._ask(Order(_names(graph, to), calibrate=data))

    async def tune(
        self, base: Path, rows: Path, to: Path, values: Mapping[str, Any], *, roots: bytes, federation: str
    ) -> Mapping[str, Any]:
        """See Workplace. Where it is cancelled, its process is ended at once."""
        order = Order(_names(base, rows, to), roots=roots, federation=federation, tune=dict(values))
        return await self._ask(order, grace=0.0)

    async def close(self) -> None:
        """End the process, whatever it does."""
        if (doing := self._doing) is not None:
            self._leave(doing)
            await asyncio.wait([doing])
        self._rest()
        await asyncio.gather(*self._ending)

    async def _ask(self, order: Order, grace: float = GRACE) -> Mapping[str, Any]:
        task = asyncio.get_running_loop().create_task(self._done(order))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task is not self._doing:
                task.cancel()
            elif not task.done():
                task.add_done_callback(lambda task: task.cancelled() or task.exception())
                asyncio.get_running_loop().call_later(grace, self._leave, task)
            raise

    async def _done(self, order: Order) -> Mapping[str, Any]:
        """Have it done, in a fresh process where an earlier one ended of it."""
        async with self._turn:
            self._doing = asyncio.current_task()
            if self._resting is not None:
                self._resting.cancel()
            try:
                for _ in range(STRIKES):
                    process = await self._started()
                    said = await self._heard(process, framed(msgspec.msgpack.encode(order)))
                    if said is not None:
                        said.raised()
                        return said.about
                    how = _ended(await self._buried())
                    if self._left is self._doing:
                        return {}
                    self._struck = True
                    log.warning("the process that learns was ended by %s: it is started again", how)
                raise Refused(
                    f"the process that learns was ended by {how}, {STRIKES} times while it was at this: is"
                    " there enough memory? the client's log may say more"
                )
            finally:
                self._doing = None
                self._rest_later()

    async def _started(self) -> asyncio.subprocess.Process:
        """The process, with its rows loaded. Raises what they raised, StateError where it does not start."""
        if self._process is None:
            variables = {
                k: v for k, v in os.environ.items() if not (self._struck and k == failpoint.VARIABLE)
            }
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=variables,
                start_new_session=True,  # what ends the client by the keyboard reaches it through us
            )
            self.started += 1
            begin = Begin(self._settings, self._vault.key)
            try:
                said = await self._heard(process, framed(msgspec.msgpack.encode(begin)))
                if said is None:
                    how = _ended(await process.wait())
                    raise StateError(f"the process that learns does not start: {how}; see this log")
                said.raised()
            except BaseException:
                self._kill()
                await self._buried()
                raise
            self._about = said.about
        return self._process

    async def _heard(self, process: asyncio.subprocess.Process, record: bytes) -> Said | None:
        """Say it and hear the answer, None where the process has ended."""
        stdin = cast("asyncio.StreamWriter", process.stdin)
        stdout = cast("asyncio.StreamReader", process.stdout)
        try:
            stdin.write(record)
            await stdin.drain()
            (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
            return msgspec.msgpack.decode(await stdout.readexactly(length), type=Said)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def _leave(self, task: asyncio.Task[Mapping[str, Any]]) -> None:
        """Nobody has waited for this for a while."""
        if task is self._doing:
            self._left = task
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _buried(self) -> int:
        """The exit code of the process, which has ended or is about to."""
        process, self._process = self._process, None
        if process is None:
            return 0
        await ended(process)
        return process.returncode or 0

    def _rest_later(self) -> None:
        """Give its memory back when nothing is asked for a while."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(self._settings.linger, self._rest)

    def _rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        if self._process is not None and not self._turn.locked():
            task = asyncio.get_running_loop().create_task(_rested(self._process))
            self._process = None
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


async def _rested(process: asyncio.subprocess.Process) -> None:
    await ended(process)
    give_back()  # what transfers have freed, too
    leave_code()


def _names(*paths: Path) -> list[str]:
    return [str(path.absolute()) for path in paths]


def _ended(code: int) -> str:
    """How it ended, for people."""
    if code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
