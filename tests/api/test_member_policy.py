"""Every door for members × everyone who may try: HTTPS routes and gRPC methods of a coordinator."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest

import atoll as at
from atoll.control.desk.auth import ANYONE, MEMBER, MEMBERS, PROOF
from atoll.control.engine.founding import found_authority
from atoll.control.engine.host import Host
from atoll.control.engine.ways import Servers
from atoll.control.settings import Server
from atoll.core.errors import MisuseError
from atoll.privacy.keys import Authority, Identity
from atoll.transport import atoll_pb2 as pb
from atoll.transport.grpc import _Handlers
from atoll.transport.tls import client_context, grpc_channel_credentials
from tests.store.fresh import opened
from tests.wire.pki import NOW, member

BLOB = "0" * 64
REFUSED = (401, 403)


@dataclass
class Doors:
    """A coordinator's doors, and who knocks: `who[name]` is an identity, None shows no certificate.

    `reached`: calls of the service behind that somebody got through to.
    """

    servers: Servers
    authority: Authority
    who: dict[str, Identity | None] = field(default_factory=dict)
    reached: list[str] = field(default_factory=list)

    def listen(self, name: str, inner: Any) -> Any:
        async def heard(*args: Any) -> Any:
            self.reached.append(name)
            return await inner(*args)

        return heard

    @property
    def routes(self) -> set[tuple[str, str]]:
        """Every route and method there is."""
        (front,) = [door for door in self.servers._open if hasattr(door, "_runner")]
        found = {(r.method, r.resource.canonical) for r in front._runner.app.router.routes()}
        found -= {("HEAD", path) for method, path in found if method == "GET"}  # aiohttp's own twin of a GET
        methods = {m.name for m in pb.DESCRIPTOR.services_by_name["Link"].methods}
        served = {name.rpartition("/")[2] for name in _Handlers(_Nothing())._handlers}  # type: ignore[arg-type]
        assert methods == served, "the published service and the one that is served differ"
        return found | {("gRPC", name) for name in methods}


class _Nothing:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def graph(path: Path) -> str:
    learner = at.softmax().sized(2, 3)
    learner.export(learner.init(np.random.default_rng(0)), path, np.zeros((1, 2)))
    return str(path)


@asynccontextmanager
async def doors(folder: Path) -> AsyncIterator[Doors]:
    settings = Server(
        folder=str(folder),
        federation="reef",
        listen="127.0.0.1:0",
        grpc="127.0.0.1:0",
        names=("127.0.0.1",),
        models={"large": graph(folder / "large.onnx")},
    )
    with opened(folder) as store:
        registrar, current = found_authority(settings, store, now=NOW)
        servers = Servers(settings, current, Host(store, None, "reef"), registrar)  # type: ignore[arg-type]
        await servers.start()
        ours = Authority.open(folder / "pki" / "authority")
        made = Doors(servers, ours)
        for name in ("session", "offset", "upload", "download"):
            setattr(servers.service, name, made.listen(name, getattr(servers.service, name)))
        # the hardest neighbour: another federation below the same company's root
        sibling = Authority("lagoon", ours.root, ours.chain, ours._key)
        other = Authority.new("reef", now=NOW)
        made.who = {
            "nobody": None,
            "member": member(ours, "client", "north"),
            "another root's": member(other, "client", "north", roots=ours.root),
            "another federation's": member(sibling, "client", "north"),
            "ended": member(ours, "client", "late", now=NOW - 3 * 86400, hours=24),
        }
        try:
            yield made
        finally:
            await servers.stop()


async def https(found: Doors, who: str, method: str, path: str) -> int:
    """The status one gets; 401 where the handshake already fails."""
    context = client_context(found.authority.root, found.who[who])
    port = found.servers.ports["listen"].rpartition(":")[2]
    target = path.replace("{upload}", "r1.main.1.north").replace("{blob}", BLOB)
    head = {"atoll-mode": "send", "atoll-connection": "c" * 32}
    try:
        async with aiohttp.ClientSession(headers=head) as session:
            url = f"https://127.0.0.1:{port}{target}"
            async with session.request(method, url, ssl=context, json=_body(method)) as answer:
                return answer.status
    except (aiohttp.ClientError, ssl.SSLError, OSError):
        return 401


def _body(method: str) -> Any:
    return {} if method == "POST" else None


async def call(found: Doors, who: str, method: str) -> grpc.StatusCode:
    """How a gRPC method ends."""
    identity = found.who[who]
    target = f"127.0.0.1:{found.servers.ports['grpc']}"
    made = grpc.ssl_channel_credentials(found.authority.root) if identity is None else None
    credentials = made or grpc_channel_credentials(identity)  # type: ignore[arg-type]

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async with grpc.aio.secure_channel(target, credentials) as channel:
        name = f"/atoll.v1.Link/{method}"
        told = (("atoll-session", "s"), ("atoll-upload", "r1.main.1.north"), ("atoll-start", "0"))
        more: Any = {"timeout": 20, "metadata": told}
        made_call: Any = {
            "Session": lambda: channel.stream_stream(name)(nothing(), **{**more, "timeout": 2}),
            "Offset": lambda: channel.unary_unary(name)(b"", **more),
            "Upload": lambda: channel.stream_unary(name)(nothing(), **more),
            "Download": lambda: channel.unary_stream(name)(b"", **more),
        }[method]()
        return await made_call.code()


async def knock(found: Doors, who: str, method: str, path: str) -> Any:
    return await (call(found, who, path) if method == "gRPC" else https(found, who, method, path))


def test_every_door_has_a_line_and_every_line_a_door(tmp_path) -> None:
    async def main() -> None:
        async with doors(tmp_path) as found:
            assert found.routes == set(MEMBERS)

    asyncio.run(main())


def test_control_a_door_without_a_line_is_seen(tmp_path, monkeypatch) -> None:
    line = {key: value for key, value in MEMBERS.items() if key != ("GET", "/v1/ways")}

    async def main() -> None:
        async with doors(tmp_path) as found:
            assert found.routes - set(line) == {("GET", "/v1/ways")}

    asyncio.run(main())


def test_a_door_that_nobody_has_given_a_line_is_not_opened(tmp_path, monkeypatch) -> None:
    fewer = {key: value for key, value in MEMBERS.items() if key != ("POST", "/v1/renew")}
    monkeypatch.setattr("atoll.control.desk.auth.MEMBERS", fewer)

    async def main() -> None:
        with pytest.raises(MisuseError, match="nobody has said who may call POST /v1/renew"):
            async with doors(tmp_path):
                raise AssertionError("it is open")

    asyncio.run(main())


@pytest.mark.parametrize("who", ["nobody", "member", "another root's", "another federation's", "ended"])
def test_door_by_caller(tmp_path, who: str) -> None:
    async def main() -> list[str]:
        wrong = []
        async with doors(tmp_path) as found:
            for (method, path), least in sorted(MEMBERS.items()):
                found.reached.clear()
                seen = await knock(found, who, method, path)
                shut = not found.reached if method == "gRPC" else seen in REFUSED
                if least == MEMBER:
                    shut |= seen == 400 and who == "another federation's"  # whose certificate it says is none
                    good = shut != (who == "member") and (who == "member" or not found.reached)
                elif least == PROOF:  # an empty body proves nothing, whoever sends it
                    good = seen in (400, *REFUSED)
                else:
                    good = not shut or who in ("another root's", "ended")  # these end in the handshake
                if not good:
                    wrong.append(f"{method} {path} ({least}) by {who}: {seen}")
        return wrong

    assert asyncio.run(main()) == []


def test_an_operators_token_opens_no_door_for_members(tmp_path) -> None:
    """Bearers are for the API; here they are as good as nothing."""
    assert ANYONE not in {MEMBERS[key] for key in MEMBERS if key[0] == "gRPC"}

    async def main() -> int:
        async with doors(tmp_path) as found:
            context = client_context(found.authority.root, None)
            head = {"authorization": "Bearer atoll1.any"}
            async with aiohttp.ClientSession(headers=head) as session:
                port = found.servers.ports["listen"].rpartition(":")[2]
                async with session.get(f"https://127.0.0.1:{port}/v1/blobs/{BLOB}", ssl=context) as answer:
                    return answer.status

    assert asyncio.run(main()) == 401
