"""A link made of calls: a method, a path, headers and a body, and an answer of the same; HTTP's own words.

Sessions are long polls or streams, transfers are one call each; what the calls mean is the table in
docs/reference/protocol.md. A Carrier brings them over: HTTP (https_link.py) or a broker (mqtt_link.py).
Where the carrier is not trusted, each call is signed (sealed.py), and what comes back without the
server's signature, or with a wrong one, is Gone: it may be somebody else's, and one may try again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..core.errors import AtollError, Gone, IntegrityError, ProtocolError
from ..privacy.keys import Identity
from ..wire.plain import Bytes
from .link import DOWN, Channel, fault, read, unpack
from .pieces import frames as frames_of
from .pieces import packed, packets
from .pump import thread
from .sealed import Seal, header, heard, opened

_ANSWER = 2 << 20  # bytes of the longest answer that is read whole
STREAM = 8.0  # seconds for the first packet of a stream; then a proxy is thought to hold it back
_WORDS = {400: "protocol", 401: "refused", 403: "refused", 404: "refused", 405: "refused", 413: "protocol"}

Body: TypeAlias = bytes | AsyncIterator[bytes] | None


class Answer(NamedTuple):
    """What a call is answered with; names of headers in any case, the body to be read once."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


class Carrier(Protocol):
    """What brings calls to one server."""

    def call(
        self, method: str, path: str, headers: Mapping[str, str], data: Body
    ) -> AbstractAsyncContextManager[Answer]:
        """Make a call; leaving the context ends it. Raises Gone for all that happens on the way."""

    async def close(self) -> None:
        """Give all connections back; again is no error."""


class CallLink:
    """See link.Link and above. `sign`: who signs each call, None where the carrier proves who speaks.

    `headers`: of every call. `poll`: sessions are long polls from the start, else streams where they pass.
    """

    def __init__(
        self,
        url: str,
        carrier: Carrier,
        sign: Identity | None,
        headers: Mapping[str, str] | None = None,
        *,
        poll: bool = False,
    ) -> None:
        self.url = url
        self._carrier = carrier
        self._identity = sign
        self._seal: Seal | None = None
        self._headers = dict(headers or {})
        self._poll = poll

    @asynccontextmanager
    async def call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, data: Body = None
    ) -> AsyncIterator[Answer]:
        """A call and its answer. Raises what the server said; Gone for what happened on the way."""
        if path != "/v1/seal":
            await self.ready()
        told = {**self._headers, **(headers or {})}
        if self._seal is not None:
            told["atoll-seal"] = header(self._seal, method, path, told)
        async with self._carrier.call(method, path, told, data) as answer:
            if answer.status >= 300:
                raise self._error(answer.status, answer.headers, path)
            yield answer

    async def ready(self) -> None:
        """Before a body is made: agree on a nonce where all is signed."""
        if self._identity is None or self._seal is not None:
            return
        nonce = secrets.token_hex(16)
        asked = json.dumps({"chain": self._identity.chain.decode(), "nonce": nonce}).encode()
        async with self.call("POST", "/v1/seal", {"Content-Type": "application/json"}, asked) as answer:
            data = await whole(answer.body)
        with self._signed():
            try:
                said = json.loads(data)
            except (ValueError, RecursionError):
                raise ProtocolError("what answered is no server of a federation") from None
            self._seal = opened(self._identity, nonce, said, now=time.time())

    @contextmanager
    def _signed(self) -> Iterator[None]:
        """Around what must be signed: where it is not as it should be, it may not be the server's."""
        try:
            yield
        except ProtocolError as error:
            raise Gone(f"{self.url}: not signed by the server: {error}") from None

    def _error(self, status: int, headers: Mapping[str, str], path: str) -> AtollError:
        """What a server said instead; a proxy's words come without ours, or without a signature."""
        word = headers.get("atoll-error") or _WORDS.get(status, "gone")
        reason = _reason(headers.get("atoll-reason"))
        reason = reason or f"the server or a proxy before it answered {status}"
        if self._identity is not None:
            try:
                if self._seal is None or "atoll-seal" not in headers:
                    raise IntegrityError("no signature")
                told = heard(self._seal, path, status, headers["atoll-seal"])
            except ProtocolError:
                return Gone(f"not signed by the server: {reason}")
            word, _, reason = told.partition("\n")
        return fault(word, reason)

    async def session(self, name: str, hello: bytes) -> Channel:
        """See link.Link."""
        self._headers["atoll-session"] = name
        if not self._poll:
            channel = _Streamed(self, hello)
            if await channel.opened():
                return channel
            await channel.close()
            self._poll = True
        return _Polled(self, hello)

    async def offset(self, upload: str) -> int:
        """See link.Link."""
        async with self.call("HEAD", f"/v1/uploads/{_plain(upload)}") as answer:
            frames = answer.headers.get("atoll-frames", "")
            if self._seal is not None:
                told = answer.headers.get("atoll-seal", "")
                with self._signed():
                    frames = heard(self._seal, f"/v1/uploads/{upload}", answer.status, told)
            return _number(frames)

    async def upload(self, upload: str, frames: AsyncIterator[bytes], start: int) -> dict[str, Any]:
        """See link.Link."""
        headers = {"atoll-start": str(start), "Content-Type": "application/octet-stream"}
        path = f"/v1/uploads/{_plain(upload)}"
        body = self._closed(upload, frames) if self._identity is not None else frames
        async with self.call("PUT", path, headers, body) as answer:
            data = await whole(answer.body)
        if self._seal is not None:
            with self._signed():
                data = bytes(self._seal.open(f"receipt {upload}", data))
        return dict(read(unpack(data).body or b"", DOWN).head)

    async def _closed(self, upload: str, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Frames as signed records; a megabyte is hashed off the event loop."""
        async for frame in frames:
            if self._seal is None:
                raise Gone("the request was sent before it was agreed who signs")
            yield packed([await thread(None, self._seal.close, f"frame {upload}", frame)])

    @asynccontextmanager
    async def post(self, headers: Mapping[str, str], said: Sequence[bytes]) -> AsyncIterator[Answer]:
        """A call of a session with these packets."""
        await self.ready()
        body = packed(self._seal.close("packet", packet) if self._seal else packet for packet in said)
        async with self.call("POST", "/v1/session", headers, body) as answer:
            yield answer

    def open_packet(self, packet: bytes) -> bytes:
        """A packet as the server said it. Raises Gone where it is not signed by it."""
        if self._seal is None:
            return packet
        with self._signed():
            return bytes(self._seal.open("packet", packet))

    async def download(self, blob: str, start: int, have: Sequence[str]) -> AsyncIterator[Bytes]:
        """See link.Link."""
        path = f"/v1/blobs/{_plain(blob)}?from={start}&have={','.join(have)}"
        async with self.call("GET", path) as answer:
            try:
                async for frame in frames_of(answer.body):
                    yield frame
            except ProtocolError as error:
                if self._identity is None:
                    raise
                raise Gone(f"{self.url}: a blob was changed on its way: {error}") from None

    async def probe(self) -> None:
        """See link.Link."""
        async with asyncio.timeout(10), self.call("GET", "/v1/"):
            pass

    async def close(self) -> None:
        """See link.Link."""
        await self._carrier.close()


class _Streamed:
    """Down one long answer, up in single calls."""

    def __init__(self, link: CallLink, hello: bytes) -> None:
        self._link = link
        self._headers = {"atoll-mode": "stream", "atoll-connection": secrets.token_hex(16)}
        self._down: asyncio.Queue[bytes | AtollError | None] = asyncio.Queue(64)
        self._first = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(hello))

    async def _run(self, hello: bytes) -> None:
        last: AtollError | None = None
        try:
            async with self._link.post(self._headers, [hello]) as answer:
                async for packet in packets(answer.body):
                    self._first.set()
                    await self._down.put(self._link.open_packet(packet))
        except AtollError as error:
            last = error
        finally:
            self._first.set()
        await self._down.put(last)

    async def opened(self) -> bool:
        """Whether something came down in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STREAM):
                await self._first.wait()
                return True
        return False

    async def send(self, packet: bytes) -> None:
        async with self._link.post({**self._headers, "atoll-mode": "send"}, [packet]):
            pass

    async def recv(self) -> bytes | None:
        if self._task.done() and self._down.empty():
            return None
        item = await self._down.get()
        if isinstance(item, AtollError):
            raise item
        return item

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self._down.empty():
            self._down.put_nowait(None)  # for who waits


