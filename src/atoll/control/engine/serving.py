"""A client's prediction service: signed models, rolled out as ordered, answering where the data are.

    folder/serving/   models accepted so far; served at once at the next start, coordinator or none

Where `settings.int8` names a data set, each is made 8-bit integers in the workplace, calibrated on its rows,
and served so if hardly an answer changes; until then, and else, it is served as it came. What the rows leave
in such a variant is not kept on disk.

A model comes as a letter from the coordinator (maybe through an edge) and a blob. Its manifest must be
signed by a coordinator of this federation and be newer than what is served; anything else is refused. What
becomes of each version goes up as a letter of figures, and again whenever there is a new connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from aiohttp import web

from ...core.errors import AtollError, CodecError
from ...privacy.keys import Identity, open_model
from ...privacy.vault import Vault
from ...serve.models import Shelf
from ...serve.predict import app
from ...serve.rollout import Move, told
from ..settings import Client, answers_at
from .joint import asks
from .parcels import read_frames
from .watch import Watch
from .workplace import Workplace

log = logging.getLogger("atoll.client")
TELL = 30.0  # seconds between two letters about a model on trial


class Line(Protocol):
    """What it needs of its client's uplink."""

    @property
    def identity(self) -> Identity:
        """Who we are, with the newest certificate."""

    def send(self, kind: str, head: Mapping[str, Any]) -> None:
        """A letter to the parent."""

    def beside(self, job: Coroutine[Any, Any, None]) -> None:
        """Run it beside everything else."""

    async def fetch(self, blob: str) -> Path:
        """A blob's file."""


