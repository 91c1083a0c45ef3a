"""Predictions where the data are: a small HTTP service over the models of a Shelf.

    POST /v1/predict   {"rows": [[1.0, 2.0]], "model": "name"}     "model" may be left out if there is one
        200  {"predictions": {"label": [1], "probabilities": [[0.1, 0.9]]}, "model": {"name", "version"}}
    GET  /v1/models    what is served
    GET  /healthz      200 once there is a model

With joint inference the answer says which rows a larger model answered, "above": {"model", "rows"}, and a
service that is somebody's larger model has two addresses more (above.py).

It listens on this machine only, unless it is given TLS and a token. A request takes one model and keeps
it to its end, so a swap loses none. Models run in threads, small requests that wait together as one batch
(batch.py), and requests beyond what they can take are told to come again.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, ProtocolError, StateError
from .above import Above, Question
from .batch import Answers, Batches, together
from .joint import Asked, Joint, merged, pack
from .models import Served, Shelf
from .rows import ROWS, fits, read_rows

BODY = 4 << 20  # bytes of a request
SMALL = 64 << 10  # bytes of a request that may share a run with others
WAITING = 64  # requests that may wait for a thread
LOCAL = ("127.0.0.1", "::1", "localhost")

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Seen: TypeAlias = Callable[[Served, NDArray[np.float32], Answers], None]


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    rows: msgspec.Raw
    model: str = ""


class _Unsure(NamedTuple):
    """Answers of which a larger model is to be asked about some `rows`."""

    x: NDArray[np.float32]
    found: Answers
    rows: NDArray[np.intp]


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def app(
    shelf: Shelf,
    *,
    token: str = "",
    hosts: Sequence[str] = LOCAL,
    threads: int = 2,
    rows: int = ROWS,
    batch: int = 32,
    seen: Seen | None = None,
    joint: Joint | None = None,
    above: Above | None = None,
) -> web.Application:
    """The service. `token`: what callers must bring as a bearer, "" for none. `hosts`: the names callers may
    call it by, so that no web page reaches it under a name of its own. `threads` >= 1: models running at
    once. `rows`: the most of one request. `batch` >= 1: requests that may run as one. `seen(served, x,
    answers)`: told of each request that was answered, in the thread that ran it; it must not raise. `joint`:
    whom it asks about rows it is unsure of. `above`: its keys, where it is the larger model of others.

    Raises ConfigError for a number below 1.
    """
    for name, value in (("threads", threads), ("rows", rows), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{name} is at least 1, got {value}")
    service = _Service(shelf, token, frozenset(hosts), rows, seen, joint, above)
    service.start(threads, batch)
    made = web.Application(middlewares=[service.guard], client_max_size=BODY)
    made.router.add_post("/v1/predict", service.predict)
    made.router.add_get("/v1/models", service.models)
    made.router.add_get("/healthz", service.health)
    if above is not None:
        made.router.add_get("/v1/key", service.key)
        made.router.add_post("/v1/joint", service.answer)
    made.on_cleanup.append(service.close)
    return made


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
        seen: Seen | None,
        joint: Joint | None,
        above: Above | None,
    ) -> None:
        self._shelf, self._token, self._hosts, self._rows, self._seen = shelf, token, hosts, rows, seen
        self._joint, self._above = joint, above

    def start(self, threads: int, batch: int) -> None:
        """Have threads to run models in."""
        self._batches: Batches[Served, msgspec.Raw | Question, bytes | _Unsure] = Batches(
            self._run, threads, batch
        )

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Host and token first; every refusal is JSON with one sentence and no value of a row."""
        try:
            self._allow(request)
            return await handler(request)
        except _Refused as refused:
            return _json({"error": str(refused)}, refused.status)
        except web.HTTPRequestEntityTooLarge:
            return _json({"error": f"a request has at most {BODY} bytes: send fewer rows"}, 413)
        except web.HTTPException as error:
            return _json({"error": error.reason}, error.status)

    def _allow(self, request: web.Request) -> None:
        host = request.host.rpartition(":")[0] if not request.host.endswith("]") else request.host
        if (host or request.host).strip("[]") not in self._hosts and request.host not in self._hosts:
            raise _Refused(421, "this service is not called by that name: use 127.0.0.1")
        brought = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._token and not hmac.compare_digest(brought.encode(), self._token.encode()):
            raise _Refused(401, "this service wants its token: send Authorization: Bearer ...")

    async def predict(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise _Refused(415, "send rows as application/json")
        body = await request.read()
        try:
            asked = msgspec.json.decode(body, type=_Asked)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _Refused(
                400, 'expected {"rows": [[...], ...]}, and "model" where there are several'
            ) from None
        served = self._pick(asked.model)
        answer = await self._answer(served, asked.rows, len(body))
        if isinstance(answer, _Unsure):
            answer = await self._settled(served, answer)
        return web.Response(body=answer, content_type="application/json")

    async def key(self, request: web.Request) -> web.Response:
        assert self._above is not None  # noqa: S101  there is a route
        return web.Response(body=self._above.key(), content_type="application/json")

    async def answer(self, request: web.Request) -> web.Response:
        """A node's sealed rows."""
        assert self._above is not None  # noqa: S101
        body = await request.read()
        try:
            question = self._above.read(body, self._rows)
        except ProtocolError as error:
            raise _Refused(409, str(error)) from None
        except DataError as error:
            raise _Refused(400, str(error)) from None
        answer = await self._answer(self._pick(question.model), question, len(body))
        return web.Response(body=answer, content_type="application/octet-stream")

    def _pick(self, name: str) -> Served:
        """The one place where a request is given its model."""
        served = self._shelf.get(name)
        if served is None:
            raise self._unknown(name)
        return served

    async def _answer(self, served: Served, asked: msgspec.Raw | Question, size: int) -> Any:
        if self._batches.waiting >= WAITING:
            raise _Refused(503, "too many requests at once: come again")
        try:
            return await self._batches.answer(served, asked, alone=size > SMALL)
        except DataError as error:
            raise _Refused(400, str(error)) from None
        except StateError as error:
            raise _Refused(500, str(error)) from None

    async def _settled(self, served: Served, unsure: _Unsure) -> bytes:
        """The answer with what the larger model says, if it says so in time."""
        assert self._joint is not None  # noqa: S101  who is unsure has somebody to ask
        asked = await self._joint.ask(unsure.x[unsure.rows])
        both = None if asked is None else merged(unsure.found, unsure.rows, asked)
        if both is None:
            return await asyncio.to_thread(_reply, served, unsure.found)
        return await asyncio.to_thread(_reply, served, both, asked, unsure.rows)

    def _unknown(self, name: str) -> _Refused:
        names = ", ".join(sorted(one.name for one in self._shelf))
        if not names:
            return _Refused(503, "no model has come yet: finish a run, or wait for the coordinator's")
        return _Refused(404, f"say which model: {names}" if not name else f"no such model: there is {names}")

    async def models(self, request: web.Request) -> web.Response:
        listed = [
            {"name": s.name, "version": s.version, "row": s.model.row, "answers": s.model.answers}
            for s in self._shelf
        ]
        more = {} if self._joint is None else {"joint": self._joint.counts}
        return _json({"models": listed, "problems": self._shelf.problems, **more}, 200)

    async def health(self, request: web.Request) -> web.Response:
        ready = any(True for _ in self._shelf)
        return _json({"ready": ready}, 200 if ready else 503)

    async def close(self, _app: web.Application) -> None:
        self._batches.close()
        if self._joint is not None:
            await self._joint.close()

    def _run(self, served: Served, asked: list[msgspec.Raw | Question]) -> list[bytes | _Unsure | Exception]:
        """Each request's answer, or why there is none; a bad one is nobody else's affair."""
        replies: list[Any] = [_rows(one, served, self._rows) for one in asked]
        places = [at for at, x in enumerate(replies) if not isinstance(x, DataError)]
        xs = [replies[at] for at in places]
        for at, x, found in zip(places, xs, together(served.model, xs), strict=True):
            replies[at] = found if isinstance(found, StateError) else self._said(served, asked[at], x, found)
        return replies

    def _said(
        self, served: Served, asked: msgspec.Raw | Question, x: NDArray[np.float32], found: Answers
    ) -> bytes | _Unsure:
        if self._seen is not None:
            self._seen(served, x, found)
        if isinstance(asked, Question):
            return asked.sealed(pack({"name": served.name, "version": served.version}, found))
        rows = self._joint.doubtful(found) if self._joint is not None else ()
        return _Unsure(x, found, rows) if len(rows) else _reply(served, found)  # type: ignore[arg-type]


def _rows(asked: msgspec.Raw | Question, served: Served, most: int) -> NDArray[np.float32] | DataError:
    row = served.model.row
    if isinstance(asked, Question):
        return asked.x if fits(asked.x.shape[1:], row) else DataError(f"expected rows of shape {list(row)}")
    try:
        return read_rows(asked, row, most)
    except DataError as error:
        return error


def _reply(
    served: Served, found: Answers, asked: Asked | None = None, rows: NDArray[np.intp] | None = None
) -> bytes:
    told: dict[str, Any] = {
        "predictions": {name: values.tolist() for name, values in found.items()},
        "model": {"name": served.name, "version": served.version},
    }
    if asked is not None and rows is not None:
        told["above"] = {"model": asked.model, "rows": rows.tolist()}
    return msgspec.json.encode(told)


def _json(body: dict[str, Any], status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
