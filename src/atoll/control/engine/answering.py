"""A server's own models answer rows that its children are unsure of, at the door where it knows its members.

    coordinator.toml, edge.toml     [models] digits = "medium.onnx"     followed as the file changes
    edge.toml                       [joint]                             whom it asks, and what may leave it

Clients and edges of the federation are answered, by their certificates; what they ask is serve/tier.py's. An
edge without [joint] passes nothing on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from ...core.errors import ConfigError, StateError
from ...privacy.keys import Current, Member
from ...serve.above import Above
from ...serve.models import Shelf
from ...serve.predict import below
from ...serve.service import follow
from ...serve.tier import Declined
from ..settings import Edge, Server
from .host import JOINT
from .joint import asks

if TYPE_CHECKING:
    from ...transport.https import Extra, Handler


class Answering:
    """`current`: who this server is; `out(member)`: whether it was revoked."""

    def __init__(self, settings: Server, current: Current, out: Callable[[Member], bool]) -> None:
        self._out = out
        self._files = {name: Path(path) for name, path in settings.models.items()}
        self._shelf = Shelf()
        joint = None
        if isinstance(settings, Edge) and settings.joint.send != "nothing":
            joint = asks(settings.joint, current(), settings.join)
        self._joint = joint
        self._tier, self._close = below(self._shelf, Above(lambda: (current().key, current().chain)), joint)
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what it answers by. Raises ConfigError for a file that is no model."""
        for name, path in self._files.items():
            try:
                data = await asyncio.to_thread(path.read_bytes)
                await asyncio.to_thread(self._shelf.put, name, 1, data)
            except (OSError, StateError) as error:
                raise ConfigError(f"{path} cannot be served: {error}", f"$.models.{name}") from None
        self._following = asyncio.get_running_loop().create_task(follow(self._shelf, self._files))

    def routes(self) -> Extra:
        """For the door of members."""
        return {way: self._members_only(call) for way, call in self._tier.routes().items()}

    def counts(self) -> dict[str, int]:
        """Rows so far, and questions that were carried."""
        up: Mapping[str, int] = {} if self._joint is None else self._joint.counts
        return {name: self._tier.counts.get(name, up.get(name, 0)) for name in JOINT}

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self._following is not None:
            self._following.cancel()
        await self._close()
        await asyncio.to_thread(self._shelf.close)

    def _members_only(self, call: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
        async def answer(request: web.Request, member: Member | None) -> web.StreamResponse:
            if member is None or member.role not in ("client", "edge") or self._out(member):
                return _said(403, "clients and edges of this federation are answered: enrol with a token")
            try:
                return await call(request)
            except Declined as declined:
                return _said(declined.status, str(declined))

        return answer


def _said(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
