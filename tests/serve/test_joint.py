"""Joint inference: doubtful rows go up, sealed, where the policy lets them; else the local answer stands."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

import atoll as at
from atoll.core.errors import ConfigError, DataError, ProtocolError, Refused, StateError
from atoll.learn.dense import softmax
from atoll.privacy.keys import Authority, Identity, new_key, request
from atoll.privacy.sealed import seal
from atoll.serve.above import GRACE, LIFE, Above
from atoll.serve.cut import cut
from atoll.serve.doubt import calibrate, doubt
from atoll.serve.egress import Settings
from atoll.serve.joint import PURPOSE, SPARE, Joint
from atoll.serve.model import Model
from atoll.serve.reply import Asked, merged, pack, unpack
from atoll.serve.service import trust

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(4)
X = RNG.normal(size=(400, 3)).astype(np.float32)
PLAIN = {"features": False, "on": False, "left": 1.0}


def net(folder: Path, name: str, gain: float) -> bytes:
    """Three classes by the signs of one fixed weight matrix; a larger gain is surer of the same."""
    learner = softmax(features=3, outputs=3)
    weight = np.random.default_rng(9).normal(size=12) * gain
    params = learner.init(np.random.default_rng(0)).map(lambda b: weight.astype(np.float32))
    learner.export(params, folder / f"{name}.onnx", X[:2])
    return (folder / f"{name}.onnx").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority's root, an edge's identity and a client's, two models."""
    folder, now = tmp_path_factory.mktemp("made"), time.time()
    authority = Authority.new("works", now=now)
    for role, name, hosts in (("edge", "plant", ("127.0.0.1",)), ("client", "north", ())):
        key = new_key()
        csr = request(key, "works", role, name)
        chain = authority.sign(csr, role=role, name=name, now=now, hosts=hosts)
        Identity(key, chain, authority.root).save(folder / name)
    (folder / "root.pem").write_bytes(authority.root)
    (folder / "other.pem").write_bytes(Authority.new("works", now=now).root)
    net(folder, "small", 0.5)
    net(folder, "large", 5.0)
    (folder / "token").write_text("right\n")
    return folder


def settings(made: Path, url: str, **more: Any) -> Settings:
    known = {"above": (url,), "roots": str(made / "root.pem"), "send": "sample", "readers": "both"}
    known |= {"threshold": 0.8, "share": 1.0}
    return Settings(**{**known, **more})


def node(made: Path, url: str, **more: Any) -> Any:
    """A service of the small model that asks upstream."""
    clock = {k: more.pop(k) for k in ("clock", "now") if k in more}
    joint = Joint(settings(made, url, **more), **clock)
    return at.serve(made / "small.onnx", port=0, joint=joint), joint.counts


def probabilities(made: Path, name: str) -> Any:
    return Model((made / f"{name}.onnx").read_bytes()).run(X)["probabilities"]


def test_doubtful_rows_are_answered_by_the_larger_model_and_the_others_here(made: Path) -> None:
    small, large = probabilities(made, "small"), probabilities(made, "large")
    unsure = doubt({"probabilities": small}) > 0.8
    assert 20 < unsure.sum() < 380
    with at.serve(made / "large.onnx", port=0, above=Above.open(made / "plant")) as above:
        service, counts = node(made, above.url)
        with service:
            found = service.predict(X)["probabilities"]
    np.testing.assert_allclose(found[unsure], large[unsure], atol=1e-5)
    np.testing.assert_allclose(found[~unsure], small[~unsure], atol=1e-5)
    n = int(unsure.sum())
    assert counts == {
        "seen": 400,
        "doubtful": n,
        "sent": n,
        "answered": n,
        "late": 0,
        "failed": 0,
        "spared": 0,
    }


