"""A plan's learner where there is no PyTorch: it trains, evaluates, exports, and repeats itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.adapt.plan_learner import plan_learner
from atoll.core.errors import DataError, MisuseError
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.serve.export import verify
from atoll.serve.model import Model
from atoll.wire.initialisers import filled
from tests.serve.plans import FILE, Labelled, golden

pytest.importorskip("onnxruntime")

PERSONAL = [at.fine_tune(2), at.fedper(), at.fedrep(), at.ditto(0.5), at.fedprox(0.1), at.scaffold()]


def test_it_learns_and_repeats_itself_to_the_bit() -> None:
    learner, data = plan_learner(FILE), [Labelled(30, seed) for seed in range(3)]
    job = at.Job(learner=learner, rounds=4, sites=False)
    run, again = (at.simulate(job, data, seed=5) for _ in range(2))
    assert np.array_equal(run.params.buffer, again.params.buffer)
    found = learner.evaluate(run.params, Labelled(200, 9))
    assert found["accuracy"] > 0.8 > learner.evaluate(golden().first, Labelled(200, 9))["accuracy"]


@pytest.mark.parametrize("algorithm", PERSONAL, ids=lambda a: a.name)
def test_personal_models_are_learnt_by_the_same_plan(algorithm: Any) -> None:
    data = [Labelled(20, seed) for seed in range(3)]
    job = at.Job(learner=plan_learner(FILE), algorithm=algorithm, rounds=3, sites=False)
    run = at.simulate(job, data)
    assert run.params.finite()
    served = getattr(run.learner, "served", lambda params: params)(run.params)
    assert plan_learner(FILE).evaluate(served, Labelled(100, 9))["loss"] < 3.0


def test_fedrep_moves_the_head_first_and_the_body_after_it() -> None:
    learner, first = plan_learner(FILE), golden().first
    head = learner.head_leaves()
    assert head == {"2.weight", "2.bias"}
    for part in (head.__contains__, lambda name: name not in head):
        change = learner.fit(first, Labelled(20), FitContext(Rng.of(0), moves=part)).update
        assert {name for name in change if np.any(change[name])} == {name for name in first if part(name)}


def test_the_device_writes_its_model_without_onnx(tmp_path: Any) -> None:
    learner, x = plan_learner(FILE), Labelled(50).x
    params = golden().first.scale(1.5)
    learner.export(params, tmp_path / "m.onnx", x)
    assert verify(tmp_path / "m.onnx", learner, params, x) <= 1e-6
    model = Model((tmp_path / "m.onnx").read_bytes())
    assert model.row == (4,) and model.answers == ("label", "probabilities")
    want = np.tanh(x @ params["0.weight"].T + params["0.bias"]) @ params["2.weight"].T + params["2.bias"]
    assert np.array_equal(model.run(x)["label"], want.argmax(1))


def test_leaves_go_only_where_they_fit() -> None:
    graph, first = golden().graphs["predict"], dict(golden().first)
    with pytest.raises(MisuseError, match=r"'2\.bias' as float32 of shape \(3,\)"):
        filled(graph, {**first, "2.bias": np.zeros(4, np.float32)})
    with pytest.raises(MisuseError, match="no leaf 'w'"):
        filled(graph, {**first, "w": np.zeros(4, np.float32)})


def test_data_and_params_that_do_not_fit_are_named() -> None:
    learner, first = plan_learner(FILE), golden().first
    bad = Labelled(5)
    bad.x = bad.x[:, :3]
    with pytest.raises(DataError, match="rows of shape"):
        learner.fit(first, bad, FitContext(Rng.of(0)))
    bad = Labelled(5)
    bad.y = bad.y + 3
    with pytest.raises(DataError, match=r"0\.\.2"):
        learner.fit(first, bad, FitContext(Rng.of(0)))
    with pytest.raises(MisuseError, match="at leaf"):
        learner.fit({"w": np.zeros(3)}, Labelled(5), FitContext(Rng.of(0)))
    empty = learner.fit(first, Labelled(0), FitContext(Rng.of(0)))
    assert empty.weight == 0 and not empty.update.buffer.any()


def test_neither_torch_nor_onnx_is_loaded(tmp_path: Any) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'pandas', 'scipy'): sys.modules[name] = None\n"
        "import numpy as np, atoll as at\n"
        "from types import SimpleNamespace\n"
        "learner = at.plan_learner(sys.argv[1])\n"
        "rng = np.random.default_rng(0)\n"
        "data = [SimpleNamespace(x=rng.normal(size=(20, 4)), y=rng.integers(0, 3, 20)) for _ in range(2)]\n"
        "run = at.simulate(at.Job(learner=learner, rounds=2, sites=False), data)\n"
        "run.export(sys.argv[2], data[0].x)\n"
        "assert learner.answers(run.params, data[0].x)['probabilities'].shape == (20, 3)\n"
    )
    words = [sys.executable, "-c", code, FILE, tmp_path / "m.onnx"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
