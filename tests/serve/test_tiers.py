"""Device, edge, cloud: each answers what it is sure of, and who may read a row is the node's to say."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import ProtocolError
from atoll.privacy.keys import Authority, Identity, new_key, request
from atoll.serve.above import Above
from atoll.serve.cut import cut
from atoll.serve.doubt import doubt
from atoll.serve.egress import Settings
from atoll.serve.joint import SPARE, Joint
from atoll.serve.model import Model
from atoll.serve.reply import Asked, Beyond, pack, unpack
from tests.serve.test_joint import X, net

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
UNSURE = 0.6  # the edge's threshold; its model doubts a fifth of what the node doubts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's identity, an edge's and a client's; three models, each surer than the one before."""
    folder, now = tmp_path_factory.mktemp("tiers"), time.time()
    authority = Authority.new("works", now=now)
    members = [("coordinator", "hub"), ("edge", "plant"), ("edge", "mill"), ("client", "north")]
    for role, name in members:
        key = new_key()
        hosts = () if role == "client" else ("127.0.0.1",)
        chain = authority.sign(request(key, "works", role, name), role=role, name=name, now=now, hosts=hosts)
        Identity(key, chain, authority.root).save(folder / name)
    (folder / "root.pem").write_bytes(authority.root)
    for name, gain in (("small", 0.5), ("medium", 1.5), ("large", 5.0)):
        net(folder, name, gain)
    return folder


def joint(made: Path, *above: str, **more: Any) -> Joint:
    clock = {"clock": more.pop("clock")} if "clock" in more else {}
    known = {"send": "sample", "readers": "both", "threshold": 0.8, "share": 1.0, "limit": 9.0}
    return Joint(Settings(above=above, roots=str(made / "root.pem"), **{**known, **more}), **clock)


class Chain:
    """A cloud of the large model, an edge of the medium one, a node of the small one that asks the edge."""

    def __init__(self, made: Path, stack: ExitStack) -> None:
        self.made, self.stack = made, stack
        self.keys: dict[str, Above] = {}

    def server(self, who: str, model: Any, asks: Joint | None = None, **more: Any) -> Any:
        self.keys[who] = Above.open(self.made / who)
        made = at.serve(model, port=0, above=self.keys[who], joint=asks, **more)
        return self.stack.enter_context(made)

    def model(self, name: str) -> dict[str, bytes]:
        return {"net": (self.made / f"{name}.onnx").read_bytes()}

    def node(self, *above: str, **more: Any) -> tuple[Any, dict[str, int]]:
        asks = joint(self.made, *above, **more)
        return self.stack.enter_context(at.serve(self.model("small"), port=0, joint=asks)), asks.counts


@pytest.fixture
def chain(made: Path) -> Any:
    with ExitStack() as stack:
        yield Chain(made, stack)


def says(made: Path, name: str) -> Any:
    return Model((made / f"{name}.onnx").read_bytes()).run(X)["probabilities"]


def unsure(made: Path) -> tuple[Any, Any]:
    """Rows that the node sends up, and those of them that the edge sends on."""
    up = doubt({"probabilities": says(made, "small")}) > 0.8
    on = up & (doubt({"probabilities": says(made, "medium")}) > UNSURE)
    assert 20 < on.sum() < up.sum() - 20
    return up, on


def told(service: Any, path: str, rows: Any = None) -> Any:
    body = None if rows is None else json.dumps({"rows": rows.tolist()}).encode()
    asked = Request(f"{service.url}{path}", body, {"Content-Type": "application/json"})  # noqa: S310  our own
    with urlopen(asked, timeout=30) as answer:  # noqa: S310
        return json.loads(answer.read())


def ask(service: Any) -> tuple[Any, Any]:
    found = told(service, "/v1/predict", X)
    return np.array(found["predictions"]["probabilities"]), found.get("above")