def test_by_default_nothing_leaves(made: Path) -> None:
    assert Settings().send == "nothing"
    joint = Joint(Settings(threshold=0.0))
    with at.serve(made / "small.onnx", port=0, joint=joint) as service:
        found = service.predict(X)["probabilities"]
    np.testing.assert_allclose(found, probabilities(made, "small"), atol=1e-5)
    assert joint._upstreams == []
    assert set(joint.counts.values()) == {0}


def test_the_share_is_kept_even_where_every_row_is_doubtful(made: Path) -> None:
    with at.serve(made / "large.onnx", port=0, above=Above.open(made / "plant")) as above:
        service, counts = node(made, above.url, threshold=0.0, share=0.15)
        with service:
            for at_ in range(0, 400, 40):
                service.predict(X[at_ : at_ + 40])
    assert counts["doubtful"] == counts["seen"] == 400
    assert counts["sent"] == counts["answered"] == 0.15 * 400 + SPARE
    assert counts["spared"] == 400 - counts["sent"]


def test_what_goes_over_the_wire_shows_no_row_and_can_be_read_by_the_owner_alone(made: Path) -> None:
    above, seen = Above.open(made / "plant"), []

    async def key(_: Any) -> web.Response:
        return web.Response(body=above.key())

    async def joint(asked: Any) -> web.Response:
        seen.append(await asked.read())
        return web.Response(status=500)

    async def talk() -> None:
        app = web.Application()
        app.router.add_get("/v1/key", key)
        app.router.add_post("/v1/joint", joint)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        for crypto in ("intl", "gm"):
            asks = Joint(settings(made, f"http://127.0.0.1:{runner.addresses[0][1]}", crypto=crypto))
            assert await asks.ask(X[:2]) is None
            assert asks.counts["failed"] == 2
            await asks.close()
        await runner.cleanup()

    asyncio.run(talk())
    other = Above.open(made / "plant")
    other.key()
    for body, mark in zip(seen, (0, 1), strict=True):
        assert body[1] == mark
        assert all(row.tobytes() not in body for row in X[:2])
        np.testing.assert_array_equal(above.read(body, 10).x, X[:2])
        with pytest.raises(ProtocolError, match="sealed for another key"):
            other.read(body, 10)
        for at_ in (0, 1, 5, 40, len(body) - 1):
            with pytest.raises(ProtocolError):
                above.read(body[:at_] + bytes([body[at_] ^ 1]) + body[at_ + 1 :], 10)
        with pytest.raises(DataError, match="expected 1 to 1 rows"):
            above.read(body, 1)


@pytest.mark.parametrize(
    "rows",
    [
        *({"shape": (2, 3)}, {"shape": (-1, 3)}, {"shape": ()}, {"rows": b"\0\0\xc0\x7f" * 6}),
        *({"shape": (1, 3), "left": left} for left in (-1.0, float("nan"), 1e9)),
    ],
)
def test_a_question_that_is_no_rows_is_refused(made: Path, rows: dict[str, Any]) -> None:
    above = Above.open(made / "plant")
    public = msgspec.json.decode(above.key())["key"]
    from base64 import b64decode

    told = {"model": "", "shape": (2, 3), "rows": X[:1].tobytes(), **PLAIN} | rows
    message, _ = seal(b64decode(public), msgspec.msgpack.encode(told), PURPOSE, os.urandom)
    with pytest.raises(DataError):
        above.read(message, 10)


def answer(made: Path, url: str, **more: Any) -> dict[str, int]:
    """The counts after some rows, whose answers must be the local ones."""
    service, counts = node(made, url, **more)
    with service:
        found = service.predict(X[:50])["probabilities"]
    np.testing.assert_allclose(found, probabilities(made, "small")[:50], atol=1e-5)
    assert counts["sent"] > 0
    assert counts["answered"] == 0
    return counts


