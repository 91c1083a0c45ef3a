"""A member's side: dial out, stay connected, carry letters, uploads and downloads over any cuts.

    dial = Dial(urls, make, hello, on_letter=…, on_open=…)
    task = asyncio.create_task(dial.run())         # for ever, or until it is refused for good
    dial.send("refuse", {…})                       # delivered once, in order, whenever there is a way
    receipt = await dial.upload("r1.3.bank-a.0", file)
    await dial.download(blob, file, have={held: its_file})

`urls`: the preferred parent first. Where it cannot be reached the next is tried, and the way home is
looked for now and then while nothing is under way. Waiting grows with each failure, is drawn evenly
(full jitter), and keeps to the window that a server named.

Letters not acknowledged when a *server* restarts are said again to its next process: only then may
one arrive twice. Letters for one parent are never said to another.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..core.errors import AtollError, Gone, MisuseError, ProtocolError, Refused, StateError
from ..core.session import Packet
from ..wire.heap import keep_memory
from ..wire.plain import HEADER
from .fetch import Part
from .frames import FrameFile, Opened, plain
from .half import Half, Inbox, Outbox
from .link import (
    ALONG,
    CAPABILITIES,
    DOWN,
    PROTOCOL,
    TELLING,
    UP,
    Channel,
    Link,
    agreed,
    fault,
    letter,
    pack,
    read,
    split,
    unpack,
)
from .pump import brief, pump, thread

log = logging.getLogger("atoll.transport")

BATCH = 4  # frames read from a file at once
WITH = 2  # blobs kept that came along with letters


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `first`, `longest`: of the waits between tries. `welcome`: until a server must have
    answered a hello. `window`: in this time a transfer moves at least one frame (1 MiB; 3.5 KiB/s).
    `home`: how often to look for the preferred parent from another.
    """

    first: float = 0.5
    longest: float = 30.0
    welcome: float = 20.0
    window: float = 300.0
    home: float = 60.0


