"""Sessions, uploads and downloads over gRPC, with mutual certificates: the default where grpcio is installed.

The messages are those of atoll.proto, but gRPC hands them over as bytes: a Frame of a megabyte is
wrapped and unwrapped here by its few bytes of protobuf, not copied through a message object.
HTTP/2 pings are no heartbeats, proxies do not pass them on: packets of the session are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from ..core.errors import AtollError, ConfigError, Gone, ProtocolError
from ..core.session import Packet
from ..privacy.keys import Identity, Member
from ..wire.plain import FRAME, HEADER, Bytes
from ..wire.proto import piece
from . import atoll_pb2 as pb
from .address import authority, claimed, find_proxy, host_port, loopback
from .link import DOWN, PACKET, fault, letter, pack, read, unpack
from .service import Service, Way
from .tls import Source, grpc_channel_credentials, grpc_member, grpc_server_credentials

try:
    import grpc
    from grpc._cython.cygrpc import InternalError
except ImportError:
    raise ConfigError(
        "gRPC needs grpcio: pip install 'atoll-fl[grpc]'. Or do without: transport = \"https\" at a member, "
        'grpc = "" at a server'
    ) from None

_SERVICE = "/atoll.v1.Link/"
LONGEST = PACKET + 64  # bytes of one message
_SIZES = [("grpc.max_receive_message_length", LONGEST), ("grpc.max_send_message_length", LONGEST)]
_SERVER = [
    *_SIZES,
    ("grpc.so_reuseport", 0),  # a second server on the same port fails instead of sharing it
    ("grpc.max_concurrent_streams", 64),  # of one connection
    # What came and was not read is lost when a connection breaks: let no frame come before it is asked for. A
    # heartbeat may, else each is answered by a window update.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.server_handshake_timeout_ms", 10_000),  # who connects and says nothing
    # No timers of gRPC's for each connection: it looks through all of them each second, which costs a server
    # of thousands that wait half as much as their heartbeats do. Heartbeats end what is silent.
    ("grpc.keepalive_time_ms", 0x7FFFFFFF),
    ("grpc.max_connection_idle_ms", 0x7FFFFFFF),
    ("grpc.http2.min_ping_interval_without_data_ms", 60_000),
]
_CLIENT = [
    *_SIZES,
    ("grpc.use_local_subchannel_pool", 1),  # a channel made anew connects anew, with renewed certificates
    ("grpc.enable_retries", 0),  # dial.py decides
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_CODES = {
    "refused": grpc.StatusCode.PERMISSION_DENIED,
    "protocol": grpc.StatusCode.INVALID_ARGUMENT,
    "gone": grpc.StatusCode.UNAVAILABLE,
}
_WORDS = {
    **{code: word for word, code in _CODES.items()},
    grpc.StatusCode.UNAUTHENTICATED: "refused",
    grpc.StatusCode.UNIMPLEMENTED: "refused",
}


def wrap(frame: bytes) -> bytes:
    """A frame as the protobuf message Frame."""
    return piece(1, frame)


def unwrap(data: bytes) -> memoryview:
    """The frame in the protobuf message Frame, not copied. Raises ProtocolError."""
    size = at = 0
    for shift in (0, 7, 14, 21):
        at = 2 + shift // 7
        if len(data) < at:
            break
        size |= (data[at - 1] & 0x7F) << shift
        if data[at - 1] < 0x80:
            break
    if data[:1] != b"\x0a" or len(data) - at != size or size > FRAME + HEADER:
        raise ProtocolError("expected a frame of atoll.proto, of at most 1 MiB and its header")
    return memoryview(data)[at:]


# the server --------------------------------------------------------------------------------------


class Listening:
    """A server that accepts members. `port`: the one it got."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self.port = port
        self._server = server

    async def close(self, grace: float = 1.0) -> None:
        """Accept nobody any more; what is open may end within `grace` seconds. Close the Service first."""
        await self._server.stop(grace)


