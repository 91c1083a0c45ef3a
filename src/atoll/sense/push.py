"""Readings over HTTP: POST /readings with a token, one reading or a list of them as JSON; or POST /labels.

    200   they are on disk (bad ones among them set aside: GET /readings says how many)
    401   no such token                       413   more than 1 MiB
    503   the queue is full or the disk is: nothing was kept, send it again; Retry-After says when

On this machine only by default; from others by TLS, since readings and tokens are in it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, StateError
from .intake import Feed
from .reading import LONGEST, parse
from .source import Push

if TYPE_CHECKING:
    from aiohttp import web

_RETRY = {"Retry-After": "1"}


def tokens(text: str) -> list[tuple[str, str]]:
    """(device or "" for any, token) of each line of a token file. Raises ConfigError where there is none."""
    found = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not found or any(len(words) > 2 or len(words[-1]) < 16 for words in found):
        raise ConfigError('a token file has lines "TOKEN" or "DEVICE TOKEN", a token at least 16 characters')
    return [("" if len(words) == 1 else words[0], words[-1]) for words in found]


def app(settings: Push, known: list[tuple[str, str]], feed: Feed) -> web.Application:
    """The service, as an aiohttp application."""
    from aiohttp import web

    def device(request: web.Request) -> str:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        for name, token in known:
            if kind == "Bearer" and compare_digest(given.encode(), token.encode()):
                return name
        raise web.HTTPUnauthorized(text="give a token: Authorization: Bearer TOKEN\n")

    async def post(request: web.Request) -> web.Response:
        source = device(request)
        readings = parse(await request.read(), feed.clock(), source, settings.units)
        try:
            await feed.put(readings, wait=False)
        except StateError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n", headers=_RETRY) from None
        return web.json_response({"readings": len(readings)})

    async def get(request: web.Request) -> web.Response:
        device(request)
        return web.json_response(await asyncio.to_thread(feed.counts) | {"trouble": feed.trouble})

    made = web.Application(client_max_size=LONGEST)
    path = "/readings" if feed.of is None else "/labels"
    made.add_routes([web.post(path, post), web.get(path, get)])
    return made


async def serve(settings: Push, folder: Path, feed: Feed, host: str, port: int) -> None:
    """Serve until cancelled. Files are relative to `folder`. Raises ConfigError, OSError where it cannot."""
    from aiohttp import web

    try:
        known = tokens((folder / settings.token_file).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"the token file cannot be read: {error}") from None
    context = None
    if settings.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(
            folder / settings.certificate, folder / settings.key if settings.key else None
        )
    elif not _local(host):
        raise ConfigError(f"{host} is reached by other machines: give a certificate and its key")
    runner = web.AppRunner(app(settings, known, feed), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
