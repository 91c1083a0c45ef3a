"""A client that serves in integers, calibrated in its workplace, nothing left on disk; and one that asks its
edge about rows it is unsure of, which asks the coordinator about some of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

import atoll as at
from atoll.learn.dense import softmax
from atoll.serve.joint import SPARE
from tests.federation.processes import JOB, Federation

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
DIGITS = {
    **JOB,
    "name": "digits",
    "rounds": 6,
    "data": {"name": "digits", "clients": 2, "holdout": 0.25},
    "learner": {"name": "softmax", "lr": 0.1},
    "algorithm": {"name": "fedavg"},
}


def asked(fed: Federation, name: str, path: str, body: object = None) -> dict:
    url = f"http://{fed.read(name)['predict']}{path}"
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=10) as answer:
        return dict(json.loads(answer.read()))


def known(folder: Path, name: str, surely: int | None = None) -> str:
    """A model whose answers are known: 0.1 of every class, or one class for sure."""
    learner, bias = softmax(features=64, outputs=10), np.zeros(10, np.float32)
    if surely is not None:
        bias[surely] = 50.0
    params = at.Update.of({"layer0.weight": np.zeros((64, 10), np.float32), "layer0.bias": bias})
    learner.export(params, folder / f"{name}.onnx", np.zeros((2, 64)))
    return str(folder / f"{name}.onnx")


def test_a_client_serves_in_integers_what_others_serve_as_it_came(tmp_path: Path) -> None:
    rows = at.load_data("digits").train.x[:300].tolist()
    with Federation(tmp_path, DIGITS, edges=1) as fed:
        light, plain = fed.clients
        fed.set(light, int8=next(iter(fed.read(light)["data"])))
        (edge,) = fed.edges
        often = {"send": "sample", "readers": "both", "threshold": 0.0, "share": 0.5, "limit": 9.0}
        fed.set("coordinator", models={"largest": known(tmp_path, "largest", surely=3)})
        fed.set(edge, models={"larger": known(tmp_path, "larger")}, joint=often)
        fed.set(plain, joint=often)  # both ask their parents
        fed.start_all()
        fed.finished(fed.submit())

        def listed(client: str) -> list[dict]:
            try:
                return asked(fed, client, "/v1/models")["models"]
            except OSError:  # it has not begun yet
                return []

        fed.until(lambda: listed(light) and listed(light)[0].get("variant") == "int8", what="the variant")
        fed.until(lambda: listed(plain), what="the model at the other")
        assert "variant" not in listed(plain)[0]
        for client in (light, plain):
            assert listed(client)[0]["classes"] == list("0123456789")
        a, b = (asked(fed, client, "/v1/predict", {"rows": rows}) for client in (light, plain))
        assert a["model"] == b["model"]
        assert b["above"]["model"]["name"] == "larger" and len(b["above"]["rows"]) == 0.5 * 300 + SPARE
        assert "above" not in a
        kept = np.setdiff1d(np.arange(300), b["above"]["rows"])
        p, q = (np.asarray(found["predictions"]["probabilities"]) for found in (a, b))
        further = b["above"]["above"]
        assert further["model"]["name"] == "largest" and len(further["rows"]) == 0.5 * 160 + SPARE
        np.testing.assert_allclose(q[further["rows"], 3], 1.0, atol=1e-6)
        np.testing.assert_allclose(q[np.setdiff1d(b["above"]["rows"], further["rows"])], 0.1, atol=1e-6)
        counts = {"asked": 160, "answered": 70, "passed": 90, "carried": 0, "late": 0, "failed": 0}
        live = lambda: {n["name"]: n["live"] for n in fed.connect().nodes()}[edge]  # noqa: E731
        fed.until(lambda: live().get("joint") == counts, what="what the edge answered")
        p, q = p[kept], q[kept]
        assert 0 < np.abs(p - q).max() < 0.1
        assert np.mean(p.argmax(axis=1) == q.argmax(axis=1)) > 0.98
        fed.stop(light)
        fed.start(light)
        again = fed.until(lambda: listed(light) and listed(light)[0], what="the model after a restart")
        assert again["version"] == 1
        fed.until(lambda: listed(light)[0].get("variant") == "int8", what="the variant after a restart")
        assert list(fed.place(light).glob(".*.int8")) == []
        fed.kill("coordinator")
        cut = asked(fed, plain, "/v1/predict", {"rows": rows})
        assert "above" not in cut["above"], "the edge goes on by itself"
        assert len(cut["above"]["rows"]) == 150
        (graph,) = (fed.place(light) / "serving").rglob("*.onnx")
        assert b"QuantizeLinear" not in graph.read_bytes()
