"""The process that serves: `python -m atoll.control.engine.predictor FD ...`, which resting.py starts.

It has the client's listening sockets, reads its settings from stdin, and serves and watches as the client
would (serving.py, watch.py). What it needs of the client it says on stdout. Once it has had nothing to do for
`settings.quiet` seconds it takes no more connections and says that it would rest; it ends when stdin does, as
it does if its client was killed, and goes on if it is told something instead.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ...core.errors import AtollError
from ...privacy.hazmat.suite import suite_of
from ...privacy.keys import Current, Identity
from ...privacy.vault import Vault
from ...sense.intake import Feed
from ...wire.heap import give_back, leave_code
from ..pipes import LENGTH, framed
from ..settings import Client
from .process import logged
from .sensing import contract, form, rules, stored
from .serving import Serving
from .spoken import Begin, Said, Told, Wanted
from .watching import watching

TICK = 0.25  # of the seconds to be quiet: how often it looks; at most a second
ACCEPTED = 0.05  # seconds in which a connection that was accepted is counted


class Parent:
    """The client, as Serving and Watch know it."""

    def __init__(self, folder: Path, sink: BinaryIO) -> None:
        self._current = Current(folder / "identity")
        self._sink = sink
        self._numbers = count(1)
        self._calls: dict[int, asyncio.Future[Said]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def identity(self) -> Identity:
        """Who we are, with the newest certificate."""
        return self._current()

    def send(self, kind: str, head: Mapping[str, Any]) -> None:
        """A letter to the parent."""
        self.say(Wanted("letter", dict(head), kind=kind))

    def beside(self, job: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else; what it raises ends this process."""
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def fetch(self, blob: str) -> Path:
        """A blob's file."""
        found = await self._call(Wanted("fetch", {"blob": blob}))
        return Path(str(found["path"]))

    async def tune(self, base: Path, rows: Path, to: Path, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fine-tune in the workplace."""
        files = [str(path.absolute()) for path in (base, rows, to)]
        return await self._call(Wanted("tune", dict(values), files=files))

    def say(self, wanted: Wanted) -> None:
        """To the client, which always listens."""
        self._sink.write(framed(msgspec.msgpack.encode(wanted)))
        self._sink.flush()

    def done(self, number: int, said: Said) -> None:
        """A call has its answer."""
        if (call := self._calls.pop(number, None)) is not None and not call.done():
            call.set_result(said)

    @property
    def busy(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._calls)

    async def _call(self, wanted: Wanted) -> Mapping[str, Any]:
        number = next(self._numbers)
        self._calls[number] = asyncio.get_running_loop().create_future()
        self.say(msgspec.structs.replace(wanted, number=number))
        said = await self._calls[number]
        said.raised()
        return said.about

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.fault.done():
            self.fault.set_exception(error)


class Watched(Feed):
    """A source's feed, which notes that windows came. `taken`: how many did."""

    taken = 0

    async def windows(self, after: int = 0, histories: int = 0) -> AsyncIterator[Any]:
        """As a Feed's."""
        async for window in super().windows(after, histories):
            self.taken += 1
            yield window

    async def labelled(self, after: int = 0, histories: int = 0) -> AsyncIterator[Any]:
        """As a Feed's."""
        async for lot in super().labelled(after, histories):
            self.taken += 1
            yield lot


class Predictor:
    """Serving and the watch of one client, in this process."""

    def __init__(self, begin: Begin, sockets: list[socket.socket], sink: BinaryIO) -> None:
        settings = self._settings = begin.settings
        self._sockets = sockets
        self.parent = Parent(Path(settings.folder), sink)
        self._vault = Vault(begin.key, suite_of(settings.store.crypto))
        self.serving = Serving(settings, self.parent, None, self._vault)
        self._feed = None if settings.watch is None else _feed(settings, self._vault)
        self._heard = 0
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Serve and watch."""
        await self.serving.start(self._sockets)
        if self._feed is not None:
            parent = self.parent
            work = watching(self._settings, self._vault, self.serving, parent.send, self._feed, parent.tune)
            parent.beside(work)
        self.serving.report()
        await asyncio.to_thread(_loaded)
        self.parent.beside(self._rest())

    def hear(self, told: Told) -> None:
        """What the client says."""
        self._heard += 1
        self._news.set()
        if told.what == "offered":
            self.parent.beside(self._offered(told.head))
        elif told.what == "done":
            self.parent.done(told.number, told.said)
        elif self._feed is not None:
            self.parent.beside(self._feed.told())

    async def _offered(self, head: Mapping[str, Any]) -> None:
        await self.serving.offered(head)
        await asyncio.to_thread(_loaded)

    async def _rest(self) -> None:
        """Ask to be let go when nothing has happened for a while."""
        quiet, loop = self._settings.quiet, asyncio.get_running_loop()
        seen, since = self._seen(), loop.time()
        while True:
            await asyncio.sleep(min(1.0, TICK * quiet))
            if self._busy or seen != self._seen():
                seen, since = self._seen(), loop.time()
            if loop.time() < since + quiet:
                continue
            await self.serving.deaf()
            await asyncio.sleep(ACCEPTED)
            if not self._busy and seen == self._seen():
                self._news.clear()
                self.parent.say(Wanted("rest", {"next": self._next()}, self._heard))
                await self._news.wait()
            since = loop.time()
            await self.serving.listen(self._sockets)

    @property
    def _busy(self) -> bool:
        return self.parent.busy or self.serving.busy

    def _seen(self) -> tuple[int, int]:
        return self.serving.requests, 0 if self._feed is None else self._feed.taken

    def _next(self) -> int:
        """The reading that fills the next window; 0 where that is not known."""
        if self._feed is None or self._feed.span is None or self.serving.watch is None:
            return 0
        if self._feed.store.join is not None or not self._feed.span.size:
            return 0
        return self.serving.watch.known.cursor + self._feed.span.size


def _loaded() -> None:
    """Models were: what that took goes."""
    give_back()
    leave_code()


def _feed(settings: Client, vault: Vault) -> Watched:
    """The watched source's, to read."""
    assert settings.watch is not None  # noqa: S101  the caller's
    name = settings.watch.source
    source, made = settings.sources[name], contract(settings, name)
    store = stored(settings, name, vault, made)
    return Watched(store, source.queue, source.window, partial(form, made), rules(source, made).late or 0.0)


async def _main(sockets: list[socket.socket], sink: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    source = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin.buffer)

    async def record() -> bytes:
        (length,) = LENGTH.unpack(await source.readexactly(LENGTH.size))
        return await source.readexactly(length)

    predictor = Predictor(msgspec.msgpack.decode(await record(), type=Begin), sockets, sink)
    await predictor.start()

    async def hear() -> None:
        decode = msgspec.msgpack.Decoder(Told).decode
        while True:
            predictor.hear(decode(await record()))

    hearing = loop.create_task(hear())
    await asyncio.wait([hearing, predictor.parent.fault], return_when=asyncio.FIRST_COMPLETED)
    hearing.cancel()
    await predictor.serving.stop()
    if predictor.parent.fault.done():
        predictor.parent.fault.result()


def main() -> None:
    """Serve until stdin ends."""
    logged()
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing may print among what is said
    sockets = [socket.socket(fileno=int(fd)) for fd in sys.argv[1:]]
    try:
        asyncio.run(_main(sockets, sink))
    except AtollError as error:
        sys.stderr.write(f"error: the process that serves: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
