"""What bytes cost to carry with nothing around them: over bare TLS 1.3, and over bare gRPC.

    python -m bench.carry tls|grpc server IDENTITY DOWN UP
    python -m bench.carry tls|grpc client IDENTITY DOWN UP PORT

A server process and one process a client, as a federation has; on each line on its stdin a client takes
DOWN bytes and brings UP bytes, and says so. Both sides show certificates. Nothing is looked at or kept.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

import atoll.transport  # noqa: F401  forbids TLS 1.2, before anybody imports grpc

PIECE = 1 << 20


class Carried:
    """Processes that carry `down` and `up` bytes for each of `clients`, over and over."""

    def __init__(self, kind: str, identities: tuple[Path, Path], clients: int, down: int, up: int) -> None:
        self._all: list[subprocess.Popen[str]] = []
        sizes = [str(down), str(up)]
        server = self._start(kind, "server", str(identities[0]), *sizes)
        self.server = psutil.Process(server.pid)
        self.members: list[psutil.Process] = []
        port = _line(server)
        self._clients = [
            self._start(kind, "client", str(identities[1]), *sizes, port) for _ in range(clients)
        ]
        for client in self._clients:
            _line(client)
            self.members.append(psutil.Process(client.pid))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def once(self) -> tuple[float, float, float]:
        """Seconds: on the wall until all bytes are there, of the server's CPU, of all clients' CPU."""
        cpu, theirs, began = cpu_seconds(self.server), cpu_seconds(*self.members), time.perf_counter()
        for client in self._clients:
            print("go", file=client.stdin, flush=True)
        for client in self._clients:
            _line(client)
        wall = time.perf_counter() - began
        return wall, cpu_seconds(self.server) - cpu, cpu_seconds(*self.members) - theirs

    def _start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench.carry", *words]
        process = subprocess.Popen(  # noqa: S603  ourselves
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._all.append(process)
        return process


def cpu_seconds(*processes: psutil.Process) -> float:
    """Of CPU that these have taken so far."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def _line(process: subprocess.Popen[str]) -> str:
    line = "" if process.stdout is None else process.stdout.readline().strip()
    if not line:
        raise RuntimeError("a process of the bare transfer ended")
    return line


def say(word: object) -> None:
    """A line for the parent."""
    print(word, flush=True)


# -- bare TLS ---------------------------------------------------------------------------------


def tls_server(folder: str, down: int, up: int) -> None:
    """One thread a connection; OpenSSL works without the interpreter's lock."""
    from atoll.privacy.keys import Identity
    from atoll.transport.tls import server_context

    context = server_context(Identity.open(Path(folder)))
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    say(listening.getsockname()[1])
    piece = memoryview(bytes(PIECE))

    def serve(plain: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
            while sock.recv(1):
                _give(sock, piece, down)
                _take(sock, up)
                sock.sendall(b"k")

    while True:
        threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()


def tls_client(folder: str, down: int, up: int, port: int) -> None:
    """Takes and brings at each line."""
    from atoll.privacy.keys import Identity
    from atoll.transport.tls import client_context

    identity = Identity.open(Path(folder))
    context = client_context(identity.roots, identity)
    piece = memoryview(bytes(PIECE))
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1"
    ) as sock:
        say("ready")
        for _ in sys.stdin:
            sock.sendall(b"g")
            _take(sock, down)
            _give(sock, piece, up)
            sock.recv(1)
            say("done")


def _give(sock: socket.socket, piece: memoryview, size: int) -> None:
    for start in range(0, size, PIECE):
        sock.sendall(piece[: size - start])


def _take(sock: socket.socket, size: int) -> None:
    into = bytearray(PIECE)
    while size:
        size -= sock.recv_into(into, min(size, PIECE))


# -- bare gRPC --------------------------------------------------------------------------------


async def grpc_server(folder: str, down: int, up: int) -> None:
    """Download and Upload as in atoll.proto, of messages that mean nothing."""
    import grpc

    from atoll.privacy.keys import Identity
    from atoll.transport.grpc import _SERVER
    from atoll.transport.tls import grpc_server_credentials

    piece = bytes(PIECE)

    async def download(_request: bytes, context: Any) -> None:
        for start in range(0, down, PIECE):
            await context.write(piece if down - start >= PIECE else piece[: down - start])

    async def upload(incoming: AsyncIterator[bytes], _context: Any) -> bytes:
        async for _ in incoming:
            pass
        return b"k"

    methods = {
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
    }
    server = grpc.aio.server(options=_SERVER)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", methods),))
    port = server.add_secure_port("127.0.0.1:0", grpc_server_credentials(Identity.open(Path(folder))))
    await server.start()
    say(port)
    await server.wait_for_termination()


async def grpc_client(folder: str, down: int, up: int, port: int) -> None:
    """Takes and brings at each line."""
    import grpc

    from atoll.privacy.keys import Identity
    from atoll.transport.grpc import _CLIENT
    from atoll.transport.tls import grpc_channel_credentials

    piece = bytes(PIECE)
    credentials = grpc_channel_credentials(Identity.open(Path(folder)))
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, _CLIENT) as channel:
        await channel.channel_ready()
        say("ready")
        while await asyncio.to_thread(sys.stdin.readline):
            call = channel.unary_stream("/bench/Download")(b"")
            while await call.read() is not grpc.aio.EOF:
                pass
            bring = channel.stream_unary("/bench/Upload")()
            for start in range(0, up, PIECE):
                await bring.write(piece if up - start >= PIECE else piece[: up - start])
            await bring.done_writing()
            await bring
            say("done")


def main(kind: str, role: str, folder: str, *numbers: str) -> None:
    """One process."""
    roles: dict[tuple[str, str], Any] = {
        ("tls", "server"): tls_server,
        ("tls", "client"): tls_client,
        ("grpc", "server"): lambda *a: asyncio.run(grpc_server(*a)),
        ("grpc", "client"): lambda *a: asyncio.run(grpc_client(*a)),
    }
    roles[kind, role](folder, *map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
