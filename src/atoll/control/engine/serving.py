"""A client's prediction service: the newest signed models, answering where the data are.

    folder/serving/   models accepted so far; served at once at the next start, coordinator or none

A model comes as a letter from the coordinator (maybe through an edge) and a blob. Its manifest must be
signed by a coordinator of this federation and be newer than what is served; anything else is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from ...core.errors import AtollError, CodecError
from ...privacy.keys import open_model
from ...serve.models import Shelf
from ...serve.predict import app
from ..settings import Client, address
from .parcels import read_frames
from .uplink import Uplink

log = logging.getLogger("atoll.client")


class Serving:
    """The service of one client, at `settings.predict`."""

    def __init__(self, settings: Client, uplink: Uplink) -> None:
        self._host, self._port = address(settings.predict, "$.predict")
        self._folder = Path(settings.folder) / "serving"
        self._uplink = uplink
        self._runner: web.AppRunner | None = None
        self._turn = asyncio.Lock()
        self._shelf: Shelf | None = None

    async def start(self) -> None:
        """Serve what was accepted before. Raises StateError where the address cannot be had."""
        shelf = self._shelf = await asyncio.to_thread(Shelf, self._folder, self._opened)
        for name, problem in shelf.problems.items():
            log.warning("model %s is not served: %s", name, problem)
        self._runner = web.AppRunner(app(shelf), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def offered(self, head: Mapping[str, Any]) -> None:
        """Fetch, check and serve a model, beside everything else; what will not do is said and left."""
        async with self._turn:
            try:
                await self._take(head)
            except AtollError as error:
                log.warning("a model was not taken: %s", error)
                self._uplink.send("log", {"level": "warning", "text": f"a model was not taken: {error}"})

    async def _take(self, head: Mapping[str, Any]) -> None:
        assert self._shelf is not None  # noqa: S101  started
        name, version, manifest = head.get("name"), head.get("version"), head.get("manifest")
        if not isinstance(manifest, bytes) or not isinstance(version, int):
            raise CodecError("expected a model's name, version and manifest")
        held = self._shelf.get(str(name))
        if held is not None and held.newest >= version:
            return
        path = await self._uplink.fetch(str(head.get("blob", "")))
        message = await asyncio.to_thread(read_frames, path)
        graph = message.arrays.get("onnx")
        if message.kind != "model" or not isinstance(graph, np.ndarray):
            raise CodecError("expected a message of kind 'model' with an ONNX graph")
        served = await asyncio.to_thread(self._shelf.take, manifest, graph.tobytes())
        self._uplink.send("serving", {"name": served.name, "version": served.version})

    def _opened(self, manifest: bytes, above: int | None) -> Mapping[str, Any]:
        roots = self._uplink.identity.roots
        if above is None:
            return open_model(manifest, roots, now=None)
        return open_model(manifest, roots, now=time.time(), above=above)
