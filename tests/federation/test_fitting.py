"""A pipeline is fitted by the members of a run, below an edge and under masks, and some die on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.control.config import parse
from atoll.serve.model import Model
from tests.federation import invariants
from tests.federation.processes import JOB, Federation, Nursery

pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
CONTRACT = {
    "name": "press",
    "label": "fails",
    "columns": {
        "heat": {"unit": "degC", "low": -40.0},
        "load": {"missing": True},
        "state": {"kind": "category", "values": ["idle", "run"]},
        "fails": {"kind": "flag"},
    },
}


def job(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    heat, load, state = rng.normal(60, 12, 150), rng.exponential(3.0, 150), rng.integers(0, 2, 150)
    lines = [
        f"{h:.3f},{'' if i % 5 == 0 else f'{w:.4f}'},{s},{int(h > 60)}\n"
        for i, (h, w, s) in enumerate(zip(heat, load, state, strict=True))
    ]
    (folder / "press.csv").write_text("heat,load,state,fails\n" + "".join(lines))
    data = {"name": "csv", "path": str(folder / "press.csv"), "target": "fails", "task": "classes"}
    data |= {"clients": 3, "holdout": 0.25, "contract": CONTRACT, "pipeline": {"fill": "mean"}}
    return {
        **JOB,
        "rounds": 1,
        "name": "press",
        "data": data,
        "algorithm": "fedavg",
        "exchange": {"name": "secure_sum"},
    }


def test_a_pipeline_is_fitted_whoever_dies_and_is_that_of_all_rows(tmp_path: Path) -> None:
    table = job(tmp_path)
    file = parse(table)
    want = at.fit_pipeline(file.sites(raw=True), at.Contract.of(CONTRACT))
    with Nursery() as nursery, Federation(tmp_path / "fed", table, nursery=nursery) as fed:
        first = {"coordinator": "drive.counted.after:7:kill", "client-1": "uplink.kept.after:3:kill"}
        for name in fed.names:
            fed.start(name, failpoints=first.get(name, ""))
        fed.until(lambda: fed.joined() >= {*fed.clients, *fed.edges}, what="everybody to join")
        run = fed.submit()
        fed.outlived({"client-1"})
        fed.until(lambda: fed.dead("coordinator"), what="the coordinator to die within the looks")
        fed.start("coordinator", failpoints="fitting.frozen.before:1:kill")
        fed.until(lambda: fed.dead("coordinator"), what="it to die before it freezes")
        assert fed.rounds(run) == 0
        fed.start("coordinator", failpoints="fitting.frozen.after:1:kill")
        fed.until(lambda: fed.dead("coordinator"), what="it to die after it has frozen")
        fed.start("coordinator")
        fed.finished(run)
        hub = fed.connect()
        assert at.Pipeline.of(hub.run(run).record["pipeline"]) == want
        graph = Model(hub.export("press", tmp_path / "press.onnx").read_bytes(), "press")
        fed.stop(*fed.names)
        with fed.store() as store:
            assert invariants.broken(store, run, expected=fed.expected(5, table), rounds=1) == []
    raw = file.sites(raw=True)
    assert np.isnan(raw.x).any()
    trained = at.simulate(file.job, file.sites(), seed=5)
    answers = trained.learner.answers(trained.params, want.rows(raw.x))
    for name, said in graph.run(raw.x.astype(np.float32)).items():
        np.testing.assert_allclose(said, answers[name], rtol=1e-5, atol=1e-5)