def test_nobody_there_a_silent_one_and_strangers_leave_the_local_answer(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        counts = answer(made, f"http://127.0.0.1:{port}", limit=0.1)
        assert counts["late"] == counts["sent"]
    counts = answer(made, f"http://127.0.0.1:{port}")
    assert counts["failed"] == counts["sent"]
    with at.serve(made / "large.onnx", port=0, above=Above.open(made / "plant")) as above:
        answer(made, above.url, roots=str(made / "other.pem"))  # another federation of the same name
        answer(made, above.url, model="none")
    with at.serve(made / "large.onnx", port=0, above=Above.open(made / "north")) as above:
        answer(made, above.url)  # a client may not read what others send
    with at.serve(made / "large.onnx", port=0) as plain:
        answer(made, plain.url)


def test_after_a_failure_nobody_is_asked_for_a_while_which_grows(made: Path) -> None:
    now = [100.0]
    service, counts = node(made, "http://127.0.0.1:1", threshold=0.0, clock=lambda: now[0])
    with service:
        asked = []
        for second in (0, 0.5, 1.0, 2.0, 2.9, 3.1, 6.9, 7.2):
            now[0] = 100 + second
            before = counts["sent"]
            service.predict(X[:1])
            asked.append(counts["sent"] > before)
    assert asked == [True, False, True, False, False, True, False, True]


def test_a_key_that_was_renewed_costs_one_answer(made: Path) -> None:
    first = at.serve(made / "large.onnx", port=0, above=Above.open(made / "plant"))
    port, now = int(first.url.rpartition(":")[2]), [0.0]
    service, counts = node(made, first.url, threshold=0.0, clock=lambda: now[0])
    with service:
        with first:
            service.predict(X[:1])
        with at.serve(made / "large.onnx", port=port, above=Above.open(made / "plant")):
            told = []
            for _ in range(3):
                now[0] += 100
                service.predict(X[:1])
                told.append((counts["answered"], counts["failed"]))
    assert told[-1][0] == told[-2][0] + 1
    assert told[-1][1] <= 2


def test_keys_live_a_day_and_are_read_for_an_hour_more(made: Path) -> None:
    now = [1.8e9]
    identity = Identity.open(made / "plant")
    above = Above(lambda: (identity.key, identity.chain), now=lambda: now[0])
    from base64 import b64decode

    def public() -> bytes:
        return b64decode(msgspec.json.decode(above.key())["key"])

    first = public()
    text = msgspec.msgpack.encode({"model": "", "shape": (1, 3), "rows": X[:1].tobytes(), **PLAIN})
    message, _ = seal(first, text, PURPOSE, os.urandom)
    now[0] += LIFE / 2 - 1
    assert public() == first
    now[0] += 2
    assert public() != first
    assert above.read(message, 9).x.shape == (1, 3)
    now[0] += LIFE / 2 + GRACE
    with pytest.raises(ProtocolError, match="another key"):
        above.read(message, 9)


def test_over_mutual_tls_with_a_token(made: Path) -> None:
    edge, own = made / "plant", made / "north"
    tls = trust(edge / "cert.pem", edge / "key.pem", made / "root.pem")
    files = {"certificate": str(own / "cert.pem"), "key": str(own / "key.pem")}
    token = (made / "token").read_text().strip()
    with at.serve(made / "large.onnx", port=0, tls=tls, token=token, above=Above.open(edge)) as above:
        service, counts = node(made, above.url, token_file=str(made / "token"), limit=5.0, **files)
        with service:
            service.predict(X[:50])
        assert 0 < counts["answered"] == counts["sent"]
        answer(made, above.url, **files)  # without the token
        answer(made, above.url, token_file=str(made / "token"))  # without a certificate
        joint = Joint(settings(made, "http://192.0.2.1:80"))
        with pytest.raises(ConfigError, match="in the clear"):
            asyncio.run(joint._ask(joint._upstreams[0], X[:1], "", 1e9, features=False))


def test_certificates_may_be_renewed_while_both_run(made: Path, tmp_path: Path) -> None:
    """The upstream's ends; the one that replaced its file is shown to who connects next, and signs keys."""
    now, authority = time.time(), Authority.new("works", now=time.time())
    (tmp_path / "root.pem").write_bytes(authority.root)
    key = new_key()

    def certified(hours: float) -> Identity:
        csr = request(key, "works", "edge", "plant")
        made = authority.sign(csr, role="edge", name="plant", now=now, hosts=("127.0.0.1",), hours=hours)
        return Identity(key, made, authority.root)

    folder = certified(1).save(tmp_path / "edge").folder
    assert folder is not None
    above = Above.open(folder)
    tls = trust(folder / "cert.pem", folder / "key.pem")
    clock = [0.0]
    with at.serve(made / "large.onnx", port=0, tls=tls, above=above) as server:
        more = {"roots": str(tmp_path / "root.pem"), "limit": 5.0, "threshold": 0.0}
        service, counts = node(made, server.url, clock=lambda: clock[0], now=lambda: now + clock[0], **more)
        with service:
            service.predict(X[:1])
            assert counts["answered"] == 1
            clock[0] = 26 * 3600.0  # its key and its certificate are over
            service.predict(X[:1])
            assert counts["failed"] == 1
            certified(100).save(folder)
            above._now = lambda: now + clock[0]
            clock[0] += 100.0
            service.predict(X[:1])
            assert (counts["answered"], counts["failed"]) == (2, 1)


def test_features_leave_instead_of_rows(made: Path) -> None:
    large = (made / "large.onnx").read_bytes()
    head, tail = cut(large, "z")
    (made / "head.onnx").write_bytes(head)
    np.testing.assert_allclose(
        Model(tail).run(Model(head).run(X)["z"])["probabilities"], probabilities(made, "large"), atol=1e-6
    )
    with at.serve({"tail": tail}, port=0, above=Above.open(made / "plant")) as above:
        service, counts = node(made, above.url, send="features", head=str(made / "head.onnx"), threshold=0.0)
        with service:
            found = service.predict(X[:20])["probabilities"]
    np.testing.assert_allclose(found, probabilities(made, "large")[:20], atol=1e-5)
    assert counts["answered"] == 20
    for tensor, says in (("none", "has no value 'none' to cut at; it has flat, z"),):
        with pytest.raises(ConfigError, match=says):
            cut(large, tensor)
    with pytest.raises(StateError, match="not an ONNX model"):
        cut(b"rubbish", "z")


def test_a_cut_that_something_passes_beside_is_refused() -> None:
    h = onnx.helper
    value = h.make_tensor_value_info
    nodes = [
        *(h.make_node("Relu", ["x"], ["r"]), h.make_node("Neg", ["x"], ["n"])),
        h.make_node("Add", ["r", "n"], ["y"]),
    ]
    graph = h.make_graph(nodes, "m", [value("x", 1, ["k", 2])], [value("y", 1, ["k", 2])])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ConfigError, match="does not part the model"):
        cut(model.SerializeToString(), "r")


