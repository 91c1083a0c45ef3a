"""An edge between devices and the cloud: it answers questions of its children, and asks about some itself.

    GET  /v1/key        the key to seal rows for, signed by this server's certificate (above.py)
    POST /v1/joint      rows or features sealed for it; the answer is sealed for who asked
    GET  /v1/top/key    the coordinator's key, and
    POST /v1/top/joint  rows sealed for that: carried up and back, and not read here

Rows that its own model is unsure of, or that it has no model for, go on to who is above (joint.py) if three
allow it: the node, whose question says so under the seal; this server's settings; and the time that the node
waits, of which a part is kept for the way back. Else its own answer stands. A server that nobody is above is
the top itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, Gone, ProtocolError, Refused
from .above import Above, Question
from .batch import Answers
from .joint import TOP, Joint
from .reply import merged, pack

BODY = 4 << 20  # bytes of a question
CARRYING = 64  # questions on their way through here at once
SHARE = 0.8  # of the time that is left, for who is above


class Declined(Exception):  # noqa: N818
    """A request is not answered. `status`: of HTTP."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Unsure(NamedTuple):
    """A model's answers to x, of which a larger one is to be asked about some `rows`."""

    model: dict[str, Any]
    ticket: str
    x: NDArray[np.float32]
    found: Answers
    rows: NDArray[np.intp]


class Tier:
    """`find(question, size)`: this server's own answer, sealed or Unsure; raises Declined. `rows`: the most
    of one question. `clock`: monotonic seconds. `counts`: rows asked for, of these answered by a model here,
    passed on and answered above; questions carried for the coordinator.
    """

    def __init__(
        self,
        above: Above,
        joint: Joint | None,
        find: Callable[[Question, int], Awaitable[bytes | Unsure]],
        rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._above, self._joint, self._find, self._rows, self._clock = above, joint, find, rows, clock
        self._carrying = 0
        self.counts = dict.fromkeys(("asked", "answered", "passed", "carried"), 0)

    def routes(self) -> dict[tuple[str, str], Callable[[web.Request], Awaitable[web.Response]]]:
        """What it answers, by method and path; a handler may raise Declined."""
        top = self._joint is None or self._joint.settings.send == "nothing"
        return {
            ("GET", "/v1/key"): self.key,
            ("POST", "/v1/joint"): self.answer,
            ("GET", f"{TOP}/key"): self.key if top else self.carried,
            ("POST", f"{TOP}/joint"): self.answer if top else self.carried,
        }

    async def key(self, request: web.Request) -> web.Response:
        """This server's."""
        try:
            return web.Response(body=self._above.key(), content_type="application/json")
        except ConfigError:
            raise Declined(503, "this server has no identity at the moment: come again") from None

    async def answer(self, request: web.Request) -> web.Response:
        """A node's sealed rows."""
        body, came = await _body(request), self._clock()
        try:
            question = self._above.read(body, self._rows)
        except ProtocolError as error:
            raise Declined(409, str(error)) from None
        except DataError as error:
            raise Declined(400, str(error)) from None
        self.counts["asked"] += len(question.x)
        try:
            found = await self._find(question, len(body))
        except Declined:
            passed = await self._beyond(question, came)
            if passed is None:
                raise
            return _sealed(passed)
        if isinstance(found, Unsure):
            found = await self._settled(question, found, came)
        else:
            self.counts["answered"] += len(question.x)
        return _sealed(found)

    async def carried(self, request: web.Request) -> web.Response:
        """What is the coordinator's to read, there and back."""
        assert self._joint is not None  # noqa: S101  there is a route
        post = request.method == "POST"
        body = await _body(request) if post else None
        if self._carrying >= CARRYING:
            raise Declined(503, "too many requests at once: come again")
        self._carrying += 1
        try:
            status, found = await self._joint.carry(request.path.removeprefix(TOP), body)
        except Refused as error:
            raise Declined(403, str(error)) from None
        except Gone as error:
            raise Declined(503, str(error)) from None
        finally:
            self._carrying -= 1
        if status != 200:
            raise Declined(status if status == 409 else 502, f"above, the answer was status {status}")
        self.counts["carried"] += post
        return _sealed(found)

    async def _settled(self, question: Question, mine: Unsure, came: float) -> bytes:
        """This model's answer, with what is said above where that comes in time."""
        assert self._joint is not None  # noqa: S101  who is unsure has somebody to ask
        rows, found = mine.rows, mine.found
        asked = await self._joint.ask(mine.x[rows], **self._told(question, came))
        both = None if asked is None else merged(found, rows, asked)
        passed = 0 if both is None else len(rows)
        self.counts["passed"] += passed
        self.counts["answered"] += len(mine.x) - passed
        beyond = asked.of(rows) if asked is not None and both is not None else None
        text = await asyncio.to_thread(pack, mine.model, both or found, beyond)
        return question.sealed(text)

    async def _beyond(self, question: Question, came: float) -> bytes | None:
        """What is said above of rows that no model here answers."""
        if not (question.on and self._joint is not None and self._joint.spares(len(question.x))):
            return None
        asked = await self._joint.ask(question.x, **self._told(question, came))
        if asked is None:
            return None
        self.counts["passed"] += len(question.x)
        return question.sealed(await asyncio.to_thread(pack, asked.model, asked.answers, asked.beyond))

    def _told(self, question: Question, came: float) -> dict[str, Any]:
        left = SHARE * max(question.left - (self._clock() - came), 0.0)
        return {"model": question.model, "features": question.features, "left": left}


async def _body(request: web.Request) -> bytes:
    """The question, whatever else this door takes."""
    found = bytearray()
    while part := await request.content.readany():
        found += part
        if len(found) > BODY:
            raise Declined(413, f"a question has at most {BODY} bytes: send fewer rows")
    return bytes(found)


def _sealed(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/octet-stream")
