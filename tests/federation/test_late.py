"""Labels that come later to a federation of processes: windows of what devices say over a broker, a pipeline
fitted by all, and a watch that hears each label once, also of a client that was killed meanwhile.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import msgspec
import numpy as np
import pytest

import atoll as at
from atoll.control.config import dump
from atoll.control.engine import sensing
from atoll.control.engine.datasets import Held, sensed
from atoll.control.engine.recent import Rows
from atoll.control.engine.safe import opened
from atoll.control.engine.watch import Known
from atoll.control.settings import Client, read
from atoll.core.errors import StateError
from tests.federation.processes import JOB, Federation, Nursery
from tests.sense import broker as brokers
from tests.sense.test_mqtt import Devices

pytest.importorskip("onnx")
pytestmark = [
    pytest.mark.skipif(
        not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
    ),
    pytest.mark.skipif(bool(brokers.missing()), reason=brokers.missing() or "there is one"),
]
CONTRACT = {
    "name": "press",
    "label": "rises",
    "columns": {"u": {"unit": "degC"}, "v": {"missing": True}, "rises": {"kind": "flag"}},
}
DATA = {"source": "press", "windows": True, "holdout": 0.25}
LAYOUT = {**JOB, "data": {"name": "wine", "clients": 2, "holdout": 0.25}}
TABLE = {
    **JOB,
    "name": "press",
    "rounds": 2,
    "data": {"name": "press", "contract": at.Contract.of(CONTRACT).table(), "pipeline": {"fill": "mean"}},
    "learner": {"name": "softmax", "lr": 0.5, "epochs": 5},
    "algorithm": {"name": "fedavg"},
}
DEVICES, LATE, FIRST, ALL = ("a", "b"), 2.0, 40, 70


def settings(client: str, port: int) -> dict:
    way = {"url": f"mqtt://127.0.0.1:{port}"}
    source = {
        "contract": "press.toml",
        "late": LATE,
        "window": {"size": 3},
        "mqtt": {**way, "topic": f"{client}/{{source}}/data"},
        "labels": {"mqtt": {**way, "topic": f"{client}/{{source}}/label"}},
    }
    watch = {"source": "press", "data": "press", "stable": 2, "least": 20}
    renew = {"drift": False, "recent": 10_000}
    return {"sources": {"press": source}, "data": {"press": DATA}, "watch": watch, "renew": renew}


class Press:
    """What the devices of one client say, and what of it is true: a message each."""

    def __init__(self, client: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.client, self.now = client, time.time() - 200
        self.u = 500 + 40 * rng.normal(size=(len(DEVICES), ALL))
        self.v = np.where(rng.random(self.u.shape) < 0.2, np.nan, rng.normal(size=self.u.shape))

    def readings(self, begin: int, end: int) -> Iterator[tuple[str, object]]:
        for i in range(begin, end):
            for d, name in enumerate(DEVICES):
                said = {"at": self.now + i, "id": i, "u": self.u[d, i], "v": self.v[d, i]}
                missing = [key for key, x in said.items() if np.isnan(x)]
                yield f"{self.client}/{name}/data", {k: x for k, x in said.items() if k not in missing}

    def labels(self, begin: int, end: int) -> Iterator[tuple[str, object]]:
        for i in range(begin, end):
            for d, name in enumerate(DEVICES):
                rises = bool(self.u[d, i] > self.u[d, max(0, i - 2)])
                yield f"{self.client}/{name}/label", {"id": i, "rises": rises, "sequence": 1}


def counts(place: Path) -> dict[str, int]:
    try:
        made = read(place / "client.toml", Client)
        whose = sensing.contract(made, "press")
        with sensing.stored(made, "press", opened(made), whose) as store:
            return store.counts()
    except StateError:  # it has not begun yet
        return {"stored": 0, "labelled": 0}


def data(place: Path) -> Held:
    """The data set of a client, as it is now."""
    made = read(place / "client.toml", Client)
    return sensed("press", DATA, made, opened(made))


def files(place: Path) -> list[Path]:
    """Rows whose label a client's watch has heard; how many lie in each, its name says."""
    return [f for f in (place / "watch" / "rows").glob("*.*") if f.suffix[1:].isdigit()]