class _Held:
    """A link and how many use it: it is closed when it is retired and nobody does."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.users = 0
        self.retired = False

    async def retire(self) -> None:
        self.retired = True
        if not self.users:
            await self.link.close()


class _Bye(Exception):  # noqa: N818
    """The server ended the connection; `error` is why, `back` the window it named, `replaced`: by a copy."""

    def __init__(self, error: AtollError, back: tuple[float, float] | None, *, replaced: bool) -> None:
        self.error = error
        self.replaced = replaced
        self.back = back
        super().__init__(str(error))


class Dial:
    """One member's session with whichever parent can be reached.

    `make(url)`: a Link. `hello()`: plain values about this member for the desk; protocol, session and
    capabilities are added. `on_letter(kind, head)`: one at a time, in order. `on_open(welcome, fresh)`:
    a connection stands; `fresh`: the server does not know us from before, what was open is sent again;
    `welcome["url"]` is which. `on_lost(reason)`: it is gone, we keep trying; both stand in order with
    the letters. `idle()`: may we move home now? `restore`: delta.py's, where it does not run in this process.
    """

    url: str  # of the parent we are at or are trying
    connected: bool
    reason: str  # why not connected, for people

    def __init__(
        self,
        urls: Sequence[str],
        make: Callable[[str], Link],
        hello: Callable[[], Mapping[str, Any]],
        *,
        on_letter: Callable[[str, Mapping[str, Any]], Awaitable[None]],
        on_open: Callable[[Mapping[str, Any], bool], Awaitable[None]] | None = None,
        on_lost: Callable[[str], Awaitable[None]] | None = None,
        idle: Callable[[], bool] = lambda: True,
        patience: Patience = Patience(),
        draw: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        token: Callable[[int], str] = secrets.token_hex,
        restore: Callable[[Path, Path, Path], Awaitable[None]] | None = None,
    ) -> None:
        if not urls:
            raise MisuseError("a member needs the URL of at least one parent")
        self.urls = tuple(urls)
        self.url = self.urls[0]
        self.connected = False
        self.reason = "not dialled yet"
        self._make = make
        self._hello = hello
        self._on_letter = on_letter
        self._on_open = on_open
        self._on_lost = on_lost
        self._idle = idle
        self._patience = patience
        self._draw = draw or random.Random(secrets.randbits(64))
        self._clock = clock
        self._name = token(16)
        self._half = Half()
        self._at = ""  # whose letters those are: a URL,
        self._epoch = ""  # and that server's process life
        self._inbox = Inbox(lambda error: log.error("the server broke the rules: %s", error))
        self._held: _Held | None = None
        self._channel: Channel | None = None
        self._change = asyncio.Condition()
        self._transfers = 0
        self._over: AtollError | None = None
        self._no: dict[str, AtollError] = {}  # what parents said that refused us for good
        self._told: dict[str, str] = {}  # why not connected to a parent, as logged
        self._back = (0.0, 0.0)  # the window to come back in
        self._yields = False  # another process of ours has the seat: we take it only when it is free
        self._closing = False
        self._moving = False
        self._wake = asyncio.Event()
        self._restore = restore or _restored
        self._up = self._down = 0.0  # bytes a second of the last long transfers
        self._carries = False  # whether frames may go along with letters here
        self._came: dict[str, list[memoryview]] = {}  # blobs that did, until they are wanted
        self._brought: dict[str, asyncio.Future[dict[str, Any]]] = {}  # uploads that did, until their receipt

    @property
    def rate(self) -> float:
        """Bytes a second of the last long upload, or of a download before there was one; 0.0 before both."""
        return self._up or self._down

    # -- staying connected ----------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected until `close`.

        Raises Refused or ProtocolError when every parent said no for good.
        """
        failures = place = 0
        keep_memory(8 << 20)
        try:
            while not self._closing:
                self.url, opened = self.urls[place], self._clock()
                try:
                    await self._stay()
                except (_Bye, Refused, ProtocolError, Gone, OSError, TimeoutError) as error:
                    self._why(error)
                finally:
                    stood = self.connected
                    await self._lost()
                if self._moving:
                    self._moving, failures, place = False, 0, 0
                    continue
                lasted = stood and self._clock() - opened > self._patience.first
                failures = 0 if lasted else failures + 1
                if (not stood and not self._yields) or self.url in self._no:
                    place = (place + 1) % len(self.urls)
                if not self._closing:
                    wait = self._backoff(failures)
                    if self._yields:
                        self.reason += f": was its folder copied? It is asked again in {wait:.0f} seconds"
                    self._tell()
                    await self._pause(wait)
        except AtollError as error:
            self._over = error
            raise
        finally:
            self._over = self._over or Gone("it has left")
            self._half.end()
            await self._changed()

    def _why(self, error: Exception) -> None:
        """Keep the reason and the window to come back in. Raises when every parent has said no."""
        if isinstance(error, _Bye):
            self._back = error.back or self._back
            self._yields = self._yields or error.replaced
            error = error.error
        self.reason = str(error) or type(error).__name__
        if isinstance(error, (Refused, ProtocolError)):
            self._no[self.url] = error
            if len(self._no) == len(set(self.urls)):
                raise error

    def _tell(self) -> None:
        """Log why there is no connection: once, however often it is tried."""
        level = logging.DEBUG if self._told.get(self.url) == self.reason else logging.WARNING
        log.log(level, "not connected to %s: %s", self.url, self.reason)
        self._told[self.url] = self.reason

    def _backoff(self, failures: int) -> float:
        """After the first loss the window that the server named, then doubling ones of our own."""
        (least, most), self._back = self._back, (0.0, 0.0)
        cycles = min(max(failures - 1, 0) // len(self.urls), 16)
        own = min(self._patience.longest, self._patience.first * 2**cycles) if failures else 0.0
        return self._draw.uniform(least, most) + self._draw.uniform(0.0, own)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _stay(self) -> None:
        """One connection, from hello to its end."""
        held = _Held(self._make(self.url))
        try:
            packet = pack(Packet(0, self._half.seen if self._at == self.url else 0, self._greeting()))
            async with asyncio.timeout(self._patience.welcome):
                channel = await held.link.session(self._name, packet)
                self._channel = channel
                first = await channel.recv()
        except BaseException:
            await held.retire()
            raise
        try:
            heartbeat, lead = await self._open(held, channel, first)
            await self._listen(channel, heartbeat, lead)
        finally:
            self._channel = None
            with suppress(Exception):
                await channel.close()
            if self._held is not held:
                await held.retire()

    def _greeting(self) -> bytes:
        said = {
            **self._hello(),
            "protocol": list(PROTOCOL),
            "capabilities": list(CAPABILITIES),
            "session": self._name,
        }
        if self._at == self.url and self._epoch:
            said["epoch"] = self._epoch
        if self._yields:
            said["yields"] = True
        return letter("hello", said, UP)

    async def _open(self, held: _Held, channel: Channel, first: bytes | None) -> tuple[float, float]:
        """Take the welcome; seconds between heartbeats, and until the first of ours."""
        if first is None:
            raise Gone("the server ended the connection before its welcome")
        packet = unpack(first)
        if packet.number or packet.body is None:
            raise ProtocolError("expected a welcome as the first packet")
        message = read(packet.body, DOWN)
        if message.kind == "bye":
            raise _bye(message.head)
        if message.kind != "welcome":
            raise ProtocolError(f"expected a welcome first, got a letter of kind {message.kind[:40]!r}")
        welcome = message.head
        agreed(welcome.get("protocol"), "the server")
        resumed, epoch, beat = welcome.get("resumed"), welcome.get("epoch"), welcome.get("heartbeat")
        if not isinstance(epoch, str) or not isinstance(beat, float) or not 0 < beat < 86400:
            raise ProtocolError("expected an epoch and a heartbeat in seconds in the welcome")
        if not (resumed is True and self._at == self.url and self._epoch == epoch):
            self._afresh()
        self._at, self._epoch = self.url, epoch
        said = welcome.get("capabilities")
        self._carries = isinstance(said, (list, tuple)) and "along" in said
        self._back = _window(welcome.get("back")) or (0.0, 0.0)
        self._no.pop(self.url, None)
        self._yields = False
        old, self._held = self._held, held
        if old is not None:
            await old.retire()
        if self._on_open is not None:
            self._inbox.put(partial(self._on_open, {**welcome, "url": self.url}, resumed is not True))
        self.connected, self.reason = True, ""
        self._told.pop(self.url, None)
        log.info("connected to %s", self.url)
        self._half.connect(Outbox(channel.send, self._clock), packet.seen if resumed is True else 0)
        await self._changed()
        lead = welcome.get("first")
        if not isinstance(lead, float) or not 0 <= lead <= beat:
            lead = self._draw.uniform(0.5, 1.0) * beat
        return beat, lead

    def _afresh(self) -> None:
        """The server knows nothing of our letters: say those again that are meant for it."""
        unsaid = self._half.unsaid() if self._at in {"", self.url} else []
        self._half.end()
        self._half = Half()
        for body in unsaid:
            self._half.push(body)

    async def _listen(self, channel: Channel, heartbeat: float, lead: float) -> None:
        half, loop = self._half, asyncio.get_running_loop()
        outbox = half.outbox
        home = self._clock() + self._patience.home * self._draw.uniform(0.5, 1.5)
        beat = self._clock() + lead
        heard = self._clock()
        reading: asyncio.Task[bytes | None] = loop.create_task(channel.recv())
        try:
            while not self._closing:
                now = self._clock()
                if outbox is None or outbox.closed:
                    raise Gone("the connection ended while it was written")
                if now - heard > 3 * heartbeat:
                    raise Gone(f"nothing was heard from the server for {now - heard:.0f} seconds")
                if now >= beat:
                    beat += heartbeat * math.ceil((now - beat + 1e-6) / heartbeat)
                    half.alive()
                if now >= home and await self._home():
                    return
                until = min(beat, heard + 3 * heartbeat)
                if self.url != self.urls[0]:
                    home = home if now < home else now + self._patience.home * self._draw.uniform(0.5, 1.5)
                    until = min(until, home)
                await asyncio.wait([reading], timeout=max(0.0, until - now))
                while reading.done():
                    data = reading.result()
                    if data is None:
                        raise Gone("the server ended the connection")
                    heard = self._clock()
                    self._take(half, data)
                    if self._inbox.full:
                        await self._inbox.drained()
                    reading = loop.create_task(channel.recv())
                    await asyncio.sleep(0)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await reading

    def _take(self, half: Half, data: bytes) -> None:
        packet = unpack(data)
        if packet.number == 0 and packet.body is not None:
            message = read(packet.body, DOWN)
            if message.kind != "bye":
                raise ProtocolError(f"expected a number on a letter of kind {message.kind[:40]!r}")
            raise _bye(message.head)
        for body in half.arrived(packet):
            first, along = split(body)
            message = read(first, DOWN)
            if message.kind == "receipt":
                self._receipt(message.head)
                continue
            if along:
                self._came[sha256(along[0][HEADER:]).hexdigest()] = along
                while len(self._came) > WITH:
                    del self._came[next(iter(self._came))]
            self._inbox.put(partial(self._on_letter, message.kind, message.head))

    def _receipt(self, head: Mapping[str, Any]) -> None:
        waiting = self._brought.get(str(head.get("upload")))
        if waiting is None or waiting.done():
            return
        if "error" in head:
            waiting.set_exception(fault(str(head["error"]), str(head.get("reason"))[:2000]))
        else:
            waiting.set_result(dict(head))

    async def _home(self) -> bool:
        """Whether the preferred parent can be reached, and now is a good time to go back to it."""
        if self.url == self.urls[0] or self._transfers or not self._idle():
            return False
        probe = self._make(self.urls[0])
        try:
            async with asyncio.timeout(self._patience.welcome):
                await probe.probe()
        except (AtollError, OSError, TimeoutError):
            return False
        finally:
            await probe.close()
        if self._transfers or not self._idle():
            return False
        self._moving = True
        await self._say_bye("it goes home to its preferred parent")
        self.reason = "going home"
        return True

    async def _lost(self) -> None:
        was, self.connected = self.connected, False
        for waiting in self._brought.values():
            if not waiting.done():
                waiting.set_exception(Gone("the connection was lost"))
        if self._half.outbox is not None:
            self._half.outbox.close()
            self._half.outbox = None
        if was and self._on_lost is not None and not self._closing:
            self._inbox.put(partial(self._on_lost, self.reason))
        await self._changed()

    async def _changed(self) -> None:
        async with self._change:
            self._change.notify_all()

    async def _say_bye(self, reason: str) -> None:
        if self.connected and (outbox := self._half.outbox) is not None:
            await outbox.last(Packet(0, self._half.seen, letter("bye", {"reason": reason})), 2.0)

    # -- what is carried ------------------------------------------------------------------------

    def send(self, kind: str, head: Mapping[str, Any]) -> None:
        """Queue a letter for the parent; kept over cuts. Raises MisuseError for what a letter cannot hold."""
        self._half.push(letter(kind, head, UP))

    async def upload(
        self, upload: str, path: Path, *, fresh: bool = False, opened: Opened = plain
    ) -> dict[str, Any]:
        """Bring a file of one message's frames over, however often the way breaks; the receipt.

        `fresh`: the server has nothing of it yet, so the first try need not ask, and a small one goes along
        with a letter. `opened`: as FrameFile's.
        Raises Refused or ProtocolError where the server does not want it, StateError for a damaged file,
        Gone when this member has left or was refused.
        """
        carries = fresh and self.connected and self._carries and self._half.carries
        if carries and (frames := _small(path, opened)):
            try:
                return await self._along(upload, frames)
            except (Gone, TimeoutError) as error:
                log.info("upload %s is brought by a call: %s", upload, error)
                fresh = False
        file = FrameFile.of(path, opened)
        tries = 0
        while True:
            try:
                async with self._using() as link, asyncio.timeout(self._patience.window) as limit:
                    start = 0 if fresh else min(await link.offset(upload), file.told.frames)
                    fresh = False

                    began = last = self._clock()

                    def moved(limit: asyncio.Timeout = limit) -> None:
                        nonlocal tries, last
                        tries, last = 0, self._clock()
                        limit.reschedule(asyncio.get_running_loop().time() + self._patience.window)

                    async with aclosing(_frames(file, start, moved)) as sent:
                        receipt = await link.upload(upload, sent, start)
                    if not start and file.size >= TELLING:
                        self._up = file.size / max(last - began, 1e-3)
                    return receipt
            except (Gone, OSError, TimeoutError) as error:
                log.info("upload %s is tried again: %s", upload, str(error) or type(error).__name__)
            tries += 1
            await self._again(tries)

    async def _along(self, upload: str, frames: bytes) -> dict[str, Any]:
        """Send an upload along with a letter; the receipt. Raises what the server says instead, Gone after a
        cut.
        """
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._brought[upload] = waiting
        self._transfers += 1
        try:
            self._half.push(letter("upload", {"upload": upload}, UP), lambda: frames)
            async with asyncio.timeout(self._patience.window):
                return await waiting
        finally:
            self._transfers -= 1
            del self._brought[upload]

    async def download(self, blob: str, path: Path, have: Mapping[str, Path] | None = None) -> None:
        """Fetch a blob into `path`, whole and checked, or nothing; goes on from a part left by a kill.

        `have`: blobs held, of which the server may send a delta. Raises Refused or ProtocolError.
        """
        part = Part(blob, path, dict(have or {}))
        if part.part.exists():
            await thread(None, part.find)
        tries = 0
        if (along := self._came.pop(blob, None)) and not part.frames:
            part.write(list(along))
        while True:
            try:
                async with self._using() as link:
                    tries = await self._fetch(link, part, tries)
                    await self._finish(part)
                    return
            except (Gone, OSError, TimeoutError) as error:
                log.info("the download is tried again: %s", str(error) or type(error).__name__)
            tries += 1
            if part.base and tries > 1:
                await thread(None, part.drop)  # the delta may be gone at the server
            await self._again(tries)

    async def _finish(self, part: Part) -> None:
        part.verify()
        try:
            if part.base:
                await self._restore(part.have[part.base], part.part, part.whole)
            part.finish()
        except (OSError, StateError, ProtocolError) as error:
            await thread(None, part.drop)
            raise Gone(f"the blob could not be taken up, it is fetched whole: {error}") from None

    async def _fetch(self, link: Link, part: Part, tries: int) -> int:
        def moved() -> None:
            nonlocal tries
            tries = 0

        begun = [part.base] if part.base else []
        have = begun if part.frames else list(part.have)
        if part.total() == part.frames:
            return tries
        began, fresh = self._clock(), not part.frames
        incoming = link.download(part.blob, part.frames, have)
        await pump(
            incoming,
            part.write,
            part.total,
            have=part.frames,
            pool=None,
            window=self._patience.window,
            moved=moved,
        )
        if part.total() != part.frames:
            raise Gone(f"the download ended after {part.frames} frames")
        if fresh and part.size > ALONG:
            self._down = part.size / max(self._clock() - began, 1e-3)
        return tries

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[Link]:
        """The link to the parent, once there is one."""
        async with self._change:
            await self._change.wait_for(lambda: self._over or (self.connected and self._held))
        held = self._held
        if self._over or held is None:
            raise type(self._over or Gone(""))(f"this member is not connected any more: {self._over}")
        held.users += 1
        self._transfers += 1
        try:
            yield held.link
        finally:
            self._transfers -= 1
            held.users -= 1
            if held.retired and not held.users:
                await held.link.close()

    async def _again(self, tries: int) -> None:
        if self._over:
            raise type(self._over)(f"this member is not connected any more: {self._over}")
        await asyncio.sleep(self._draw.uniform(0.0, min(10.0, 0.1 * 2 ** min(tries, 10))))

    # -- ending ---------------------------------------------------------------------------------

    async def reconnect(self, reason: str = "reconnecting") -> None:
        """Dial anew, as after a renewed certificate: same session, no letter lost; transfers go on."""
        self.reason = reason
        self._wake.set()
        if (channel := self._channel) is not None:
            await channel.close()

    async def again(self) -> None:
        """Connect anew, by a link as `make` gives it now: the session and what is under way go on."""
        if (channel := self._channel) is not None:
            await channel.close()

    async def close(self) -> None:
        """Say goodbye and stop; `run` returns."""
        self._closing = True
        await self._say_bye("it leaves")
        self._wake.set()
        if (channel := self._channel) is not None:
            await channel.close()
        if (held := self._held) is not None:
            await held.retire()


def _small(path: Path, opened: Opened) -> bytes:
    """All frames of a file that goes along with a letter, nothing of a longer one."""
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size > ALONG:
            return b""
        file.seek(0)
        return file.read(size) or b""


async def _frames(file: FrameFile, start: int, moved: Callable[[], None]) -> AsyncGenerator[bytes]:
    for first in range(start, file.told.frames, BATCH):
        for frame in await brief(file.size, file.read, first, BATCH):
            yield frame
            moved()


def _window(back: Any) -> tuple[float, float] | None:
    match back:
        case [int() | float() as least, int() | float() as most] if 0 <= least <= most <= 86400:
            return float(least), float(most)
    return None


def _bye(head: Mapping[str, Any]) -> _Bye:
    reason = head.get("reason")
    error, back = fault(str(head.get("error")), str(reason)[:2000]), _window(head.get("back"))
    return _Bye(error, back, replaced=head.get("replaced") is True)


async def _restored(old: Path, delta: Path, to: Path) -> None:
    from .delta import restore  # it needs numpy, and a member that waits does not

    size = os.stat(delta).st_size  # noqa: PTH116  a file we have just written
    await brief(size, restore, old, delta, to)
