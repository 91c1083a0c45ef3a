"""Predictions where the data are: a small HTTP service over the models of a Shelf.

    POST /v1/predict   {"rows": [[1.0, 2.0]], "model": "name"}     "model" may be left out if there is one
        200  {"predictions": {"label": [1], "probabilities": [[0.1, 0.9]]}, "model": {"name", "version"},
              "ticket": "7f3a..."}
    POST /v1/feedback  {"ticket": "7f3a...", "labels": [1]}        the truth, for models on trial
    GET  /v1/models    what is served
    GET  /healthz      200 once there is a model

With joint inference the answer says which rows a larger model answered, "above": {"model", "rows"}, and in
it the same of a still larger one. A service that is somebody's larger model has more addresses (tier.py).

It listens on this machine only, unless it is given TLS and a token. A request takes one model and keeps
it to its end, so a swap loses none. Models run in threads, small requests that wait together as one batch
(batch.py), and requests beyond what they can take are told to come again.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, StateError
from .above import Above, Question
from .batch import Answers, Batches, together
from .joint import Joint
from .models import Served, Shelf
from .reply import Beyond, merged, pack
from .rows import ROWS, fits, read_rows
from .tier import BODY, Declined, Tier, Unsure

SMALL = 64 << 10  # bytes of a request that may share a run with others
WAITING = 64  # requests that may wait for a thread
LOCAL = ("127.0.0.1", "::1", "localhost")

T = TypeVar("T")
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    rows: msgspec.Raw
    model: str = ""
    ticket: Annotated[str, msgspec.Meta(max_length=200)] = ""


class _Truth(msgspec.Struct, forbid_unknown_fields=True):
    ticket: str
    labels: list[float]
    model: str = ""


class _Waiting(NamedTuple):
    """A request: rows as they came, or a node's sealed ones."""

    ticket: str
    rows: msgspec.Raw | Question