def test_each_tier_answers_what_it_is_sure_of(made: Path, chain: Chain) -> None:
    up, on = unsure(made)
    cloud = chain.server("hub", {"big": (made / "large.onnx").read_bytes()})
    asks = joint(made, cloud.url, threshold=UNSURE, model="big")
    edge = chain.server("plant", chain.model("medium"), asks)
    node, counts = chain.node(edge.url)
    found, above = ask(node)
    for rows, who in ((~up, "small"), (up & ~on, "medium"), (on, "large")):
        np.testing.assert_allclose(found[rows], says(made, who)[rows], atol=1e-5)
    assert above["model"] == {"name": "net", "version": 1}
    assert above["rows"] == np.flatnonzero(up).tolist()
    assert above["above"] == {"model": {"name": "big", "version": 1}, "rows": np.flatnonzero(on).tolist()}
    assert counts["answered"] == up.sum()
    status = told(edge, "/v1/models")
    passed, mine = int(on.sum()), int(up.sum() - on.sum())
    assert status["below"] == {"asked": passed + mine, "answered": mine, "passed": passed, "carried": 0}
    assert status["joint"]["answered"] == passed


def test_rows_for_an_edge_go_no_further_and_are_sealed_for_no_coordinator(made: Path, chain: Chain) -> None:
    up, _ = unsure(made)
    cloud = chain.server("hub", chain.model("large"))
    edge = chain.server("plant", chain.model("medium"), joint(made, cloud.url, threshold=UNSURE))
    node, _ = chain.node(edge.url, readers="edge")
    found, above = ask(node)
    np.testing.assert_allclose(found[up], says(made, "medium")[up], atol=1e-5)
    assert "above" not in above
    assert told(cloud, "/v1/models")["below"]["asked"] == 0
    straight, counts = chain.node(cloud.url, readers="edge")
    found, above = ask(straight)
    np.testing.assert_allclose(found, says(made, "small"), atol=1e-5)
    assert above is None
    assert counts["failed"] == counts["sent"] > 0
    assert told(cloud, "/v1/models")["below"]["asked"] == 0


