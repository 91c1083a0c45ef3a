"""The REST API: each route a verb of desk.py, behind the guard and its policy.

Answers are JSON. An error is {"error": {"kind", "message"}}: the kind is the error's name, the message
a sentence. What is not there, or belongs to somebody else, is 404. A number that is not finite is null.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from ...core import errors
from ..store import Store
from . import routes
from .admin import holder
from .asked import Plain
from .auth import Caller, bearer
from .guard import Guard, Limits
from .office import Office

STATUS: tuple[tuple[type[errors.AtollError], int], ...] = (
    (errors.ConfigError, 422),
    (errors.DataError, 422),
    (errors.MisuseError, 400),
    (errors.PrivacyError, 403),
    (errors.Refused, 403),
    (errors.StateError, 503),
)


TOPICS = (
    routes.public,
    routes.federation,
    routes.runs,
    routes.nodes,
    routes.models,
    routes.rollouts,
    routes.records,
)


def guarded(
    office: Office, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
) -> Guard:
    """The application to serve; its `app` is the one below. `clock`: monotonic, for rates."""
    app = api(office)

    async def who(authorization: str | None) -> Caller | None:
        def look(store: Store) -> Caller | None:
            return bearer(authorization, office.fingerprint, holder(store, office.clock()))

        return await office.ask(look)

    return Guard(
        app,
        lambda: app.routes,
        who,
        lambda: office.hosts,
        clock,
        limits=limits or Limits(),
        close=office.close,
    )


def api(office: Office) -> FastAPI:
    """All routes, without the guard: serve `guarded` instead."""
    app = FastAPI(
        title="Atoll",
        version=version("atoll-fl"),
        openapi_url=None,  # served below, so that it stands in the policy
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        default_response_class=Plain,
        redirect_slashes=False,
    )
    _errors(app)
    for topic in TOPICS:
        topic(app, office)
    return app


def _errors(app: FastAPI) -> None:
    def answer(status: int, kind: str, message: str) -> Response:
        return Plain({"error": {"kind": kind, "message": message}}, status)

    async def ours(_request: Request, error: Exception) -> Response:
        status = next((s for kind, s in STATUS if isinstance(error, kind)), 500)
        return answer(status, type(error).__name__, str(error))

    async def http(_request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return answer(error.status_code, "MisuseError", str(error.detail))

    async def invalid(_request: Request, error: Exception) -> Response:
        """Which field is wrong, never what stood in it."""
        first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": ""}
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(422, "ConfigError", f"$.{where[:200]}: {first['msg']}")

    async def broken(_request: Request, _error: Exception) -> Response:
        return answer(500, "AtollError", "the coordinator failed on this request: its own log says why")

    app.add_exception_handler(errors.AtollError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, broken)
