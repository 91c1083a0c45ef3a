"""A bad model in a federation of real processes: taken back at every node, and no request lost meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

import atoll as at
from atoll.control.engine.parcels import write_frames
from atoll.core.update import Update
from atoll.learn.dense import softmax
from atoll.privacy.keys import Identity, sign_model
from atoll.wire.codec import Message
from tests.federation.processes import JOB, Federation

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)

# A job that learns: two runs of it agree about most rows, whoever was in their cohorts.
DIGITS = {
    **JOB,
    "data": {**JOB["data"], "name": "digits"},
    "rounds": 12,
    "learner": {"name": "softmax", "lr": 0.1},
    "algorithm": {"name": "fedavg"},
}
CANARY = {"shadow": 0, "canary": 0.5, "first": 1.0}
WATCHED = {"error": 0.02, "disagreement": 0.3, "latency": None, "drift": None, "least": 40}
BLIND = {"error": None, "disagreement": None, "latency": None, "drift": None, "least": 40}
STAGED = {"shadow": 20, "canary": 0.5, "first": 0.3, "gates": {"least": 20, "latency": 1000.0, "error": 0.2}}


class Traffic(threading.Thread):
    """Asks one client's service all the while; how many were answered by each version, and what failed."""

    def __init__(self, address: str, rows: Any, labels: Any) -> None:
        super().__init__(daemon=True)
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.rows, self.labels = rows.tolist(), labels.tolist()
        self.answered: list[int] = []
        self.failed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        line = HTTPConnection(self.host, self.port, timeout=30)
        n = 0
        while not self.over.wait(0.003):
            n += 1
            row, label = (values[n % len(self.rows)] for values in (self.rows, self.labels))
            ticket = f"{self.port}-{n}"
            status, told = self._post(line, "/v1/predict", {"rows": [row], "ticket": ticket})
            if status != 200:
                self.failed.append(f"{status} {told}")
                continue
            self.answered.append(told["model"]["version"])
            if n % 2:
                self._post(line, "/v1/feedback", {"ticket": ticket, "labels": [label]})
        line.close()

    @staticmethod
    def _post(line: HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
        line.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = line.getresponse()
        return answer.status, json.loads(answer.read())


@contextmanager
def traffic(fed: Federation) -> Iterator[list[Traffic]]:
    test = at.load_data("digits")
    x = np.asarray(test.train.x if hasattr(test, "train") else test.x, np.float32)
    y = np.asarray(test.train.y if hasattr(test, "train") else test.y)
    streams = [Traffic(fed.read(name)["predict"], x, y) for name in fed.clients]
    for stream in streams:
        stream.start()
    try:
        yield streams
    finally:
        for stream in streams:
            stream.over.set()
        for stream in streams:
            stream.join()


def spoiled(fed: Federation) -> int:
    """A further version in the registry, made of the first one with its signs changed; its number."""
    place = fed.place("coordinator")
    with fed.store() as store:
        first = store.model("wine", 1)
        learner = softmax(features=64, outputs=10)
        good = load(store.blobs.read(first["blob"]))
        names = [name for name, _ in learner.init(np.random.default_rng(0)).items()]
        params = Update.of({name: -good[name] for name in names})
        learner.export(params, fed.folder / "bad.onnx", np.zeros((2, 64), np.float32))
        graph = (fed.folder / "bad.onnx").read_bytes()
        parcel = write_frames(store, Message("model", {}, {"onnx": np.frombuffer(graph, np.uint8)}))
        store.blobs.keep(parcel, "onnx bad")
        identity = Identity.open(place / "pki" / "identity")
        kept = json.loads(first["manifest"])["manifest"]
        fields = {k: kept[k] for k in ("federation", "run", "name")} | {"created": time.time()}
        fields |= {
            "sha256": hashlib.sha256(graph).hexdigest(),
            "order": {"number": 1, "stage": "held"},
        }
        blob = store.blobs.put(b"bad")
        return store.model_add(
            first["run"],
            "wine",
            blob,
            lambda version: sign_model(identity.key, identity.chain, {**fields, "version": version}),
            {"onnx": parcel},
        )


def stages(hub: Any) -> dict[str, tuple[int, int, str]]:
    return {s["node"]: (s["version"], s["trial"], s["stage"]) for s in hub.stages("wine")["nodes"]}


def test_a_bad_model_is_taken_back_everywhere_and_without_gates_it_becomes_champion(tmp_path: Path) -> None:
    with Federation(tmp_path, {**DIGITS, "rollout": "held"}) as fed:
        fed.start_all()
        run = fed.submit()
        fed.finished(run)
        with fed.connect() as hub:
            assert stages(hub) == {}  # it is held
            hub.rollout("wine", 1, shadow=0, canary=0.0)
            everybody = dict.fromkeys(fed.clients, (1, 0, "served"))
            fed.until(lambda: stages(hub) == everybody, what="the first version")
            fed.until(lambda: hub.stages("wine")["serves"] == 1, what="the first version for all")
        fed.stop("coordinator")
        assert spoiled(fed) == 2
        fed.start("coordinator", failpoints="store.order_signed.before_commit:2:kill")
        with traffic(fed) as streams:
            with fed.connect() as hub:
                hub.rollout("wine", 2, **CANARY, gates=WATCHED, reason="try it")
            fed.until(lambda: fed.dead("coordinator"), what="the end of the coordinator at the order back")
            fed.start("coordinator")
            with fed.connect() as hub:
                fed.until(
                    lambda: (
                        {s[0] for s in stages(hub).values()} == {1}
                        and hub.stages("wine")["orders"][0]["kind"] == "rollback"
                        and not hub.stages("wine")["trial"]
                        and all(s["number"] == 4 for s in hub.stages("wine")["nodes"])
                    ),
                    what="everybody back",
                )
                told = hub.stages("wine")
                assert [o["state"] for o in told["orders"][1:2]] == ["back"], told
                assert "took it back" in told["orders"][0]["reason"]
                assert {n["models"]["wine"]["version"] for n in hub.nodes() if n["role"] == "client"} == {1}
                seen = [sum(v == 2 for v in s.answered) for s in streams]
                assert sum(seen) > 0, "nobody tried it"
                begun = [len(s.answered) for s in streams]
                hub.rollout("wine", 2, **CANARY, gates=BLIND, reason="control: nobody looks")
                fed.until(lambda: hub.stages("wine")["serves"] == 2, what="the bad model for all")
                assert {s[0] for s in stages(hub).values()} == {2}
                hub.rollback("wine", 1, reason="it was a test")
                everybody = dict.fromkeys(fed.clients, (1, 2, "back"))
                fed.until(lambda: stages(hub) == everybody, what="back by order")
                fed.finished(hub.submit({**DIGITS, "rollout": STAGED}, seed=JOB["seed"]).id)
                everybody = dict.fromkeys(fed.clients, (3, 0, "served"))
                fed.until(lambda: stages(hub) == everybody, what="the next run's model, by itself")
                fed.until(lambda: hub.stages("wine")["serves"] == 3, what="it is for all")
        assert [s.failed for s in streams] == [[]] * len(streams)
        assert all(len(s.answered) > n > 0 for s, n in zip(streams, begun, strict=True))
