"""A finished run's ONNX answers as its source does, or is none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.adapt.plan import Plan
from atoll.control.engine.finished import _onnx
from atoll.control.engine.work import Work
from atoll.core.update import Update
from atoll.serve.model import Model
from tests.engine.watching import TABLE, VALUES
from tests.serve.plans import FILE

pytest.importorskip("onnx")
PLAN = Plan.read(FILE.read_bytes())
CONTRACT = {"name": "two", "columns": {"u": {}, "v": {}}}
PIPELINE = at.fit_pipeline(
    at.Sites.of({"a": (np.arange(12.0).reshape(6, 2), np.arange(6.0))}, columns=("u", "v")),
    at.Contract.of(CONTRACT),
)


def works() -> dict[str, Work]:
    values = {**VALUES, "federation": "lagoon"}
    learner = {"name": "plan", "sha256": PLAN.sha256, "blob": "0" * 64}
    wide = {"features": 4, "outputs": 3, "classes": ["a", "b", "c"], "table": {**TABLE, "learner": learner}}
    data = {"name": "line", "contract": CONTRACT, "pipeline": PIPELINE.table()}
    piped = {**TABLE, "data": data}
    return {
        "dense": Work(json.dumps(values).encode()),
        "plan": Work(json.dumps({**values, **wide}).encode(), plan=PLAN),
        "pipeline": Work(json.dumps({**values, "table": piped}).encode()),
        "windows": Work(json.dumps({**values, "features": [3, 2], "table": piped}).encode()),
    }


class Otherwise:
    """A learner that exports something else than it answers."""

    def __init__(self, learner: Any) -> None:
        self.answers, self.export_right = learner.answers, learner.export

    def export(self, params: Update, path: Path, example: Any) -> None:
        self.export_right(params.scale(1.01), path, example)


@pytest.mark.parametrize("kind", ["dense", "plan", "pipeline", "windows"])
def test_it_is_compared_with_its_source(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = works()[kind]
    params = Update.of(work.learner.init(np.random.default_rng(3)))
    params = Update(params.layout, params.buffer + np.float32(0.5))
    graph = _onnx(work, params, tmp_path / "model.onnx")
    assert graph is not None and Model(graph).row
    with caplog.at_level(logging.WARNING, "atoll.coordinator"):
        work.__dict__["learner"] = Otherwise(work.learner)
        assert _onnx(work, params, tmp_path / "model.onnx") is None
    assert "differ from its source's by" in caplog.text
