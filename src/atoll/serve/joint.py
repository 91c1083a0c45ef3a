"""Rows that a small model is unsure of go to a larger one, as far as the site lets anything leave.

Early exits (Teerapittayanon et al. 2017, "Distributed deep neural networks over the cloud, the edge and end
devices", ICDCS, section III-D), of which this is one, and split computing (Kang et al. 2017, "Neurosurgeon",
ASPLOS): the node's own model answers at once, and rows whose doubt is above a threshold are asked once more,
further up. The threshold is taken from local held-out rows, so that at most a share of them is doubtful;
while serving, a running count keeps to that share even where the rows have become stranger.

    nothing    the default: no row leaves, and nobody is asked
    features   what the first layers of the larger model make of a row (cut.py); they say much about the row
    sample     the row

What leaves is sealed for the key of an edge or coordinator of the federation (privacy/sealed.py), whatever
carries it. Where no answer comes in time, the local one stands; after that nobody is asked for a while.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from aiohttp import ClientError, ClientSession, ClientTimeout
from numpy.typing import NDArray

from ..core.errors import AtollError, ConfigError, DataError, Gone, ProtocolError, Refused
from ..privacy.hazmat.suite import suite_of
from ..privacy.sealed import published, seal
from .batch import Answers
from .doubt import doubt
from .egress import Settings
from .model import Model

PURPOSE = "atoll joint 1"
MOST = 16 << 20  # bytes of an answer
SPARE = 10  # rows that may go up before the share is counted
PAUSE, LONGEST = 1.0, 60.0  # seconds that nobody is asked after a failure; doubled at each further one


class Asked(NamedTuple):
    """What upstream said: its model's name and version, and its answers."""

    model: dict[str, Any]
    answers: dict[str, NDArray[Any]]


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
        self.settings = settings
        self._clock, self._now, self._random = clock, now, random
        self._suite = suite_of(settings.crypto)
        self._roots = _file(settings.roots)
        self._head = Model(_file(settings.head), settings.head) if settings.head else None
        self._token = _file(settings.token_file).decode().strip()
        self._session: ClientSession | None = None
        self._lock = threading.Lock()  # models run in threads
        self._key: tuple[bytes, float] = (b"", 0.0)
        self._quiet, self._pause = -np.inf, PAUSE
        self.counts = dict.fromkeys(("seen", "doubtful", "sent", "answered", "late", "failed", "spared"), 0)

    def doubtful(self, answers: Answers) -> NDArray[np.intp]:
        """Which rows to send up; none where nothing may leave, the share is used up or nobody answers."""
        settings, counts = self.settings, self.counts
        if settings.send == "nothing":
            return np.empty(0, np.intp)
        try:
            found = doubt(answers, settings.measure)
        except DataError:  # a model without classes is sure of what it says
            return np.empty(0, np.intp)
        rows = np.flatnonzero(found > settings.threshold)
        with self._lock:
            counts["seen"] += len(found)
            counts["doubtful"] += len(rows)
            room = int(settings.share * counts["seen"]) + SPARE - counts["sent"]
            if self._clock() < self._quiet:
                room = 0
            rows = rows[np.argsort(-found[rows], kind="stable")[: max(room, 0)]]
            counts["sent"] += len(rows)
            counts["spared"] = counts["doubtful"] - counts["sent"]
        return np.sort(rows)

    async def ask(self, x: NDArray[np.float32]) -> Asked | None:
        """The larger model's answers to these rows, or None where they come too late or not at all."""
        try:
            async with asyncio.timeout(self.settings.limit):
                found = await self._ask(x)
        except TimeoutError:
            self._failed("late", len(x))
            return None
        except (AtollError, ClientError, OSError, ValueError):
            self._failed("failed", len(x))
            await self.close()  # the next connection shows the certificate as it is then
            return None
        with self._lock:
            self._pause = PAUSE
            self.counts["answered"] += len(x)
        return found

    async def close(self) -> None:
        """End the connection; the next ask opens another."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _failed(self, how: str, rows: int) -> None:
        with self._lock:
            self.counts[how] += rows
            self._quiet = self._clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST)

    async def _ask(self, x: NDArray[np.float32]) -> Asked:
        session = self._session = self._session or _session(self.settings, self._token)
        if self._now() > self._key[1]:
            await self._meet(session)
        if self._head is not None:
            (x,) = (await asyncio.to_thread(self._head.run, x)).values()
        rows = {"model": self.settings.model, "shape": x.shape, "rows": np.ascontiguousarray(x).tobytes()}
        body, back = seal(self._key[0], msgspec.msgpack.encode(rows), PURPOSE, self._random, self._suite)
        async with session.post(f"{self.settings.above}/v1/joint", data=body) as answer:
            found = await answer.content.read(MOST)
            while len(found) < MOST and (more := await answer.content.read(MOST - len(found))):
                found += more
            if answer.status == 409:
                self._key = (b"", 0.0)
            if answer.status != 200:
                raise Refused(f"upstream answered with status {answer.status}")
        return unpack(self._suite.unsealed(back, found), len(x))

    async def _meet(self, session: ClientSession) -> None:
        """Learn the upstream's key, which must be signed by a server of this federation."""
        async with session.get(f"{self.settings.above}/v1/key") as answer:
            if answer.status != 200:
                raise Gone(f"upstream has no key: status {answer.status}")
            data = await answer.content.read(MOST)
        public, until, _ = published(data, self._roots, now=self._now())
        self._key = (public, until)


def merged(mine: Answers, rows: NDArray[np.intp], asked: Asked) -> dict[str, NDArray[Any]] | None:
    """The local answers with the larger model's in their rows; None where the two do not answer alike."""
    if asked.answers.keys() != mine.keys():
        return None
    found = {}
    for name, here in mine.items():
        there = asked.answers[name]
        if there.shape != (len(rows), *here.shape[1:]) or there.dtype.kind != here.dtype.kind:
            return None
        found[name] = here.copy()
        found[name][rows] = there
    return found


def pack(model: Mapping[str, Any], answers: Answers) -> bytes:
    """An upstream's answer, before it is sealed: numbers as they lie in memory."""
    parts = {
        name: (v.dtype.str, v.shape, np.ascontiguousarray(v).tobytes())
        for name, v in answers.items()
        if v.dtype.kind in "fiu"
    }
    return msgspec.msgpack.encode({"model": dict(model), "answers": parts})


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    model: dict[str, Any]
    answers: dict[str, tuple[str, tuple[int, ...], bytes]]


def unpack(data: bytes, rows: int) -> Asked:
    """The inverse of `pack`, for so many rows. Raises ProtocolError for anything else."""
    try:
        told = msgspec.msgpack.decode(data, type=_Told)
        found = {}
        for name, (kind, shape, raw) in told.answers.items():
            if np.dtype(kind).kind not in "fiu" or shape[:1] != (rows,):
                raise ValueError
            found[name] = np.frombuffer(raw, np.dtype(kind)).reshape(shape)
    except (msgspec.DecodeError, ValueError, TypeError):
        raise ProtocolError("upstream's answer is none to these rows") from None
    return Asked(told.model, found)


def _session(settings: Settings, token: str) -> ClientSession:
    from aiohttp import TCPConnector

    context: Any = True
    if settings.above.startswith("https://"):
        context = ssl.create_default_context(cafile=settings.ca or settings.roots)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key)
    elif not settings.above.startswith(("http://127.0.0.1:", "http://localhost:", "http://[::1]:")):
        raise ConfigError(f"{settings.above} is in the clear: an upstream on another machine is https://")
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
