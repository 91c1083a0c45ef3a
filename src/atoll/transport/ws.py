"""Sessions over WebSocket: one packet a binary message, each way. Transfers stay plain HTTP requests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from ..core.errors import Gone
from ..privacy.keys import Member
from .link import PACKET
from .service import Service, Way


async def serve_socket(
    service: Service, request: web.Request, member: Member, way: Way
) -> web.WebSocketResponse:
    """Serve one connection until it ends."""
    socket = web.WebSocketResponse(max_msg_size=PACKET, compress=False, autoping=True, timeout=2.0)
    await socket.prepare(request)

    async def incoming() -> AsyncIterator[bytes]:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                return
            yield message.data

    await service.session(member, way, incoming(), socket.send_bytes)
    await socket.close()
    return socket


class SocketChannel:
    """See link.Channel."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, packet: bytes) -> None:
        """See link.Channel."""
        try:
            await self._socket.send_bytes(packet)
        except (ConnectionError, aiohttp.ClientError):
            raise Gone("the connection has ended") from None

    async def recv(self) -> bytes | None:
        """See link.Channel."""
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is aiohttp.WSMsgType.ERROR:
            raise Gone(f"the connection broke: {message.data}")
        return None

    async def close(self) -> None:
        """See link.Channel."""
        await self._socket.close()
