"""A gateway: makes the calls that members put at a broker, over HTTPS, and puts the answers there.

It needs no trust and keeps nothing. Members sign their calls and the server its answers (sealed.py);
what is no call of a member's session is not made. A piece that comes twice is one, a call whose
pieces have a gap is ended, and the member makes it anew. Each member has a few calls at a time, each
call a few pieces in memory: more is refused with the reason. Topics and pieces: mqtt.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import AtollError, Gone
from . import atoll_pb2 as pb
from .calls import Answer, Body, Carrier
from .link import NAME, SESSION
from .mqtt import (
    ALIVE,
    LAST,
    PIECE,
    SILENT,
    Broker,
    Line,
    Piece,
    Talk,
    gateway_name,
    headers,
    read,
)

log = logging.getLogger("atoll.gateway")

_NAMES = r"[A-Za-z0-9._-]{1,200}"
_CALLS = re.compile(  # what a member may ask for, and nothing else
    rf"GET /v1/|POST /v1/seal|POST /v1/session|(?:HEAD|PUT) /v1/uploads/{_NAMES}"
    rf"|GET /v1/blobs/{_NAMES}\?from=\d{{1,10}}&have=[0-9a-f,]{{0,1039}}"
    r"|GET /v1/root|POST /v1/(?:enrol|enrol/key|renew)"
)
_UP = frozenset(
    {"atoll-session", "atoll-mode", "atoll-connection", "atoll-open", "atoll-start", "atoll-seal"}
    | {"content-type"}
)
_DOWN = frozenset({"atoll-error", "atoll-reason", "atoll-seal", "atoll-frames", "content-type", "date"})
WAITS = (0.5, 30.0)  # seconds between two tries to reach the broker, growing


@dataclass(frozen=True, slots=True)
class Limits:
    """Calls at a time: of one `member`, and `all`. `done`: calls remembered, so that none is made twice.

    `silent`: seconds until a call whose member says nothing is dropped, `alive`: between two signs of life.
    """

    member: int = 16
    all: int = 2_000
    done: int = 20_000
    silent: float = SILENT
    alive: float = ALIVE


class Gateway:
    """One gateway. `carrier`: to the server. `serve` until `close`; `there`: members find it now."""

    def __init__(self, broker: Broker, name: str, carrier: Carrier, limits: Limits = Limits()) -> None:
        self.name = gateway_name(name)
        self.there = asyncio.Event()
        self.refused = 0  # calls, since it began
        self._broker = broker
        self._carrier = carrier
        self._limits = limits
        self._calls: dict[tuple[str, bytes], _Call] = {}
        self._busy: Counter[str] = Counter()  # calls under way, by member
        self._done: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._line: Line | None = None
        self._closing = asyncio.Event()

    async def serve(self) -> None:
        """Stay at the broker, whatever happens to it."""
        tries = 0
        while not self._closing.is_set():
            gone = asyncio.Event()
            why = await self._stay(gone)
            tries = 1 if gone.is_set() else tries + 1
            if not self._closing.is_set():
                log.warning("%s", why)
                await self._pause(random.uniform(0.0, min(WAITS[1], WAITS[0] * 2 ** min(tries, 10))))
        await self._carrier.close()

    async def close(self) -> None:
        """End all calls and leave the broker."""
        self._closing.set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    async def _stay(self, gone: asyncio.Event) -> str:
        """One connection, to its end; why it ended. `gone` is set if it stood."""
        state = f"atoll/{self.name}/state"
        over = asyncio.Event()
        self._line = line = Line(
            self._broker,
            f"atoll-gateway-{self.name}",
            {f"atoll/{self.name}/up/+/+": False},
            (state, b"", True),
            self._heard,
            lambda _: over.set(),
        )
        waiting = [asyncio.ensure_future(event.wait()) for event in (over, self._closing)]
        life = secrets.token_hex(16).encode()
        beating = asyncio.ensure_future(self._beat(lambda: line.put(state, life, retain=True)))
        try:
            await line.open()
            line.put(state, life, retain=True)
            self.there.set()
            gone.set()
            log.info("gateway %s is at %s", self.name, self._broker.host)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not over.is_set():
                line.put(state, b"", retain=True)
        except Gone as error:
            return str(error)
        finally:
            self.there.clear()
            for task in (*waiting, beating, *(call.task for call in self._calls.values())):
                task.cancel()
            await line.close()
        return line.why

    async def _beat(self, there: Callable[[], None]) -> None:
        """Say again that we are there, whatever others said meanwhile, and in each call that it goes on."""
        while True:
            await asyncio.sleep(self._limits.alive)
            if self.there.is_set():
                there()
            for call in self._calls.values():
                call.talk.alive()

    # -- what comes -----------------------------------------------------------------------------

    def _heard(self, topic: str, message: bytes, retained: bool) -> None:  # noqa: FBT001  line's contract
        match topic.split("/"):
            case ["atoll", self.name, "up", member, link] if NAME.fullmatch(member) and SESSION.fullmatch(
                link
            ):
                piece = None if retained else read(message)
                if piece is not None:
                    self._take(member, link, piece)

    def _take(self, member: str, link: str, piece: pb.Piece) -> None:
        place = f"{member}/{link}"
        if not piece.call:
            for under_way in [call for (at, _), call in self._calls.items() if at == place]:
                under_way.task.cancel()
            return
        key = place, piece.call
        if (call := self._calls.get(key)) is not None:
            call.talk.arrived(piece)
        elif piece.number == 1 and key not in self._done:
            self._begin(member, key, piece)

    def _begin(self, member: str, key: tuple[str, bytes], piece: pb.Piece) -> None:
        line, topic = self._line, f"atoll/{self.name}/down/{key[0]}"

        def put(piece: pb.Piece) -> None:
            if line is not None:
                line.put(topic, piece.SerializeToString())

        no = ""
        if not _CALLS.fullmatch(f"{piece.method} {piece.path}"):
            no = "a gateway makes no such call"
        elif self._busy[member] >= self._limits.member:
            no = f"{member} has {self._busy[member]} calls under way at the gateway: wait for one to end"
        elif len(self._calls) >= self._limits.all:
            no = f"{len(self._calls)} calls are under way at the gateway: try again later"
        self._forget(key)
        if no:
            self.refused += 1
            log.info("%s: %s", member, no)
            put(_refusal(piece.call, no))
            return
        call = self._calls[key] = _Call(piece, put, self._carrier, self._limits.silent)
        self._busy[member] += 1
        call.task.add_done_callback(lambda _: self._ended(member, key))

    def _forget(self, key: tuple[str, bytes]) -> None:
        """Remember that this call was made, and forget the oldest."""
        self._done[key] = None
        while len(self._done) > self._limits.done:
            self._done.popitem(last=False)

    def _ended(self, member: str, key: tuple[str, bytes]) -> None:
        del self._calls[key]
        self._busy[member] -= 1
        if not self._busy[member]:
            del self._busy[member]


class _Call:
    """A call under way, in a task of its own."""

    def __init__(
        self, piece: pb.Piece, put: Callable[[pb.Piece], None], carrier: Carrier, silent: float
    ) -> None:
        self.talk = Talk(piece.call, put, silent)
        self.talk.arrived(piece)
        self._carrier = carrier
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            first = await self.talk.hear()
            told = {h.name: h.value for h in first.headers if h.name in _UP}
            body: Body = first.body if first.end == LAST else self.talk.body(first)
            data = None if first.method in {"GET", "HEAD"} else body
            async with self._carrier.call(first.method, first.path, told, data) as answer:
                kept = {k: v for k, v in answer.headers.items() if k.lower() in _DOWN}
                await self.talk.say(await _short(answer), status=answer.status, headers=headers(kept))
        except asyncio.CancelledError:
            self.talk.broken("the gateway ended the call")
            raise
        except AtollError as error:
            self.talk.broken(str(error))
        except Exception:
            log.exception("a call could not be made")
            self.talk.broken("the gateway failed: see its log")


async def _short(answer: Answer) -> Body:
    """The answer's body: whole where it is known to fit into one piece, which is then all there is to say."""
    length = {name.lower(): value for name, value in answer.headers.items()}.get("content-length", "")
    if answer.status != 204 and not (length.isdigit() and int(length) <= PIECE):
        return answer.body
    return b"".join([data async for data in answer.body])


def _refusal(call: bytes, reason: str) -> pb.Piece:
    """An answer of the gateway's own."""
    said = {"atoll-error": "gone", "atoll-reason": json.dumps(reason)[1:-1]}
    return Piece(call=call, number=1, end=LAST, status=503, headers=headers(said))