class _Polled:
    """Down by one waiting call after the other, up with them or in calls of their own."""

    def __init__(self, link: CallLink, hello: bytes) -> None:
        self._link = link
        self._headers = {"atoll-mode": "poll", "atoll-connection": secrets.token_hex(16)}
        self._hello: bytes | None = hello
        self._ready: list[bytes] = []
        self._over = False

    async def send(self, packet: bytes) -> None:
        async with self._link.post({**self._headers, "atoll-mode": "send"}, [packet]):
            pass

    async def recv(self) -> bytes | None:
        while not self._ready:
            if self._over:
                return None
            hello, self._hello = self._hello, None
            headers = {**self._headers, "atoll-open": "1"} if hello else self._headers
            try:
                async with self._link.post(headers, [hello] if hello else []) as answer:
                    self._ready = [self._link.open_packet(p) async for p in packets(answer.body)]
            except Gone as error:
                self._over = True
                if "this connection is over" in str(error):
                    return None
                raise
        return self._ready.pop(0)

    async def close(self) -> None:
        if not self._over:
            self._over = True
            headers = {**self._headers, "atoll-mode": "end"}
            with suppress(AtollError, TimeoutError):
                async with asyncio.timeout(2), self._link.post(headers, []):
                    pass


async def whole(body: AsyncIterator[bytes]) -> bytes:
    """A short body. Raises ProtocolError for one that is not."""
    data = bytearray()
    async for piece in body:
        data += piece
        if len(data) > _ANSWER:
            raise ProtocolError(f"expected an answer of at most {_ANSWER} bytes")
    return bytes(data)


def _reason(header: str | None) -> str:
    try:
        return str(json.loads(f'"{header}"')) if header else ""
    except ValueError:
        return ""


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise ProtocolError("expected a number of frames from the server")
    return int(text)


def _plain(name: str) -> str:
    """A name as it may stand in a path."""
    if not name or any(c not in _SAFE for c in name) or name.strip(".") == "":
        raise ProtocolError(f"no upload or blob can be called {name[:60]!r}")
    return name


_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