class Serving:
    """The service of one client, at `settings.predict`. `workplace`: None where nothing is made integers."""

    def __init__(self, settings: Client, uplink: Line, workplace: Workplace | None, vault: Vault) -> None:
        self._int8, self._workplace, self._vault = settings.int8, workplace, vault
        self._joint, self._join = settings.joint, settings.join
        self._quiet = settings.quiet
        self._refused: set[str] = set()  # models that lose too much as integers
        self._host, self._port = answers_at(settings)
        self._folder = Path(settings.folder) / "serving"
        self._uplink = uplink
        self._runner: web.AppRunner | None = None
        self._sites: list[web.BaseSite] = []
        self._turn = asyncio.Lock()
        self._shelf: Shelf | None = None
        self._telling: asyncio.Task[None] | None = None
        self.watch: Watch | None = None

    async def start(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Serve what was accepted before. `sockets`: that listen already; a process that has them lets nobody
        keep a connection without asking. Raises StateError where the address cannot be had.
        """
        shelf = self._shelf = await asyncio.to_thread(Shelf, self._folder, self._opened)
        loop = asyncio.get_running_loop()
        shelf.moved.append(lambda *told: soon(loop, self._moved, *told))
        for name, problem in shelf.problems.items():
            log.warning("model %s: %s", name, problem)
        joint = None
        if self._joint.send != "nothing":
            joint = asks(self._joint, self._uplink.identity, self._join)
        more: dict[str, Any] = {"keepalive_timeout": self._quiet} if sockets else {}
        self._runner = web.AppRunner(app(shelf, joint=joint), access_log=None, shutdown_timeout=1.0, **more)
        await self._runner.setup()
        await self.listen(sockets)
        self._telling = loop.create_task(self._tell())
        for served in shelf:
            self._uplink.beside(self._lighten(served.name))

    async def listen(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Take connections, from these sockets or at its address."""
        assert self._runner is not None  # noqa: S101  started
        self._sites = [web.SockSite(self._runner, one.dup()) for one in sockets]
        for site in self._sites or [web.TCPSite(self._runner, self._host, self._port)]:
            await site.start()

    async def deaf(self) -> None:
        """Take no connections for a while; those that wait are left to who has the sockets."""
        for site in self._sites:
            await site.stop()
        self._sites = []

    @property
    def requests(self) -> int:
        """How many came so far."""
        server = None if self._runner is None else self._runner.server
        return 0 if server is None else server.requests_count

    @property
    def busy(self) -> bool:
        """Whether somebody is connected, a model is on its way or on trial, or one is being renewed."""
        server = None if self._runner is None else self._runner.server
        trials = (self.shelf.line(served.name) for served in self.shelf)
        return (
            bool(server is not None and server.connections)
            or self._turn.locked()
            or any(line is not None and line.candidate is not None for line in trials)
            or (self.watch is not None and self.watch.renewing)
        )

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        if self.watch is not None:
            await self.watch.stop()
        if self._telling is not None:
            self._telling.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._shelf is not None:
            await asyncio.to_thread(self._shelf.close)

    def report(self) -> None:
        """Say how every model stands, to a parent that may not know."""
        for served in self._shelf or ():
            self._say(served.name, {})
        if self.watch is not None:
            self.watch.report()

    async def _tell(self) -> None:
        """Say now and then how far those on trial are."""
        while True:
            await asyncio.sleep(TELL)
            for served in self._shelf or ():
                line = None if self._shelf is None else self._shelf.line(served.name)
                if line is not None and line.candidate is not None:
                    self._say(served.name, line.candidate.seen.figures())

    def _moved(self, name: str, move: Move, figures: Mapping[str, float]) -> None:
        level = log.warning if move.stage == "back" else log.info
        level("model %s version %d: %s %s", name, move.version, move.stage, move.reason)
        self._say(name, figures)

    def _say(self, name: str, figures: Mapping[str, float]) -> None:
        line = None if self._shelf is None else self._shelf.line(name)
        if line is not None:
            self._uplink.send("serving", {"name": name, **told(line), "figures": dict(figures)})

    async def offered(self, head: Mapping[str, Any]) -> None:
        """Fetch, check and roll out a model, beside everything else; what will not do is said and left."""
        async with self._turn:
            try:
                await self._take(head)
                await self._base(head)
            except AtollError as error:
                log.warning("a model was not taken: %s", error)
                self._uplink.send("log", {"level": "warning", "text": f"a model was not taken: {error}"})

    async def _take(self, head: Mapping[str, Any]) -> None:
        shelf = self._shelf
        assert shelf is not None  # noqa: S101  started
        name, version, manifest = head.get("name"), head.get("version"), head.get("manifest")
        if not isinstance(manifest, bytes) or not isinstance(version, int):
            raise CodecError("expected a model's name, version and manifest")
        nodes, number = head.get("nodes"), head.get("order")
        if isinstance(nodes, list) and self._uplink.identity.member.name not in nodes:
            return  # others are first
        line = shelf.line(str(name))
        if line is not None and head.get("slot") == "trial" and line.newest > version:
            return  # an edge remembers it, and a newer one has come for all
        if line is not None and (line.newest >= version if number is None else line.number >= number):
            return
        data = None
        if not await asyncio.to_thread(shelf.holds, manifest):
            path = await self._uplink.fetch(str(head.get("blob", "")))
            message = await asyncio.to_thread(read_frames, path)
            graph = message.arrays.get("onnx")
            if message.kind != "model" or not isinstance(graph, np.ndarray):
                raise CodecError("expected a message of kind 'model' with an ONNX graph")
            data = graph.tobytes()
        served = await asyncio.to_thread(shelf.take, manifest, data)
        self._uplink.beside(self._lighten(served.name))

    async def _lighten(self, name: str) -> None:
        """Serve the models of a name as integers, where that is wanted and they lose little."""
        shelf = self._shelf
        for sha256, path in shelf.heavy(name).items() if shelf is not None and self._int8 else ():
            if sha256 in self._refused:
                continue
            made = self._folder.parent / f".{sha256[:16]}.int8"
            assert self._workplace is not None  # noqa: S101  integers are wanted
            try:
                await self._workplace.lighten(path, made, self._int8)
                data = await asyncio.to_thread(self._vault.read, made)
                if await asyncio.to_thread(shelf.lighten, name, sha256, data):  # type: ignore[union-attr]
                    log.info("model %s is served in integers", name)
            except AtollError as error:
                self._refused.add(sha256)
                log.warning("model %s is served as it came: %s", name, error)
            finally:
                made.unlink(missing_ok=True)

    async def _base(self, head: Mapping[str, Any]) -> None:
        """Fetch what the model that serves can be fine-tuned from, unless it is here."""
        name, version, blob = str(head.get("name")), head.get("version"), head.get("tune")
        line = self.shelf.line(name)
        if self.watch is None or not blob or line is None or line.champion != version:
            return
        if self.watch.lacks(name, version):
            await asyncio.to_thread(self.watch.based, name, version, await self._uplink.fetch(str(blob)))

    @property
    def shelf(self) -> Shelf:
        """What it serves, once it has started."""
        assert self._shelf is not None  # noqa: S101  started
        return self._shelf

    def _opened(self, manifest: bytes, above: int | None) -> Mapping[str, Any]:
        roots = self._uplink.identity.roots
        if above is None:
            return open_model(manifest, roots, now=None)
        return open_model(manifest, roots, now=time.time(), above=above)


def soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *values: Any) -> None:
    """Call it in the loop's thread, from any other."""
    with suppress(RuntimeError):  # it is closed: the next connection says how things stand
        loop.call_soon_threadsafe(call, *values)
