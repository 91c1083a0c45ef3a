"""A client that serves in integers: calibrated in its workplace, on its own rows, nothing left on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

import atoll as at
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


def test_a_client_serves_in_integers_what_others_serve_as_it_came(tmp_path: Path) -> None:
    rows = at.load_data("digits").train.x[:300].tolist()
    with Federation(tmp_path, DIGITS, edges=0) as fed:
        light, plain = fed.clients
        fed.set(light, int8=next(iter(fed.read(light)["data"])))
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
        a, b = (asked(fed, client, "/v1/predict", {"rows": rows}) for client in (light, plain))
        assert a["model"] == b["model"]
        p, q = (np.asarray(found["predictions"]["probabilities"]) for found in (a, b))
        assert 0 < np.abs(p - q).max() < 0.1
        assert np.mean(p.argmax(axis=1) == q.argmax(axis=1)) > 0.98
        fed.stop(light)
        fed.start(light)
        again = fed.until(lambda: listed(light) and listed(light)[0], what="the model after a restart")
        assert again["version"] == 1
        fed.until(lambda: listed(light)[0].get("variant") == "int8", what="the variant after a restart")
        assert list(fed.place(light).glob(".*.int8")) == []
        (graph,) = (fed.place(light) / "serving").rglob("*.onnx")
        assert b"QuantizeLinear" not in graph.read_bytes()