def test_the_doubt_of_a_share_of_rows(made: Path) -> None:
    model = Model((made / "small.onnx").read_bytes())
    for measure in ("margin", "entropy"):
        for share in (0.05, 0.15, 0.5, 1.0):
            found = calibrate(model, X, share, measure)
            assert found.share == np.mean(doubt(model.run(X), measure) > found.threshold)
            assert share - 1 / 400 <= found.share <= share or share == 1.0
    same = calibrate(model, np.tile(X[:1], (10, 1)), 0.15)
    assert same.share == 0.0  # rows that cannot be told apart go up together or not at all
    z = {"out": np.array([[2.0, 2.0], [50.0, 0.0]], np.float32)}
    for measure in ("margin", "entropy"):
        np.testing.assert_allclose(doubt(z, measure), [1.0, 0.0], atol=1e-6)
    with pytest.raises(DataError, match="two classes or more"):
        doubt({"y": np.zeros((3, 1), np.float32)})
    with pytest.raises(ConfigError, match="margin or entropy"):
        doubt(z, "feeling")
    with pytest.raises(ConfigError, match=r"share is in \(0, 1\]"):
        calibrate(model, X, 0.0)


def test_a_model_without_classes_asks_nobody(made: Path) -> None:
    joint = Joint(settings(made, "http://127.0.0.1:1"))
    assert joint.doubtful({"y": np.zeros((3, 1), np.float32)}).tolist() == []