def app(
    shelf: Shelf,
    *,
    token: str = "",
    hosts: Sequence[str] = LOCAL,
    threads: int = 2,
    rows: int = ROWS,
    batch: int = 32,
    joint: Joint | None = None,
    above: Above | None = None,
) -> web.Application:
    """The service. `token`: what callers must bring as a bearer, "" for none. `hosts`: the names callers may
    call it by, so that no web page reaches it under a name of its own. `threads` >= 1: models running at
    once. `rows`: the most of one request. `batch` >= 1: requests that may run as one. `joint`: whom it asks
    about rows it is unsure of. `above`: its keys, where it is the larger model of others.

    Raises ConfigError for a number below 1.
    """
    for name, value in (("threads", threads), ("rows", rows), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{name} is at least 1, got {value}")
    service = _Service(shelf, token, frozenset(hosts), rows, joint, above)
    service.start(threads, batch)
    made = web.Application(middlewares=[service.guard], client_max_size=BODY)
    made.router.add_post("/v1/predict", service.predict)
    made.router.add_post("/v1/feedback", service.feedback)
    made.router.add_get("/v1/models", service.models)
    made.router.add_get("/healthz", service.health)
    for (method, path), call in service.tier.routes().items() if service.tier is not None else ():
        made.router.add_route(method, path, call)
    made.on_cleanup.append(service.close)
    return made


def below(
    shelf: Shelf, above: Above, joint: Joint | None = None, *, threads: int = 2, batch: int = 32
) -> tuple[Tier, Callable[[], Awaitable[None]]]:
    """Only what nodes below ask, for a door that is there already and knows its callers; and what ends it."""
    service = _Service(shelf, "", frozenset(), ROWS, joint, above)
    service.start(threads, batch)
    assert service.tier is not None  # noqa: S101  it has keys
    return service.tier, service.close


async def serve(
    shelf: Shelf,
    host: str = "127.0.0.1",
    port: int = 8470,
    *,
    tls: ssl.SSLContext | None = None,
    token: str = "",
    **more: Any,
) -> web.AppRunner:
    """Listen; `await runner.cleanup()` ends it. `port` 0: any free one, see `runner.addresses`.

    Raises ConfigError for an address that others can reach without TLS and a token, StateError
    where it cannot listen there.
    """
    if host not in LOCAL and not (tls and token):
        raise ConfigError(
            f"{host} can be reached from other machines: give TLS and a token, or use 127.0.0.1"
        )
    runner = web.AppRunner(app(shelf, token=token, hosts=(*LOCAL, host), **more), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError as error:
        await runner.cleanup()
        raise StateError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return runner


class _Service:
    def __init__(
        self,
        shelf: Shelf,
        token: str,
        hosts: frozenset[str],
        rows: int,
        joint: Joint | None,
        above: Above | None,
    ) -> None:
        self._shelf, self._token, self._hosts, self._rows = shelf, token, hosts, rows
        self._joint = joint
        self.tier = None if above is None else Tier(above, joint, self._own, rows)

    def start(self, threads: int, batch: int) -> None:
        """Have threads to run models in."""
        self._batches: Batches[Served, _Waiting, bytes | Unsure] = Batches(self._run, threads, batch)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Host and token first; every refusal is JSON with one sentence and no value of a row."""
        try:
            self._allow(request)
            return await handler(request)
        except Declined as refused:
            return _json({"error": str(refused)}, refused.status)
        except web.HTTPRequestEntityTooLarge:
            return _json({"error": f"a request has at most {BODY} bytes: send fewer rows"}, 413)
        except web.HTTPException as error:
            return _json({"error": error.reason}, error.status)

    def _allow(self, request: web.Request) -> None:
        host = request.host.rpartition(":")[0] if not request.host.endswith("]") else request.host
        if (host or request.host).strip("[]") not in self._hosts and request.host not in self._hosts:
            raise Declined(421, "this service is not called by that name: use 127.0.0.1")
        brought = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._token and not hmac.compare_digest(brought.encode(), self._token.encode()):
            raise Declined(401, "this service wants its token: send Authorization: Bearer ...")

    async def predict(self, request: web.Request) -> web.Response:
        asked = await self._read(
            request, _Asked, 'expected {"rows": [[...], ...]}, and "model" where there are several'
        )
        answer = await self._answer(
            asked.model, _Waiting(asked.ticket, asked.rows), memoryview(asked.rows).nbytes
        )
        if isinstance(answer, Unsure):
            answer = await self._settled(answer)
        return web.Response(body=answer, content_type="application/json")

    async def _own(self, question: Question, size: int) -> bytes | Unsure:
        """What the models here say to a node's sealed rows."""
        found: bytes | Unsure = await self._answer(question.model, _Waiting("", question), size)
        return found

    async def _answer(self, name: str, asked: _Waiting, size: int) -> Any:
        asked = asked._replace(ticket=asked.ticket or secrets.token_hex(8))
        served = self._shelf.pick(name, asked.ticket)  # the one place where a request is given its model
        if served is None:
            raise self._unknown(name)
        if self._batches.waiting >= WAITING:
            raise Declined(503, "too many requests at once: come again")
        try:
            return await self._batches.answer(served, asked, alone=size > SMALL)
        except DataError as error:
            raise Declined(400, str(error)) from None
        except StateError as error:
            raise Declined(500, str(error)) from None

    async def _settled(self, unsure: Unsure) -> bytes:
        """The answer with what the larger model says, if it says so in time."""
        assert self._joint is not None  # noqa: S101  who is unsure has somebody to ask
        model, ticket, x, found, rows = unsure
        asked = await self._joint.ask(x[rows])
        both = None if asked is None else merged(found, rows, asked)
        if asked is None or both is None:
            return await asyncio.to_thread(_reply, model, ticket, found)
        return await asyncio.to_thread(_reply, model, ticket, both, asked.of(rows))

    async def feedback(self, request: web.Request) -> web.Response:
        """The labels of rows that were asked before; they count where there is a model on trial."""
        told = await self._read(request, _Truth, 'expected {"ticket": "...", "labels": [...]}')
        return _json({"counted": self._shelf.feedback(told.model, told.ticket, told.labels)}, 200)

    async def _read(self, request: web.Request, form: type[T], expected: str) -> T:
        if request.content_type != "application/json":
            raise Declined(415, "send rows as application/json")
        try:
            return msgspec.json.decode(await request.read(), type=form)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Declined(400, expected) from None

    def _unknown(self, name: str) -> Declined:
        names = ", ".join(sorted(one.name for one in self._shelf))
        if not names:
            return Declined(503, "no model has come yet: finish a run, or wait for the coordinator's")
        return Declined(404, f"say which model: {names}" if not name else f"no such model: there is {names}")

    async def models(self, request: web.Request) -> web.Response:
        listed = [
            {**_model(s), "row": s.model.row, "answers": s.model.answers}
            | ({"variant": "int8"} if s.light else {})
            | ({"classes": s.model.classes} if s.model.classes else {})
            for s in self._shelf
        ]
        more = {} if self._joint is None else {"joint": self._joint.counts}
        below = {} if self.tier is None else {"below": self.tier.counts}
        return _json({"models": listed, "problems": self._shelf.problems, **more, **below}, 200)

    async def health(self, request: web.Request) -> web.Response:
        ready = any(True for _ in self._shelf)
        return _json({"ready": ready}, 200 if ready else 503)

    async def close(self, _app: web.Application | None = None) -> None:
        self._batches.close()
        if self._joint is not None:
            await self._joint.close()

    def _run(self, served: Served, asked: list[_Waiting]) -> list[bytes | Unsure | Exception]:
        """Each request's answer, or why there is none; a bad one is nobody else's affair."""
        replies: list[Any] = [_rows(one.rows, served, self._rows) for one in asked]
        places = [at for at, x in enumerate(replies) if not isinstance(x, DataError)]
        xs = [replies[at] for at in places]
        for at, x, found in zip(places, xs, together(served.model, xs), strict=True):
            replies[at] = self._said(served, asked[at], x, found)
        return replies

    def _said(
        self, served: Served, asked: _Waiting, x: NDArray[np.float32], found: Answers | StateError
    ) -> bytes | Unsure | StateError:
        """A request's answer; the champion's, where a candidate broke on it."""
        if isinstance(found, StateError):
            try:
                served, found = self._shelf.answer(served, x)
            except StateError as error:
                return error
        self._shelf.seen(served, asked.ticket, x)
        question = asked.rows if isinstance(asked.rows, Question) else None
        if self._joint is not None and (question is None or question.on):
            rows = self._joint.doubtful(found)
            if len(rows):
                return Unsure(_model(served), asked.ticket, x, found, rows)
        if question is not None:
            return question.sealed(pack(_model(served), found))
        return _reply(_model(served), asked.ticket, found)


def _rows(asked: msgspec.Raw | Question, served: Served, most: int) -> NDArray[np.float32] | DataError:
    row = served.model.row
    if isinstance(asked, Question):
        return asked.x if fits(asked.x.shape[1:], row) else DataError(f"expected rows of shape {list(row)}")
    try:
        return read_rows(asked, row, most)
    except DataError as error:
        return error


def _reply(model: dict[str, Any], ticket: str, found: Answers, above: Beyond | None = None) -> bytes:
    told: dict[str, Any] = {
        "predictions": {name: values.tolist() for name, values in found.items()},
        "model": model,
        "ticket": ticket,
    }
    return msgspec.json.encode(told if above is None else {**told, "above": above})


def _json(body: dict[str, Any], status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _model(served: Served) -> dict[str, Any]:
    """Who answered; `own` where it is this node's own model, made of that version."""
    found: dict[str, Any] = {"name": served.name, "version": served.version}
    return {**found, "own": served.own} if served.own else found