async def serve(
    service: Service,
    address: str,
    source: Source | None,
    *,
    federation: str,
    wall: Callable[[], float] = time.time,
) -> Listening:
    """Listen at `address` (host:port, port 0 for any) with the identity of `source`.

    Without one members are who they say, in plain text: loopback only, for recording what is said.
    Raises ConfigError where it cannot listen there.
    """

    def who(context: Any) -> Member:
        if source is None:
            return claimed(dict(context.invocation_metadata()).get("atoll-member", ""))
        return grpc_member(context.auth_context(), federation=federation, now=wall())

    server = grpc.aio.server(options=_SERVER)
    server.add_generic_rpc_handlers((_Handlers(_Methods(service, who)),))
    try:
        if source is None:
            loopback(address)
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, grpc_server_credentials(source))
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"cannot listen at {address}: is the port taken, the host this machine's?")
    await server.start()
    return Listening(server, port)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    def __init__(self, methods: _Methods) -> None:
        self._handlers = {
            _SERVICE + "Session": grpc.stream_stream_rpc_method_handler(methods.session),
            _SERVICE + "Offset": grpc.unary_unary_rpc_method_handler(methods.offset),
            _SERVICE + "Upload": grpc.stream_unary_rpc_method_handler(methods.upload),
            _SERVICE + "Download": grpc.unary_stream_rpc_method_handler(methods.download),
        }

    def service(self, details: Any) -> Any:
        """Which handler, None for a method that does not exist: it is refused by gRPC."""
        return self._handlers.get(details.method)


class _Methods:
    """The four calls: who speaks is asked first, errors are said as status codes."""

    def __init__(self, service: Service, who: Callable[[Any], Member]) -> None:
        self._service = service
        self._who = who

    async def session(self, incoming: AsyncIterator[bytes], context: Any) -> None:
        member = await self._member(context)
        await self._service.session(member, Way("grpc", context.peer()), incoming, context.write)

    async def offset(self, data: bytes, context: Any) -> bytes:
        member = await self._member(context)
        try:
            upload = pb.Place.FromString(data).upload
            frames = await self._service.offset(member, _told(context, "atoll-session"), upload)
        except Exception as error:  # noqa: BLE001  said to the member, logged by the service
            await self._abort(context, error, member)
        answer: bytes = pb.Place(upload=upload, frames=frames).SerializeToString()
        return answer

    async def upload(self, incoming: AsyncIterator[bytes], context: Any) -> bytes:
        member = await self._member(context)
        session, upload, start = (_told(context, f"atoll-{k}") for k in ("session", "upload", "start"))
        try:
            receipt = await self._service.upload(member, session, upload, _count(start), _frames(incoming))
        except Exception as error:  # noqa: BLE001
            await self._abort(context, error, member)
        return pack(Packet(0, 0, letter("receipt", receipt)))

    async def download(self, data: bytes, context: Any) -> None:
        member = await self._member(context)

        async def send(frame: bytes) -> None:
            await context.write(wrap(frame))

        try:
            wanted = pb.Wanted.FromString(data)
            session, have = _told(context, "atoll-session"), list(wanted.have)
            await self._service.download(member, session, wanted.blob, wanted.start, have, send)
        except Exception as error:  # noqa: BLE001
            await self._abort(context, error, member)

    async def _member(self, context: Any) -> Member:
        try:
            return self._who(context)
        except ProtocolError as error:
            self._service.word(error)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise

    async def _abort(self, context: Any, error: Exception, member: Member) -> None:
        if isinstance(error, DecodeError):
            error = ProtocolError("expected a message of atoll.proto")
        word, reason = self._service.word(error, member)
        await context.abort(_CODES[word], reason[:1000])


def _told(context: Any, key: str) -> str:
    value = dict(context.invocation_metadata()).get(key, "")
    return value if isinstance(value, str) else ""


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise ProtocolError("expected the number of the first frame in the metadata atoll-start")
    return int(text)


async def _frames(incoming: AsyncIterator[bytes]) -> AsyncIterator[memoryview]:
    async for data in incoming:
        yield unwrap(data)


# the member --------------------------------------------------------------------------------------


