"""Sessions over WebSocket: one packet a binary message, each way. Transfers stay plain HTTP requests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from ..core.errors import Gone
from ..privacy.keys import Member
from .link import PACKET
from .sealed import OVERHEAD, Seal
from .service import Service, Way


async def serve_socket(
    service: Service, request: web.Request, member: Member, way: Way, seal: Seal | None
) -> web.WebSocketResponse:
    """Serve one connection until it ends; with a seal each packet is signed."""
    socket = web.WebSocketResponse(max_msg_size=PACKET + OVERHEAD, compress=False, autoping=True, timeout=2.0)
    await socket.prepare(request)

    async def incoming() -> AsyncIterator[bytes]:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                return
            yield bytes(seal.open("packet", message.data)) if seal else message.data

    async def send(packet: bytes) -> None:
        await socket.send_bytes(seal.close("packet", packet) if seal else packet)

    await service.session(member, way, incoming(), send)
    await socket.close()
    return socket


class SocketChannel:
    """See link.Channel."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, seal: Seal | None = None) -> None:
        self._socket = socket
        self._seal = seal

    async def send(self, packet: bytes) -> None:
        """See link.Channel."""
        try:
            await self._socket.send_bytes(self._seal.close("packet", packet) if self._seal else packet)
        except (ConnectionError, aiohttp.ClientError):
            raise Gone("the connection has ended") from None

    async def recv(self) -> bytes | None:
        """See link.Channel."""
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            data: bytes = message.data
            return bytes(self._seal.open("packet", data)) if self._seal else data
        if message.type is aiohttp.WSMsgType.ERROR:
            raise Gone(f"the connection broke: {message.data}")
        return None

    async def close(self) -> None:
        """See link.Channel."""
        await self._socket.close()
