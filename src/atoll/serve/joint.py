"""Rows that a small model is unsure of go to a larger one, as far as the site lets anything leave.

Early exits (Teerapittayanon et al. 2017, "Distributed deep neural networks over the cloud, the edge and end
devices", ICDCS, section III-D), of which this is one, and split computing (Kang et al. 2017, "Neurosurgeon",
ASPLOS): the node's own model answers at once, and rows whose doubt is above a threshold are asked once more,
further up. The threshold is taken from local held-out rows, so that at most a share of them is doubtful;
while serving, a running count keeps to that share even where the rows have become stranger. An edge is such a
node to its children's rows (tier.py): device, edge and cloud are the same step twice.

    nothing    the default: no row leaves, and nobody is asked
    features   what the first layers of the larger model make of a row (cut.py); they say much about the row
    sample     the row

What leaves is sealed for the key of one reader (privacy/sealed.py), an edge or the coordinator of the
federation, whatever carries it. Where no answer comes in time, the local one stands; after that who did not
answer is not asked for a while, and the next of `above` is.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import ClientError, ClientSession, ClientTimeout
from numpy.typing import NDArray

from ..core.errors import AtollError, ConfigError, DataError, Gone, ProtocolError, Refused
from ..privacy.certificate import SERVERS
from ..privacy.hazmat.suite import suite_of
from ..privacy.sealed import published, seal
from .batch import Answers
from .doubt import doubt
from .egress import Settings
from .model import Model
from .reply import Asked, unpack

PURPOSE = "atoll joint 1"
TOP = "/v1/top"  # where edges carry what they do not read to the coordinator
MOST = 16 << 20  # bytes of an answer
LARGE = 1 << 20  # bytes that are sent in parts
SPARE = 10  # rows that may go up before the share is counted
LEAST = 0.01  # seconds; who has less left is not asked for
PAUSE, LONGEST = 1.0, 60.0  # seconds that nobody is asked after a failure; doubled at each further one
_ROLES = {"edge": ("edge",), "coordinator": ("coordinator",), "both": SERVERS}


class _Upstream:
    """One of those who may be asked: its key, the connection, until when it is left alone."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.key: tuple[bytes, float] = (b"", 0.0)
        self.session: ClientSession | None = None
        self.quiet, self.pause = -np.inf, PAUSE

    async def close(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            await session.close()


class Joint:
    """A node's side. `counts`: rows seen, doubtful, sent, answered, late, failed, spared.

    `clock`: monotonic seconds; `now`: Unix seconds; `random`: real entropy. Raises ConfigError for files that
    cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if settings.send != "nothing" and not settings.roots:
            raise ConfigError("roots is a PEM file of the federation's roots: nothing leaves to a stranger")
        if settings.send != "nothing" and not settings.above:
            raise ConfigError("above names who is asked: a list of https:// URLs, the preferred first")
        self.settings = settings
        self._clock, self._now, self._random = clock, now, random
        self._suite = suite_of(settings.crypto)
        self._roots = _file(settings.roots)
        self._head = Model(_file(settings.head), settings.head) if settings.head else None
        self._token = _file(settings.token_file).decode().strip()
        self._lock = threading.Lock()  # models run in threads
        self._upstreams = [_Upstream(url) for url in settings.above]
        self.counts = dict.fromkeys(("seen", "doubtful", "sent", "answered", "late", "failed", "spared"), 0)

    def doubtful(self, answers: Answers) -> NDArray[np.intp]:
        """Which rows to send up; none where nothing may leave, the share is used up or nobody answers."""
        if self.settings.send == "nothing":
            return np.empty(0, np.intp)
        try:
            found = doubt(answers, self.settings.measure)
        except DataError:  # a model without classes is sure of what it says
            return np.empty(0, np.intp)
        rows = np.flatnonzero(found > self.settings.threshold)
        with self._lock:
            self.counts["seen"] += len(found)
            room = self._room(len(rows))
            rows = rows[np.argsort(-found[rows], kind="stable")[:room]]
            self._sent(len(rows))
        return np.sort(rows)

    def spares(self, rows: int) -> bool:
        """Whether so many rows that nobody here can answer go up: all of them, or none."""
        if self.settings.send == "nothing":
            return False
        with self._lock:
            self.counts["seen"] += rows
            go = self._room(rows) >= rows
            self._sent(rows if go else 0)
        return go

    async def ask(
        self, x: NDArray[np.float32], *, model: str = "", features: bool = False, left: float = np.inf
    ) -> Asked | None:
        """The larger model's answers to these rows, or None where they come too late or not at all.

        `model`: what it is called there where the settings do not say; `features`: the rows are some already;
        `left`: seconds until nobody waits any more.
        """
        if left < LEAST:  # nobody's fault above
            with self._lock:
                self.counts["late"] += len(x)
            return None
        upstream, limit = self._free() or self._upstreams[0], min(self.settings.limit, left)
        until = self._clock() + limit
        try:
            async with asyncio.timeout(limit):
                found = await self._ask(upstream, x, self.settings.model or model, until, features=features)
        except TimeoutError:
            self._failed(upstream, "late", len(x))
            return None
        except (AtollError, ClientError, OSError, ValueError):
            self._failed(upstream, "failed", len(x))
            await upstream.close()  # the next connection shows the certificate as it is then
            return None
        with self._lock:
            upstream.pause = PAUSE
            self.counts["answered"] += len(x)
        return found

    async def carry(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and answer of what a child asks the coordinator: sealed, and not read here.

        Raises Refused where sealed rows may not leave, Gone where nobody above answers.
        """
        if self.settings.send != "sample":
            raise Refused('this server sends no sealed rows on: its settings want send = "sample"')
        upstream = self._free()
        if upstream is None:
            raise Gone("who is above this server does not answer at the moment")
        method = "GET" if body is None else "POST"
        try:
            async with asyncio.timeout(self.settings.limit):
                return await self._call(upstream, method, TOP + path, body)
        except (AtollError, ClientError, OSError) as error:
            self._failed(upstream, "late" if isinstance(error, TimeoutError) else "failed", 0)
            await upstream.close()
            raise Gone("who is above this server does not answer") from None

    async def close(self) -> None:
        """End the connections; the next ask opens another."""
        for upstream in self._upstreams:
            await upstream.close()

    def _free(self) -> _Upstream | None:
        now = self._clock()
        return next((one for one in self._upstreams if now >= one.quiet), None)

    def _room(self, rows: int) -> int:
        """How many of these doubtful rows may go up."""
        counts = self.counts
        counts["doubtful"] += rows
        room = int(self.settings.share * counts["seen"]) + SPARE - counts["sent"]
        return max(room, 0) if self._free() is not None else 0

    def _sent(self, rows: int) -> None:
        self.counts["sent"] += rows
        self.counts["spared"] = self.counts["doubtful"] - self.counts["sent"]

    def _failed(self, upstream: _Upstream, how: str, rows: int) -> None:
        with self._lock:
            self.counts[how] += rows
            upstream.quiet = self._clock() + upstream.pause
            upstream.pause = min(2 * upstream.pause, LONGEST)

    async def _ask(
        self, upstream: _Upstream, x: NDArray[np.float32], model: str, until: float, *, features: bool
    ) -> Asked:
        readers = self.settings.readers
        door = TOP if readers == "coordinator" else "/v1"
        if self._now() > upstream.key[1]:
            await self._meet(upstream, door)
        if self._head is not None and not features:
            (x,) = (await asyncio.to_thread(self._head.run, x)).values()
        told = {
            "model": model,
            "shape": x.shape,
            "rows": np.ascontiguousarray(x).tobytes(),
            "features": features or self._head is not None,
            "on": readers == "both",
            "left": max(until - self._clock(), 0.0),
        }
        body, back = seal(upstream.key[0], msgspec.msgpack.encode(told), PURPOSE, self._random, self._suite)
        status, found = await self._call(upstream, "POST", f"{door}/joint", body)
        if status == 409:
            upstream.key = (b"", 0.0)
        if status != 200:
            raise Refused(f"upstream answered with status {status}")
        return unpack(self._suite.unsealed(back, found), len(x))

    async def _meet(self, upstream: _Upstream, door: str) -> None:
        """Learn the upstream's key, which must be signed by a server of this federation that may read."""
        status, data = await self._call(upstream, "GET", f"{door}/key")
        if status != 200:
            raise Gone(f"upstream has no key: status {status}")
        public, until, owner = published(data, self._roots, now=self._now())
        if owner.role not in _ROLES[self.settings.readers]:
            raise ProtocolError(f"{owner.uri} may not read these rows: readers = {self.settings.readers!r}")
        upstream.key = (public, until)

    async def _call(
        self, upstream: _Upstream, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, bytes]:
        session = upstream.session = upstream.session or _session(self.settings, upstream.url, self._token)
        url = f"{upstream.url}{path}"
        data: Any = BytesIO(body) if body and len(body) > LARGE else body
        async with session.request(method, url, data=data, allow_redirects=False) as answer:
            found = await answer.content.read(MOST)
            while len(found) < MOST and (more := await answer.content.read(MOST - len(found))):
                found += more
            return answer.status, found


def _session(settings: Settings, url: str, token: str) -> ClientSession:
    from aiohttp import TCPConnector

    context: Any = True
    if url.startswith("https://"):
        context = ssl.create_default_context(cafile=settings.ca or settings.roots)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key)
    elif not url.startswith(("http://127.0.0.1:", "http://localhost:", "http://[::1]:")):
        raise ConfigError(f"{url} is in the clear: an upstream on another machine is https://")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers["Content-Type"] = "application/octet-stream"
    return ClientSession(
        headers=headers, connector=TCPConnector(ssl=context), timeout=ClientTimeout(total=LONGEST)
    )


def _file(path: str) -> bytes:
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