def test_an_edge_carries_what_is_sealed_for_the_coordinator_and_cannot_read_it(
    made: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, _ = unsure(made)
    cloud = chain.server("hub", chain.model("large"))
    mill = chain.server("mill", chain.model("medium"), joint(made, cloud.url, threshold=UNSURE))
    plant_asks = joint(made, mill.url, threshold=UNSURE)
    plant = chain.server("plant", chain.model("medium"), plant_asks)
    carried: list[bytes] = []
    carry = plant_asks.carry

    async def seen(path: str, body: bytes | None = None) -> tuple[int, bytes]:
        status, answer = await carry(path, body)
        carried.extend([body, answer] if body else [])
        return status, answer

    monkeypatch.setattr(plant_asks, "carry", seen)
    node, counts = chain.node(plant.url, readers="coordinator")
    found, above = ask(node)
    np.testing.assert_allclose(found[up], says(made, "large")[up], atol=1e-5)
    assert "above" not in above
    question, answer = carried
    assert chain.keys["hub"].read(question, 500).x.shape == (up.sum(), 3)
    for edge in ("plant", "mill"):
        chain.keys[edge].key()
        with pytest.raises(ProtocolError, match="sealed for another key"):
            chain.keys[edge].read(question, 500)
    for row, said in zip(X[up][:5], says(made, "large")[up][:5], strict=True):
        assert row.tobytes() not in question
        assert said.tobytes() not in answer
    for edge in (plant, mill):
        assert told(edge, "/v1/models")["below"] == {"asked": 0, "answered": 0, "passed": 0, "carried": 1}
    alone = chain.server("plant", chain.model("medium"))  # it would have its own key taken for the top's
    node, counts = chain.node(alone.url, readers="coordinator")
    ask(node)
    assert counts["failed"] == counts["sent"] > 0
    assert told(alone, "/v1/models")["below"]["asked"] == 0


def test_an_edge_that_is_cut_off_goes_on_answering(made: Path, chain: Chain) -> None:
    """A cloud that is gone, then one that is silent: the edge's answer is there before the node gives up."""
    up, _ = unsure(made)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for url, how in (("http://127.0.0.1:1", "failed"), (f"http://127.0.0.1:{port}", "late")):
            asks = joint(made, url, threshold=UNSURE, limit=60.0)
            edge = chain.server("plant", chain.model("medium"), asks)
            node, counts = chain.node(edge.url, limit=2.0)
            for _ in range(2):  # the second time it asks nobody
                found, above = ask(node)
                np.testing.assert_allclose(found[up], says(made, "medium")[up], atol=1e-5)
                assert "above" not in above
            assert counts["answered"] == counts["sent"] == 2 * up.sum()
            assert asks.counts[how] == asks.counts["sent"] > 0
            below = told(edge, "/v1/models")["below"]
            assert (below["answered"], below["passed"]) == (2 * up.sum(), 0)


def test_what_an_edge_has_no_model_for_it_passes_on_within_its_share(made: Path, chain: Chain) -> None:
    up, _ = unsure(made)
    cloud = chain.server("hub", chain.model("large"))
    edge = chain.server("plant", {"other": chain.model("medium")["net"]}, joint(made, cloud.url))
    node, _ = chain.node(edge.url, model="net")
    found, above = ask(node)
    np.testing.assert_allclose(found[up], says(made, "large")[up], atol=1e-5)
    assert above["model"]["name"] == "net"
    below = told(edge, "/v1/models")["below"]
    assert (below["answered"], below["passed"]) == (0, up.sum())
    for more in ({"share": 0.01}, {"send": "nothing"}):
        edge = chain.server("plant", {"other": chain.model("medium")["net"]}, joint(made, cloud.url, **more))
        node, counts = chain.node(edge.url, model="net")
        found, above = ask(node)
        np.testing.assert_allclose(found, says(made, "small"), atol=1e-5)
        assert counts["failed"] == counts["sent"] > SPARE


def test_the_share_of_an_edge_bounds_what_it_passes_on(made: Path, chain: Chain) -> None:
    up, _ = unsure(made)
    cloud = chain.server("hub", chain.model("large"))
    asks = joint(made, cloud.url, threshold=0.0, share=0.1)
    edge = chain.server("plant", chain.model("medium"), asks)
    node, _ = chain.node(edge.url)
    _, above = ask(node)
    assert len(above["above"]["rows"]) == int(0.1 * up.sum()) + SPARE == asks.counts["sent"]


def test_features_are_passed_on_as_they_came(made: Path, chain: Chain) -> None:
    up, _ = unsure(made)
    head, tail = cut((made / "large.onnx").read_bytes(), "z")
    (made / "head.onnx").write_bytes(head)
    cloud = chain.server("hub", {"tail": tail})
    asks = joint(made, cloud.url, send="features", head=str(made / "head.onnx"), model="tail")
    edge = chain.server("plant", chain.model("medium"), asks)
    for more in ({"send": "features", "head": str(made / "head.onnx"), "model": "tail"}, {"model": "net2"}):
        node, _ = chain.node(edge.url, **more)  # features of the device, then a sample that the edge cuts
        found, _ = ask(node)
        np.testing.assert_allclose(found[up], says(made, "large")[up], atol=1e-5)
    node, counts = chain.node(edge.url, readers="coordinator")
    ask(node)
    assert counts["failed"] == counts["sent"] > 0, (
        "an edge that sends features carries nothing it cannot read"
    )


def test_where_one_does_not_answer_the_next_is_asked_until_it_is_back(made: Path, chain: Chain) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    second = chain.server("hub", {"second": chain.model("large")["net"]})
    now = [100.0]
    asks = {"clock": lambda: now[0], "threshold": 0.0}
    node, counts = chain.node(f"http://127.0.0.1:{port}", second.url, **asks)
    assert "above" not in told(node, "/v1/predict", X[:1])

    def asked() -> str:
        return str(told(node, "/v1/predict", X[:1])["above"]["model"]["name"])

    assert asked() == "second"
    first = at.serve({"first": chain.model("medium")["net"]}, port=port, above=Above.open(made / "plant"))
    with first:
        assert asked() == "second"
        now[0] += 1.0
        assert asked() == "first"
    told(node, "/v1/predict", X[:1])
    assert asked() == "second"
    assert (counts["sent"], counts["answered"], counts["failed"]) == (6, 4, 2)


def test_a_child_that_hardly_waits_has_nothing_passed_on_and_harms_no_other(made: Path) -> None:
    import asyncio

    asks = joint(made, "http://127.0.0.1:1")
    assert asyncio.run(asks.ask(X[:2], left=0.005)) is None
    assert asks.counts["late"] == 2
    assert asks._free() is not None


def test_rows_of_a_tier_further_up_are_told_by_the_numbers_here() -> None:
    there = Beyond({"name": "edge2"}, (0, 2), Beyond({"name": "cloud"}, (2,)))
    answers = {"p": np.zeros((3, 2), np.float32)}
    asked = unpack(pack({"name": "edge"}, answers, there), 3)
    assert asked.beyond == there
    assert asked.of(np.array([4, 7, 9])) == Beyond(
        {"name": "edge"}, (4, 7, 9), Beyond({"name": "edge2"}, (4, 9), Beyond({"name": "cloud"}, (9,)))
    )
    assert Asked({"name": "edge"}, answers).of(np.array([1])) == Beyond({"name": "edge"}, (1,))
    for rows in ((3,), (-1,)):
        with pytest.raises(ProtocolError, match="none to these rows"):
            unpack(pack({}, answers, Beyond({}, (0,), Beyond({}, rows))), 3)


@pytest.mark.parametrize("block", range(3))
def test_whatever_is_set_rows_are_read_by_whom_the_node_lets_and_answered(block: int, made: Path) -> None:
    total: Counter[str] = Counter()
    for seed in range(8 * block, 8 * block + 8):
        with ExitStack() as stack:
            total += world(seed, made, Chain(made, stack))
    assert set(total) == {"plant", "hub"}, "some rows are read by each"


def world(seed: int, made: Path, chain: Chain) -> Counter[str]:
    """Policies, thresholds, shares, models and who is away by dice; rows that each server could read."""
    dice = np.random.default_rng(seed)
    readers, on = (str(dice.choice(["edge", "both", "coordinator"])) for _ in range(2))
    send, passes = (str(dice.choice(["nothing", "sample", "sample"])) for _ in range(2))
    shares, thresholds = dice.choice([0.05, 0.3, 1.0], 2), dice.choice([0.0, 0.5, 0.8], 2)
    here, away = dice.random() < 0.7, dice.random() < 0.3
    cloud = chain.server("hub", chain.model("large"))
    url = "http://127.0.0.1:1" if away else cloud.url
    up = {"send": passes, "readers": on, "share": shares[1], "threshold": thresholds[1], "model": "net"}
    asks = joint(made, url, **up)
    edge = chain.server(
        "plant", chain.model("medium") if here else {"other": chain.model("medium")["net"]}, asks
    )
    read: Counter[str] = Counter()
    for who, keys in chain.keys.items():

        def reads(message: bytes, most: int, who: str = who, inner: Any = keys.read) -> Any:
            question = inner(message, most)
            read[who] += len(question.x)
            return question

        keys.read = reads  # type: ignore[method-assign]
    limits = {"share": shares[0], "threshold": thresholds[0]}
    node, counts = chain.node(edge.url, send=send, readers=readers, model="net", **limits)
    by = {name: says(made, name) for name in ("small", "medium", "large")}
    for part in np.array_split(np.arange(len(X)), 5):
        found = told(node, "/v1/predict", X[part])
        p, above = np.array(found["predictions"]["probabilities"]), found.get("above")
        who = np.array(["small"] * len(part), object)
        if above is not None:
            who[above["rows"]] = "medium" if here and readers != "coordinator" else "large"
            who[above.get("above", {"rows": []})["rows"]] = "large"
        for k, name in enumerate(who):
            np.testing.assert_allclose(p[k], by[name][part[k]], atol=1e-5)
    may = {"plant": readers != "coordinator", "hub": readers != "edge" and passes != "nothing" and not away}
    if readers == "both" and on == "edge":
        may["hub"] = False
    for server, rows in read.items():
        assert may[server] or not rows, (server, rows, send, readers, on, passes)
    assert counts["sent"] == counts["answered"] + counts["late"] + counts["failed"]
    for one, share in ((counts, shares[0]), (asks.counts, shares[1])):
        assert one["sent"] <= share * one["seen"] + SPARE
    assert send != "nothing" or not any(read.values())
    assert read["plant"] == told(edge, "/v1/models")["below"]["asked"]
    return read
