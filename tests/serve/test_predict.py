"""The prediction service over HTTP: right answers, clear refusals, and no request lost by a swap."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer

from atoll.core.errors import ConfigError, DataError, StateError
from atoll.learn.dense import linear, mlp
from atoll.serve import predict
from atoll.serve.models import Shelf

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


WORD = "right"


def line(tmp_path: Path, slope: float) -> bytes:
    learner = linear(2, 1)
    params = learner.init(np.random.default_rng(0)).map(lambda b: np.array([slope, 0.0, 0.5], np.float32))
    learner.export(params, tmp_path / "line.onnx", np.zeros((1, 2)))
    return (tmp_path / "line.onnx").read_bytes()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf()
    made.put("line", 1, line(tmp_path, 2.0))
    return made


def ask(shelf: Shelf, talk: Callable[[TestClient], Awaitable[Any]], **more: Any) -> Any:  # type: ignore[type-arg]
    async def run() -> Any:
        async with TestClient(TestServer(predict.app(shelf, **more))) as client:
            return await talk(client)

    return asyncio.run(run())


def post(body: Any, **more: Any) -> Any:
    async def talk(client: Any) -> Any:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **more}
        async with client.post("/v1/predict", data=BytesIO(sent), headers=headers) as answer:
            return answer.status, await answer.json()

    return talk


def test_rows_are_answered_in_order_by_the_named_model(shelf: Shelf, tmp_path: Path) -> None:
    status, answer = ask(shelf, post({"rows": [[1, 9.5], [-2, 0], [0.25, 1]]}))
    assert (status, answer["model"]) == (200, {"name": "line", "version": 1})
    assert answer["predictions"] == {"y": [[2.5], [-3.5], [1.0]]}
    net = mlp((4,), features=6, outputs=3)
    params = net.init(np.random.default_rng(1))
    net.export(params, tmp_path / "net.onnx", np.zeros((1, 2, 3)))
    shelf.put("net", 7, (tmp_path / "net.onnx").read_bytes())
    rows = np.random.default_rng(2).normal(size=(5, 2, 3))
    status, answer = ask(shelf, post({"rows": rows.tolist(), "model": "net"}))
    want = net.answers(params, rows.astype(np.float32))
    assert status == 200
    assert answer["model"] == {"name": "net", "version": 7}
    assert answer["predictions"]["label"] == want["label"].tolist()
    np.testing.assert_allclose(answer["predictions"]["probabilities"], want["probabilities"], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "expected {"),
        (b"[[1, 2]]", "expected {"),
        (b'{"rows": [[1, 2]], "more": 1}', "expected {"),
        (b'{"rows": [[1, 2]', "expected {"),
        (b"\xff\xfe", "expected {"),
        ({"rows": []}, "expected 1 to 10000 rows, got 0"),
        ({"rows": [[1.0, 2.0]] * 10_001}, "expected 1 to 10000 rows, got 10001"),
        ({"rows": [[1.0]]}, r"expected rows of 2 numbers, got shape \[1\]"),
        ({"rows": [[1.0, 2.0], [1.0]]}, "expected rows of 2 numbers, each a list of numbers"),
        ({"rows": [1.0, 2.0]}, "expected rows of 2 numbers"),
        ({"rows": [[[1.0, 2.0]]]}, "expected rows of 2 numbers"),
        ({"rows": [["1", "2"]]}, "expected rows of 2 numbers"),
        ({"rows": [[True, 2]]}, "expected rows of 2 numbers"),
        ({"rows": [[None, 2]]}, "expected rows of 2 numbers"),
        ({"rows": {"a": 1}}, "expected rows of 2 numbers"),
        (b'{"rows": [[NaN, 1]]}', "expected {"),
        (b'{"rows": [[1e39, 1]]}', "beyond float32"),
        (b'{"rows": [[1e999, 1]]}', "expected"),
        (b'{"rows": ' + b"[" * 5000 + b"]" * 5000 + b"}", "expected"),
    ],
)
def test_bad_rows_are_refused_with_what_was_expected(shelf: Shelf, body: Any, says: str) -> None:
    status, answer = ask(shelf, post(body))
    assert status == 400
    assert re.search(says, answer["error"]), answer


def test_an_answer_that_names_no_cell(shelf: Shelf) -> None:
    """What somebody sent is never sent back, and a huge body is not read."""
    for body in ({"rows": [[123456789, "x987"]]}, {"rows": [[1e39, 123456789]]}):
        _, answer = ask(shelf, post(body))
        assert "123456789" not in answer["error"] and "x987" not in answer["error"]
    status, answer = ask(shelf, post(b'{"rows": [[' + b"1," * (predict.BODY // 2) + b"1]]}"))
    assert (status, answer["error"][:18]) == (413, "a request has at m")


def test_which_model(shelf: Shelf, tmp_path: Path) -> None:
    assert ask(Shelf(), post({"rows": [[1, 2]]}))[0] == 503
    status, answer = ask(shelf, post({"rows": [[1, 2]], "model": "../etc"}))
    assert (status, answer["error"]) == (404, "no such model: there is line")
    shelf.put("second", 1, line(tmp_path, 1.0))
    status, answer = ask(shelf, post({"rows": [[1, 2]]}))
    assert (status, answer["error"]) == (404, "say which model: line, second")


def test_what_is_served_can_be_read(shelf: Shelf) -> None:
    async def talk(client: Any) -> Any:
        async with client.get("/v1/models") as listed, client.get("/healthz") as health:
            return await listed.json(), health.status, await health.json()

    listed, status, health = ask(shelf, talk)
    assert listed == {
        "models": [{"name": "line", "version": 1, "row": [2], "answers": ["y"]}],
        "problems": {},
    }
    assert (status, health) == (200, {"ready": True})
    assert ask(Shelf(), talk)[1:] == (503, {"ready": False})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer wrörng"}, 401),
        ({"Authorization": "Bearer right"}, 200),
        ({"Authorization": "Bearer right", "Host": "evil.example"}, 421),
        ({"Authorization": "Bearer right", "Host": "localhost:1234"}, 200),
        ({"Authorization": "Bearer right", "Host": "[::1]:80"}, 200),
        ({"Authorization": "Bearer right", "Content-Type": "text/plain"}, 415),
    ],
)
def test_who_may_ask(shelf: Shelf, headers: dict[str, str], status: int) -> None:
    got, answer = ask(shelf, post({"rows": [[1, 2]]}, **headers), token=WORD)
    assert got == status
    assert ("error" in answer) == (status != 200)


def test_it_listens_on_this_machine_only_unless_it_has_tls_and_a_token(shelf: Shelf) -> None:
    async def talk() -> Any:
        for more in ({}, {"token": "t"}):
            with pytest.raises(ConfigError, match="can be reached from other machines"):
                await predict.serve(shelf, "192.0.2.1", **more)
        runner = await predict.serve(shelf, port=0)
        port = runner.addresses[0][1]
        with pytest.raises(StateError, match="cannot listen on"):
            await predict.serve(shelf, port=port)
        async with (
            ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}/v1/predict", json={"rows": [[1, 0]]}) as answer,
        ):
            found = await answer.json()
        await runner.cleanup()
        return found["predictions"]

    assert asyncio.run(talk()) == {"y": [[2.5]]}


def test_a_swap_loses_no_request_and_mixes_no_versions(shelf: Shelf, tmp_path: Path) -> None:
    """Requests run all the while; each is answered by one version, and says which."""
    models = {version: line(tmp_path, float(version)) for version in range(1, 21)}
    shelf.put("line", 1, models[1])

    async def talk(client: Any) -> Any:
        seen: list[int] = []

        async def keep_asking() -> None:
            while not seen or seen[-1] < 20:
                async with client.post("/v1/predict", json={"rows": [[1, 0]] * 50}) as answer:
                    assert answer.status == 200
                    told = await answer.json()
                version = told["model"]["version"]
                assert told["predictions"]["y"] == [[version + 0.5]] * 50
                seen.append(version)

        async def swap() -> None:
            for version in range(2, 21):
                await asyncio.to_thread(shelf.put, "line", version, models[version])

        await asyncio.gather(*(keep_asking() for _ in range(4)), swap())
        return seen

    assert set(ask(shelf, talk)) >= {20}


def test_more_than_it_can_take_is_told_to_come_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "WAITING", 0)
    status, answer = ask(shelf, post({"rows": [[1, 2]]}))
    assert (status, answer["error"]) == (503, "too many requests at once: come again")


def test_a_model_that_reads_rows_of_any_width_is_asked_as_it_stands() -> None:
    assert predict.read_rows(b"[[1, 2, 3]]", (None,)).shape == (1, 3)
    assert predict.read_rows(b"[1, 2, 3]", ()).shape == (3,)
    with pytest.raises(DataError, match="rows of some numbers"):
        predict.read_rows(b"[[1], [1, 2]]", (None,))
