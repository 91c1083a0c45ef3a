"""Thousands of members that wait: what each costs a server, and how soon a letter reaches all.

    python -m bench.idle server FOLDER
    python -m bench.idle members FOLDER PORT FIRST COUNT

The server is a real Service behind a real gRPC door with mutual TLS, alone in its process; members are
real sessions (`Dial`), spread over two processes. Heartbeats go every 120 s.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from .carry import cpu_seconds

HEARTBEAT = 120.0
JOINING = 24  # members of one process on their way in at once


def measure(folder: Path, members: int, seconds: float) -> dict[str, float]:
    """KiB a member, CPU % while all wait for `seconds`, seconds until a letter has reached everybody."""
    _certify(folder, members)
    server = _start("server", str(folder))
    try:
        port = _line(server)
        process = psutil.Process(server.pid)
        before = process.memory_full_info().uss
        half = members // 2
        crowds = [_start("members", str(folder), port, "0", str(half))]
        crowds.append(_start("members", str(folder), port, str(half), str(members - half)))
        try:
            began = time.perf_counter()
            for crowd in crowds:
                _line(crowd)
            joined = time.perf_counter() - began
            time.sleep(2 * HEARTBEAT)  # from then on heartbeats are answered as they always will be
            held = process.memory_full_info().uss - before
            cpu, began = cpu_seconds(process), time.perf_counter()
            time.sleep(seconds)
            busy = (cpu_seconds(process) - cpu) / (time.perf_counter() - began)
            began = time.perf_counter()
            print("push", file=server.stdin, flush=True)
            for crowd in crowds:
                _line(crowd)
            reached = time.perf_counter() - began
        finally:
            _end(*crowds)
    finally:
        _end(server)
    return {
        "members": members,
        "kib": held / members / 1024,
        "cpu": busy * 100,
        "reached": reached,
        "joined": joined,
    }


def _certify(folder: Path, members: int) -> None:
    from atoll.privacy.keys import Authority, Identity, key_pem, new_key, request

    now, authority, key = time.time(), Authority.new("idle", now=time.time()), new_key()

    def chain(role: str, name: str, hosts: tuple[str, ...] = ()) -> bytes:
        csr = request(key, "idle", role, name)
        return authority.sign(csr, role=role, name=name, now=now, hosts=hosts)

    Identity(key, chain("coordinator", "coordinator", ("127.0.0.1",)), authority.root).save(folder / "server")
    chains = [chain("client", f"m{k}").decode() for k in range(members)]
    made = {"key": key_pem(key).decode(), "root": authority.root.decode(), "chains": chains}
    (folder / "members.json").write_text(json.dumps(made), "utf-8")


def _start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.idle", *words]
    return subprocess.Popen(  # noqa: S603  ourselves
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _line(process: subprocess.Popen[str]) -> str:
    line = "" if process.stdout is None else process.stdout.readline().strip()
    if not line:
        raise RuntimeError("a process of the crowd ended")
    return line


def _end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class Quiet:
    """A desk that lets everybody in and has nothing to say."""

    async def admit(self, member: Any, hello: Mapping[str, Any]) -> dict[str, Any]:
        """Welcome."""
        return {}

    async def present(self, name: str) -> None:
        """Fine."""

    async def absent(self, name: str, reason: str) -> None:
        """Fine too."""


async def server(folder: str) -> None:
    """Listen; each line on stdin is a letter to everybody."""
    from atoll.privacy.keys import Identity
    from atoll.transport.grpc import serve
    from atoll.transport.service import Limits, Service

    service = Service(Quiet(), Limits(heartbeat=HEARTBEAT))  # type: ignore[arg-type]
    await service.start()
    door = await serve(service, "127.0.0.1:0", Identity.open(Path(folder) / "server"), federation="idle")
    print(door.port, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        for row in service.sessions():
            service.send(row["name"], "news", {"text": "a letter of ordinary length"})


async def crowd(folder: str, port: str, first: str, count: str) -> None:
    """Join, say so; say so again when every one has had its letter."""
    from atoll.privacy.keys import Identity, load_key
    from atoll.transport.dial import Dial
    from atoll.transport.grpc import GrpcLink

    made = json.loads((Path(folder) / "members.json").read_text("utf-8"))
    key, root = load_key(made["key"].encode()), made["root"].encode()
    room, reached, all_in, tasks = asyncio.Semaphore(JOINING), asyncio.Semaphore(0), asyncio.Semaphore(0), []

    async def heard(_kind: str, _head: Mapping[str, Any]) -> None:
        reached.release()

    async def join(chain: str) -> None:
        identity = Identity(key, chain.encode(), root)
        here = asyncio.Event()

        async def opened(_welcome: Mapping[str, Any], _fresh: bool) -> None:  # noqa: FBT001  dial's contract
            here.set()

        dial = Dial(
            [f"grpcs://127.0.0.1:{port}"],
            lambda url: GrpcLink(url, identity),
            dict,
            on_letter=heard,
            on_open=opened,
        )
        async with room:
            tasks.append(asyncio.get_running_loop().create_task(dial.run()))
            await here.wait()
        all_in.release()

    chains = made["chains"][int(first) : int(first) + int(count)]
    joining = [asyncio.get_running_loop().create_task(join(chain)) for chain in chains]
    for _ in chains:
        await all_in.acquire()
    print("here", flush=True)
    for _ in chains:
        await reached.acquire()
    print("reached", flush=True)
    await asyncio.gather(*joining, *tasks)


def main(role: str, *words: str) -> None:
    """One process; each may have a file open for every member."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(server(*words) if role == "server" else crowd(*words))


if __name__ == "__main__":
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    main(*sys.argv[1:])