def heard(place: Path) -> int:
    return sum(int(f.suffix[1:]) for f in files(place))


def kept(place: Path) -> tuple[list[tuple[bytes, float]], Known]:
    """These rows, and what the watch knows."""
    vault = opened(read(place / "client.toml", Client))
    parts = [msgspec.msgpack.decode(vault.read(f), type=Rows).examples(classes=True) for f in files(place)]
    known = msgspec.msgpack.decode(vault.read(place / "watch" / "state"), type=Known)
    return [pair for part in parts for pair in pairs(part)], known


def asked(url: str, body: object) -> dict:
    ask = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310  our own
    with urlopen(ask, timeout=10) as answer:  # noqa: S310
        return dict(json.loads(answer.read()))


def pairs(rows: at.Examples) -> list[tuple[bytes, float]]:
    return [(x.tobytes(), float(y)) for x, y in zip(rows.x, rows.y, strict=True)]


def test_a_federation_learns_from_windows_and_hears_what_was_true_of_them_once(tmp_path: Path) -> None:
    with (
        brokers.running(tmp_path / "broker") as broker,
        Nursery() as nursery,
        Federation(tmp_path / "fed", LAYOUT, edges=0, nursery=nursery) as fed,
    ):
        places = {name: fed.place(name) for name in fed.clients}
        presses = {name: Press(name, seed) for seed, name in enumerate(fed.clients)}
        for name, place in places.items():
            fed.set(name, **settings(name, broker.port))
            (place / "press.toml").write_text(dump(CONTRACT))
        fed.start_all()
        fed.until(lambda: fed.joined() >= set(fed.clients), what="everybody to join")
        saved = tmp_path / "broker" / "mosquitto.db"
        topics = [f"{name}/+/{what}".encode() for name in fed.clients for what in ("data", "label")]
        fed.until(lambda: saved.exists() and all(t in saved.read_bytes() for t in topics), what="to listen")
        devices = Devices(broker.port)
        for press in presses.values():
            devices.send(*press.labels(0, FIRST // 2), *press.readings(0, FIRST), *press.labels(0, FIRST))
        full = {"stored": 2 * FIRST, "labelled": 2 * FIRST}
        fed.until(lambda: all(full.items() <= counts(p).items() for p in places.values()), what="readings")
        held = {name: data(place) for name, place in places.items()}
        run = fed.submit(job=TABLE)
        fed.finished(run)
        want = at.fit_pipeline([h.train for h in held.values()], at.Contract.of(CONTRACT))
        assert at.Pipeline.of(fed.connect().run(run).record["pipeline"]) == want

        first, other = fed.clients
        url = f"http://{fed.read(first)['predict']}/v1/predict"
        whole = [x for x in held[first].train.x if np.isfinite(x).all()]

        def served() -> list:
            with suppress(OSError):  # it has not come yet
                return asked(url, {"rows": [x.tolist() for x in whole]})["predictions"]["label"]
            return []

        fed.until(served, what="the model to serve raw windows")
        right = np.mean([label == (x[2, 0] > x[0, 0]) for label, x in zip(served(), whole, strict=True)])
        assert right > 0.9

        devices.send(*presses[first].readings(FIRST, ALL), *presses[first].labels(FIRST - 5, FIRST + 10))
        fed.kill(first)
        devices.send(*presses[first].labels(FIRST, ALL), *presses[other].labels(FIRST, ALL))
        fed.start(first)
        devices.send(*presses[other].readings(FIRST, ALL))
        devices.close()
        final = len(DEVICES) * (ALL - int(LATE) - 2)  # the first two readings end no window
        fed.until(lambda: {heard(place) for place in places.values()} == {final}, what="labels to be heard")
        fed.stop(*fed.names)
        for place in places.values():
            rows, known = kept(place)
            learnt = data(place)
            assert learnt.test is not None
            assert len(set(rows)) == len(rows) == final
            assert set(rows) <= {*pairs(learnt.train), *pairs(learnt.test)}, "bit for bit what is learnt from"
            assert known.monitor is not None
            assert known.monitor.errors is not None and known.monitor.errors.adwin.seen >= 20