def test_answers_are_packed_and_merged_or_refused() -> None:
    mine = {"label": np.array([0, 1, 0]), "p": np.ones((3, 2), np.float32)}
    there = {"label": np.array([1]), "p": np.zeros((1, 2), np.float32)}
    asked = unpack(pack({"name": "m", "version": 3}, there), 1)
    assert asked.model == {"name": "m", "version": 3}
    both = merged(mine, np.array([2]), asked)
    assert both is not None
    assert both["label"].tolist() == [0, 1, 1] and both["p"][2].tolist() == [0, 0]
    assert mine["label"].tolist() == [0, 1, 0]
    for wrong in (
        {"label": there["label"]},
        {**there, "p": np.zeros((1, 3), np.float32)},
        {**there, "label": np.array([1.0])},
    ):
        assert merged(mine, np.array([2]), Asked({}, wrong)) is None
    for bad in (b"", b"\xc1", pack({}, there)[:-1], pack({}, {"p": np.zeros((2, 2))})):
        with pytest.raises(ProtocolError, match="none to these rows"):
            unpack(bad, 1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"threshold": 2.0}, "threshold is in"),
        ({"share": 0.0}, "share is in"),
        ({"limit": 0.0}, "limit is above 0"),
        ({"send": "sample", "above": ("https://edge:1",)}, "readers is"),
        ({"send": "features", "above": ("https://edge:1",), "readers": "edge"}, "head is an ONNX file"),
        ({"head": "h.onnx"}, "head is an ONNX file"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**values)


def test_nothing_leaves_to_a_stranger() -> None:
    with pytest.raises(ConfigError, match="nothing leaves to a stranger"):
        Joint(Settings(send="sample", above=("https://edge:1",), readers="edge"))


def test_by_command(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from atoll.control.cli import main
    from atoll.control.cli_models import _joint

    monkeypatch.chdir(tmp_path)
    rows = "a,b,c,kind\n" + "\n".join(",".join(map(str, [*x, k % 2])) for k, x in enumerate(X[:60])) + "\n"
    Path("rows.csv").write_text(rows)
    argv = ["model", "doubt", str(made / "small.onnx"), "--data", "rows.csv", "--target", "kind"]
    assert main(argv) == 0
    text = 'above = ["http://127.0.0.1:1"]\nroots = "root.pem"\nsend = "sample"\nreaders = "edge"\n'
    text += capsys.readouterr().out
    (made / "joint.toml").write_text(text)
    asks = _joint(made / "joint.toml").settings
    assert 0 < asks.threshold < 1 and asks.roots == str(made / "root.pem")
    (made / "bad.toml").write_text('send = "everything"')
    for wrong in (
        ["--joint", str(made / "bad.toml")],
        ["--joint", "none.toml"],
        ["--identity", str(tmp_path)],
    ):
        assert main(["serve", str(made / "small.onnx"), "--port", "0", *wrong]) == 2


def test_control_a_refusal_is_told_to_who_asks_plainly(made: Path) -> None:
    """The node hides an upstream's refusals from its callers; asked directly it says why."""
    with at.serve(made / "large.onnx", port=0, above=Above.open(made / "plant")) as above:
        with pytest.raises(DataError, match="expected rows of 3 numbers"):
            above.predict(np.zeros((1, 4)))
        with pytest.raises(Refused, match="no such model"):
            above.predict(X[:1], "none")
