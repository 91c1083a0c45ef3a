"""A server whose models answer its children: who is let in, what is loaded, what is counted and told."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, web

from atoll.control.engine.answering import Answering
from atoll.control.engine.host import JOINT, Host
from atoll.control.engine.joint import asks
from atoll.control.settings import Edge, Server, read
from atoll.core.errors import ConfigError
from atoll.privacy.keys import Authority, Identity, Member, member_of, new_key, request
from atoll.serve.egress import Settings
from atoll.serve.model import Model
from tests.serve.test_joint import X, net
from tests.store.fresh import opened

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities of a coordinator, an edge and a client, and two models."""
    folder, now = tmp_path_factory.mktemp("made"), time.time()
    authority = Authority.new("works", now=now)
    for role, name in (("coordinator", "hub"), ("edge", "plant"), ("client", "north")):
        key = new_key()
        csr, hosts = request(key, "works", role, name), () if role == "client" else ("127.0.0.1",)
        Identity(key, authority.sign(csr, role=role, name=name, now=now, hosts=hosts), authority.root).save(
            folder / name
        )
    for name, gain in (("medium", 1.5), ("large", 5.0)):
        net(folder, name, gain)
    return folder


def member(made: Path, name: str) -> Member:
    return member_of(Identity.open(made / name).chain)


@asynccontextmanager
async def door(settings: Server, who: Path, caller: Any, out: Any = lambda member: False) -> Any:
    """The models of a server at a door that takes each caller for `caller()`: what its certificate says."""
    identity = Identity.open(who)
    answering = Answering(settings, lambda: identity, out)  # type: ignore[arg-type]
    await answering.start()
    app = web.Application()
    for (method, path), call in answering.routes().items():

        async def answer(asked: web.Request, call: Any = call) -> web.StreamResponse:
            found: web.StreamResponse = await call(asked, caller())
            return found

        app.router.add_route(method, path, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", answering
    finally:
        await runner.cleanup()
        await answering.stop()


def joint(**more: Any) -> Settings:
    return Settings(
        **{"send": "sample", "readers": "both", "threshold": 0.6, "share": 1.0, "limit": 9.0, **more}
    )


def test_an_edge_and_a_coordinator_answer_members_by_their_models(made: Path) -> None:
    above = Server(models={"large": str(made / "large.onnx")})

    async def talk() -> tuple[Any, Any, dict[str, int]]:
        async with door(above, made / "hub", lambda: member(made, "plant")) as (url, _):
            edge = Edge(
                models={"medium": str(made / "medium.onnx")}, joint=joint(above=(url,), model="large")
            )
            async with door(edge, made / "plant", lambda: member(made, "north")) as (place, answering):
                mine = asks(joint(above=(place,)), Identity.open(made / "north"), ())
                found = await mine.ask(X)
                await mine.close()
                return found, answering, answering.counts()

    found, _, counts = asyncio.run(talk())
    rows = list(found.beyond.rows)
    wanted = Model((made / "medium.onnx").read_bytes()).run(X)["probabilities"].copy()
    wanted[rows] = Model((made / "large.onnx").read_bytes()).run(X)["probabilities"][rows]
    np.testing.assert_allclose(found.answers["probabilities"], wanted, atol=1e-5)
    assert found.beyond.model["name"] == "large"
    mine, passed = 400 - len(rows), len(rows)
    assert counts == dict(zip(JOINT, (400, mine, passed, 0, 0, 0), strict=True))


def test_nobody_else_is_answered(made: Path) -> None:
    """A stranger, an operator's certificate, a coordinator's, and a client that was revoked."""
    settings = Edge(models={"medium": str(made / "medium.onnx")})
    north = member(made, "north")
    operator = Member("works", "operator", "eve", 1, 2e9)
    callers = iter([None, operator, member(made, "hub"), north])

    async def talk() -> tuple[list[Any], Any, dict[str, int]]:
        caller, out = [north], [False]
        async with door(settings, made / "plant", lambda: caller[0], lambda who: out[0]) as (url, answering):
            found = []
            for who in (*callers, "good"):
                caller[0], out[0] = north if who == "good" else who, who is north
                mine = asks(joint(above=(url,)), Identity.open(made / "north"), ())
                found.append(await mine.ask(X[:1]))
                await mine.close()
            return found[:-1], found[-1], answering.counts()

    refused, good, counts = asyncio.run(talk())
    assert refused == [None] * 4
    assert good is not None
    assert counts["asked"] == 1


def test_a_question_may_be_larger_than_what_members_else_send(made: Path) -> None:
    """The door itself takes 1 MiB of a request; a question of 2 is read, and not one of 5."""
    settings = Edge(models={"medium": str(made / "medium.onnx")})

    async def talk() -> tuple[int, int]:
        async with (
            door(settings, made / "plant", lambda: member(made, "north")) as (url, answering),
            ClientSession() as session,
        ):
            mine = asks(joint(above=(url,)), Identity.open(made / "north"), ())
            assert await mine.ask(np.zeros((10_000, 50), np.float32)) is None  # the model reads rows of 3
            await mine.close()
            async with session.post(f"{url}/v1/joint", data=BytesIO(bytes(5 << 20))) as answer:
                return answering.counts()["asked"], answer.status

    assert asyncio.run(talk()) == (10_000, 413)


def test_settings_name_models_and_whom_an_edge_asks(made: Path, tmp_path: Path) -> None:
    text = '[models]\nmedium = "medium.onnx"\n[joint]\nsend = "sample"\nreaders = "coordinator"\n'
    (tmp_path / "edge.toml").write_text('join = ["https://hub:8443", "http://hub:1"]\n' + text)
    edge = read(tmp_path / "edge.toml", Edge)
    assert edge.models == {"medium": str(tmp_path / "medium.onnx")}
    mine = asks(edge.joint, Identity.open(made / "plant"), edge.join)
    assert mine.settings.above == ("https://hub:8443",), "its parents, where no other is named"
    assert mine.settings.certificate == str(made / "plant" / "cert.pem")
    with pytest.raises(ConfigError, match="above names who is asked"):
        asks(edge.joint, Identity.open(made / "plant"), ("http://hub:1",))
    identity = Identity.open(made / "plant")
    (tmp_path / "medium.onnx").write_bytes(b"rubbish")
    answering = Answering(edge, lambda: identity, lambda who: False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be served"):
        asyncio.run(answering.start())


def test_what_edges_say_they_answered_is_kept_as_numbers(tmp_path: Path) -> None:
    store = opened(tmp_path)
    host = Host(store, None, "works")  # type: ignore[arg-type]
    host.fleet.joined("plant", "edge", {"below": {"mill": {"role": "edge"}, "north": {}}})
    host.fleet.joined("south", "client", {})
    good = {"asked": 9, "answered": 7, "passed": 2, "carried": 0, "late": 1, "failed": 0}

    async def told() -> None:
        await host.letter("plant", "live", {"members": {"mill": {"joint": good}}, "joint": good | {"x": 1}})
        await host.letter("south", "live", {"joint": good})
        await host.letter("plant", "live", {"joint": {"asked": -1, "late": "a", "failed": 2**80}})

    asyncio.run(told())
    doing = host.doing()
    assert doing["plant"]["joint"] == doing["mill"]["joint"] == good
    assert "joint" not in doing["south"], "a client answers for nobody"
    store.close()
