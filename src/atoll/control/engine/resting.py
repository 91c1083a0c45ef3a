"""A client's prediction service in a process of its own, which is there while somebody asks.

    resting = Resting(settings, uplink, vault, feed, tune)
    await resting.start()          # as Serving

The client keeps the listening sockets and nothing else of it: no numpy, no ONNX Runtime, no model. The
process (predictor.py) has the same sockets, so that a caller meets one service whoever is awake: a connection
that comes while it rests waits in the socket until it has started. It starts with the client, with a
connection, an offered model, and when the watched source has stored its next window.

What it says it says through the client: letters to the parent, of which the last are said again to a parent
that may not know; blobs to fetch; models to fine-tune. One that dies is started again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ...core.errors import AtollError, StateError
from ...privacy.vault import Vault
from ...wire import failpoint
from ...wire.heap import give_back, leave_code
from ..pipes import LENGTH, ended, framed
from ..settings import Client, answers_at
from .spoken import Begin, Said, Told, Wanted

if TYPE_CHECKING:
    from ...sense.intake import Feed
    from .uplink import Uplink
    from .watch import Tune

log = logging.getLogger("atoll.client")
COMMAND = (sys.executable, "-m", "atoll.control.engine.predictor")
LATER = 60.0  # seconds at least that it rests where no number of readings says when the next window is full
SLOWEST = 60.0  # seconds until one that died is started again, at most


class Resting:
    """The service of one client, at `settings.predict`. `started`: how many processes were. `feed`: of the
    watched source, None for none.
    """

    def __init__(self, settings: Client, uplink: Uplink, vault: Vault, feed: Feed | None, tune: Tune) -> None:
        self.started = 0
        self._begin = Begin(msgspec.structs.replace(settings, token=""), vault.key)
        self._uplink, self._feed, self._tune = uplink, feed, tune
        self._sockets: list[socket.socket] = []
        self._letters: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._running: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None  # None while it rests, or is about to
        self._living: asyncio.subprocess.Process | None = None  # the same until it has ended
        self._calls: set[asyncio.Task[None]] = set()
        self._waiting: list[Told] = []  # for the next process
        self._told = 0
        self._due: Callable[[], bool] = lambda: True
        self._struck = False

    @property
    def awake(self) -> bool:
        """Whether there is a process."""
        return self._running is not None

    async def start(self) -> None:
        """Take connections, and have what was accepted before served. Raises StateError where the address
        cannot be had.
        """
        self._sockets = _bound(self._begin.settings)
        self._wake()
        if self._feed is not None:
            self._following = asyncio.get_running_loop().create_task(self._follow(self._feed))

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        if self._following is not None:
            self._following.cancel()
        if self._process is not None:
            await ended(self._process)
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._living is not None:  # it was about to rest
            await ended(self._living)
        self._unlisten()
        for one in self._sockets:
            one.close()

    def report(self) -> None:
        """Say how things stand, to a parent that may not know."""
        for (kind, _), head in self._letters.items():
            self._uplink.send(kind, head)

    async def offered(self, head: Mapping[str, Any]) -> None:
        """Have a model fetched, checked and rolled out."""
        self._tell(Told("offered", dict(head)))

    # -- the process ------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have a process."""
        if self._running is None:
            self._unlisten()
            self._running = asyncio.get_running_loop().create_task(self._run())

    def _tell(self, told: Told) -> None:
        if self._process is None:
            self._waiting.append(told)
            self._wake()
        else:
            self._told += 1
            cast("asyncio.StreamWriter", self._process.stdin).write(framed(msgspec.msgpack.encode(told)))

    async def _run(self) -> None:
        """One process after the other, until one rests and nothing is to be told."""
        wait = 0.5
        while True:
            began = asyncio.get_running_loop().time()
            code = await self._life()
            if code:
                wait = 0.5 if asyncio.get_running_loop().time() > began + SLOWEST else min(2 * wait, SLOWEST)
                self._struck = True
                log.warning("the process that serves ended by %d: it is started again in %g s", code, wait)
                await asyncio.sleep(wait)
                if self._uplink.dial is not None:
                    await self._uplink.dial.again()  # models that were on their way come again
            elif not self._waiting:
                break
        self._running = None
        give_back()  # what fetching has freed, too
        leave_code()
        self._listen()

    async def _life(self) -> int:
        """One process, from its start to its end; the exit code."""
        variables = {k: v for k, v in os.environ.items() if not (self._struck and k == failpoint.VARIABLE)}
        handles = [one.fileno() for one in self._sockets]
        try:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                *map(str, handles),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=variables,
                pass_fds=handles,
                start_new_session=True,  # what ends the client by the keyboard reaches it through us
            )
        except OSError as error:
            log.warning("the process that serves does not start: %s", error)
            return 1
        self.started += 1
        stdin = cast("asyncio.StreamWriter", process.stdin)
        stdin.write(framed(msgspec.msgpack.encode(self._begin)))
        self._process, self._living, self._told = process, process, 0
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            self._tell(told)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._hear(process)
        finally:
            self._process = None
            for call in self._calls:
                call.cancel()
            await ended(process)
        self._living = None
        return process.returncode or 0

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        stdout = cast("asyncio.StreamReader", process.stdout)
        decode = msgspec.msgpack.Decoder(Wanted).decode
        while True:
            (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
            wanted = decode(await stdout.readexactly(length))
            if wanted.what == "letter":
                self._letter(wanted.kind, wanted.head)
            elif wanted.what == "rest":
                due = await self._rested(wanted.head)
                if wanted.number == self._told:
                    self._due, self._process = due, None
                    cast("asyncio.StreamWriter", process.stdin).close()
            else:
                call = asyncio.get_running_loop().create_task(self._do(wanted))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    def _letter(self, kind: str, head: Mapping[str, Any]) -> None:
        """To the parent, unless it knows: a process that starts says how things stand."""
        key = kind, str(head.get("name", ""))
        if kind == "log" or self._letters.get(key) != head:
            self._uplink.send(kind, head)
        if kind != "log":
            self._letters[key] = head

    async def _do(self, wanted: Wanted) -> None:
        """What it cannot do itself."""
        try:
            if wanted.what == "fetch":
                path = await self._uplink.fetch(str(wanted.head["blob"]))
                said = Said({"path": str(path.absolute())})
            else:
                base, rows, to = map(Path, wanted.files)
                said = Said(dict(await self._tune(base, rows, to, wanted.head)))
        except (AtollError, OSError) as error:
            said = Said.of(error)
        self._tell(Told("done", number=wanted.number, said=said))

    # -- while it rests ---------------------------------------------------------------------------

    def _listen(self) -> None:
        for one in self._sockets:
            asyncio.get_running_loop().add_reader(one.fileno(), self._wake)

    def _unlisten(self) -> None:
        for one in self._sockets:
            asyncio.get_running_loop().remove_reader(one.fileno())

    async def _follow(self, feed: Feed) -> None:
        """Readings were stored: it hears of them, or is started once they are a window."""
        life = feed.store.life
        async for _ in feed.news():
            if feed.store.life != life:  # they were wiped: one that reads the old file ends
                life = feed.store.life
                process, self._process = self._process, None
                if process is not None:
                    self._waiting.append(Told("news"))
                    cast("asyncio.StreamWriter", process.stdin).close()
                self._wake()
            elif self._process is not None or await asyncio.to_thread(self._due):
                self._tell(Told("news"))

    async def _rested(self, head: Mapping[str, Any]) -> Callable[[], bool]:
        """What tells, as it rests, whether there is something to look at again."""
        if self._feed is None or self._feed.span is None:
            return lambda: False
        store, span, following = self._feed.store, self._feed.span, int(head["next"])
        if following:
            return lambda: store.end() >= following
        loop = asyncio.get_running_loop()
        then, at = await asyncio.to_thread(_counts, store), loop.time() + max(span.seconds, LATER)
        return lambda: loop.time() >= at and _counts(store) != then


def _counts(store: Any) -> dict[str, int]:
    found: dict[str, int] = store.counts()
    return {what: n for what, n in found.items() if what != "bytes"}


def _bound(settings: Client) -> list[socket.socket]:
    """What listens at the settings' address."""
    host, port = answers_at(settings)
    made = []
    try:
        for family, _, _, _, where in dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
            one = socket.create_server(where[:2], family=family, backlog=128)
            one.setblocking(False)
            made.append(one)
    except OSError as error:
        for one in made:
            one.close()
        raise StateError(f"cannot listen on {settings.predict}: {error.strerror}") from None
    return made