class GrpcLink:
    """grpcs://host:port with the identity given; grpc:// in plain text, to this machine only.

    `proxy`: http://user:password@host:port that passes TLS through (CONNECT), "" for none; None: as the
    environment says, by the names that HTTPS goes by.
    """

    def __init__(
        self, url: str, identity: Identity | None, *, claim: Member | None = None, proxy: str | None = None
    ) -> None:
        self.url = url
        target = authority(url)
        options = [*_CLIENT, *_through(target, proxy)]
        self._metadata: tuple[tuple[str, str], ...] = ()
        if url.startswith("grpcs://") and identity is not None:
            self._channel = grpc.aio.secure_channel(target, grpc_channel_credentials(identity), options)
        else:
            loopback(target)
            self._channel = grpc.aio.insecure_channel(target, options)
            self._metadata = (("atoll-member", claim.uri if claim else ""),)
        self._session = self._channel.stream_stream(_SERVICE + "Session")
        self._offset = self._channel.unary_unary(_SERVICE + "Offset")
        self._upload = self._channel.stream_unary(_SERVICE + "Upload")
        self._download = self._channel.unary_stream(_SERVICE + "Download")

    async def session(self, name: str, hello: bytes) -> _Channel:
        """See link.Link."""
        self._metadata = (
            *(pair for pair in self._metadata if pair[0] != "atoll-session"),
            ("atoll-session", name),
        )
        channel = _Channel(self._session(metadata=self._metadata))
        await channel.send(hello)
        return channel

    async def offset(self, upload: str) -> int:
        """See link.Link."""
        query = pb.Place(upload=upload).SerializeToString()
        place = pb.Place.FromString(await _answer(self._offset(query, metadata=self._metadata)))
        return int(place.frames)

    async def upload(self, upload: str, frames: AsyncIterator[bytes], start: int) -> dict[str, Any]:
        """See link.Link."""
        told = (*self._metadata, ("atoll-upload", upload), ("atoll-start", str(start)))
        call = self._upload(metadata=told)
        sending = asyncio.ensure_future(_send(call, frames))
        try:
            answer = unpack(await _answer(call))  # it may come before all is sent
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled() and (error := sending.exception()) is not None:
                raise error
        return dict(read(answer.body or b"", DOWN).head)

    async def download(self, blob: str, start: int, have: Sequence[str]) -> AsyncIterator[Bytes]:
        """See link.Link."""
        wanted = pb.Wanted(blob=blob, start=start, have=have).SerializeToString()
        call = self._download(wanted, metadata=self._metadata)
        try:
            while (data := await _answer(call.read())) is not grpc.aio.EOF:
                yield unwrap(data)
        finally:
            call.cancel()

    async def probe(self) -> None:
        """See link.Link."""
        try:
            async with asyncio.timeout(10):
                await self._channel.channel_ready()
        except TimeoutError:
            raise Gone(f"{self.url} does not answer") from None

    async def close(self) -> None:
        """See link.Link."""
        await self._channel.close()


def _through(target: str, given: str | None) -> list[tuple[str, Any]]:
    """The options of a channel through the proxy to `target`; gRPC itself reads only https_proxy."""
    proxy, shown = find_proxy(host_port(target)[0], given)
    if proxy is None:
        return [("grpc.enable_http_proxy", 0)]
    headers = "\n".join(f"{name}:{value}" for name, value in shown.items())
    return [("grpc.http_proxy", proxy), *([("grpc.http_connect_headers", headers)] if shown else [])]


_OVER = (grpc.aio.AioRpcError, asyncio.InvalidStateError, InternalError)


async def _write(call: Any, data: bytes) -> None:
    """As `call.write`, which gives a call that the server has ended the status INTERNAL if it fails
    before the server's own status is read: a refusal would be taken for an accident.
    """
    await call.wait_for_connection()
    await call._cython_call.send_serialized_message(data)


async def _send(call: Any, frames: AsyncIterator[bytes]) -> None:
    try:
        async for frame in frames:
            await _write(call, wrap(frame))
        await call.done_writing()
    except _OVER:
        pass  # the call is over: its answer says why
    except Exception:
        call.cancel()  # the file cannot be read
        raise


class _Channel:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, packet: bytes) -> None:
        try:
            await _write(self._call, packet)
        except (*_OVER, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not self._call.done():
                raise
            raise Gone("the connection has ended") from None

    async def recv(self) -> bytes | None:
        data = await _answer(self._call.read(), self._call)
        return None if data is grpc.aio.EOF else data

    async def close(self) -> None:
        self._call.cancel()


async def _answer(call: Awaitable[Any], rpc: Any = None) -> Any:
    """What a call gives, its errors as ours."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _error(error.code(), error.details()) from None
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        raise Gone("the connection was closed") from None


def _error(code: grpc.StatusCode, details: str | None) -> AtollError:
    return fault(_WORDS.get(code, "gone"), details or code.name)
