"""Distillation: its loss and gradient by the paper's formula, students that learn more than labels say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import ConfigError, DataError
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.learn.distil import soft

T, ALPHA = 3.0, 0.7
RNG = np.random.default_rng(1)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 40)
LOGITS = RNG.normal(size=(40, 3)).astype(np.float32) * 2


def loss(z: Any) -> float:
    """The formula, row by row, in float64."""

    def log_softmax(a: Any) -> Any:
        return a - np.log(np.exp(a).sum())

    total = 0.0
    for zi, ti, yi in zip(np.asarray(z, np.float64), LOGITS.astype(np.float64), Y, strict=True):
        p = np.exp(log_softmax(ti / T))
        kl = (p * (log_softmax(ti / T) - log_softmax(zi / T))).sum()
        total += ALPHA * T**2 * kl - (1 - ALPHA) * log_softmax(zi)[yi]
    return total


def test_the_loss_and_its_gradient() -> None:
    z = RNG.normal(size=(40, 3))
    lesson = np.concatenate([LOGITS, Y[:, None]], axis=1)
    d, total, hits = soft(T, ALPHA, z[None], lesson[None])
    assert total[0] == pytest.approx(loss(z), rel=1e-6)
    assert hits[0] == (z.argmax(axis=1) == Y).sum()
    for row, k in ((0, 0), (7, 2), (39, 1)):
        step = np.zeros_like(z)
        step[row, k] = 1e-5
        assert d[0, row, k] == pytest.approx((loss(z + step) - loss(z - step)) / 2e-5, rel=1e-4)


def test_alpha_0_is_training_alone_and_the_engines_agree() -> None:
    ctx = FitContext(Rng.of(3))
    student = at.softmax(features=5, outputs=3, lr=0.1, epochs=2, kernel="numpy")
    params = student.init(np.random.default_rng(0))
    data = SimpleNamespace(x=X, y=Y)
    alone = student.fit(params, data, ctx)
    same = at.distil(lambda x: LOGITS, student, alpha=0.0).fit(params, data, ctx)
    np.testing.assert_allclose(same.update.buffer, alone.update.buffer, atol=1e-6)

    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(5, 3)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
    other = at.torch_learner(module, lr=0.1, epochs=2, batch_size=32)
    mine = at.distil(lambda x: LOGITS, student, T, ALPHA).fit(params, data, ctx).update
    theirs = at.distil(lambda x: LOGITS, other, T, ALPHA).fit(other.init(np.random.default_rng(0)), data, ctx)
    np.testing.assert_allclose(theirs.update["weight"].T, mine["layer0.weight"], atol=1e-5)
    np.testing.assert_allclose(theirs.update["bias"], mine["layer0.bias"], atol=1e-5)


@pytest.fixture(scope="module")
def digits() -> Any:
    pytest.importorskip("sklearn")
    found = at.load_data("digits").train
    held = np.arange(len(found)) % 5 == 4
    return SimpleNamespace(train=found[~held], test=found[held])


def test_students_at_sites_learn_more_from_a_teacher_than_from_few_labels(digits: Any) -> None:
    """The teacher learnt from all rows; half of the labels that the students see are wrong."""
    rows, rng = digits.train, np.random.default_rng(0)
    teacher = at.simulate(
        at.Job(at.mlp((100,), lr=0.3, epochs=20), rounds=2), at.Sites.of([(rows.x, rows.y)]), seed=1
    )
    noisy = np.where(rng.random(len(rows)) < 0.5, rng.integers(0, 10, len(rows)), rows.y)
    parts = np.array_split(rng.permutation(len(rows)), 4)
    sites = at.Sites.of([(rows.x[p], noisy[p]) for p in parts])
    student = at.mlp((10,), lr=0.3)

    def accuracy(learner: Any) -> float:
        run = at.simulate(at.Job(learner, rounds=15), sites, seed=2)
        return float(run.learner.evaluate(run.params, digits.test, FitContext(Rng.of(0)))["accuracy"])

    alone, taught = accuracy(student), accuracy(at.distil(teacher, student))
    assert taught > alone + 0.02
    assert taught > 0.88


def test_teachers_of_every_kind_say_the_same(digits: Any, tmp_path: Any) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from atoll.serve.model import Model

    rows = digits.train[:200]
    run = at.simulate(at.Job(at.softmax(lr=0.02), rounds=2), at.Sites.of([(rows.x, rows.y)]), seed=1)
    model = Model(run.export(tmp_path / "t.onnx").read_bytes())
    student = at.softmax(features=64, outputs=10, lr=0.02)
    params = student.init(np.random.default_rng(0))
    ways = (run, model, lambda x: np.log(run.learner.answers(run.params, x)["probabilities"]))
    updates = [at.distil(way, student).fit(params, rows, FitContext(Rng.of(1))).update for way in ways]
    for other in updates[1:]:
        np.testing.assert_allclose(other.buffer, updates[0].buffer, atol=1e-4)


def test_a_torch_run_teaches_and_rows_are_asked_once() -> None:
    torch = pytest.importorskip("torch")
    learner = at.torch_learner(torch.nn.Linear(5, 3), lr=0.1)
    run = at.simulate(at.Job(learner, rounds=1), at.Sites.of([(X, Y)]), seed=1)
    want = X @ run.params["weight"].T + run.params["bias"]
    np.testing.assert_allclose(learner.logits(run.params, X), want, atol=1e-5)
    asked: list[int] = []

    def teacher(x: Any) -> Any:
        asked.append(len(x))
        return learner.logits(run.params, x)

    sites = at.Sites.of([(X[:30], Y[:30]), (X[30:], Y[30:])])
    at.simulate(at.Job(at.distil(teacher, at.softmax()), rounds=4), sites, seed=1)
    assert sorted(asked) == [10, 30]
    at.simulate(at.Job(at.distil(run, at.softmax()), rounds=1), sites, seed=1)


def test_what_cannot_be_taught_is_said() -> None:
    student = at.softmax(features=5, outputs=3)
    params, ctx = Update.of(student.init(np.random.default_rng(0))), FitContext(Rng.of(0))
    for temperature, alpha in ((0, 0.5), (1, 1.5), (float("nan"), 0.5)):
        with pytest.raises(ConfigError, match="temperature > 0 and alpha in"):
            at.distil(lambda x: LOGITS, student, temperature, alpha)
    with pytest.raises(ConfigError, match="object cannot be taught"):
        at.distil(lambda x: LOGITS, object())
    with pytest.raises(ConfigError, match="int is no teacher"):
        at.distil(3, student)
    with pytest.raises(ConfigError, match="only a softmax learner can be taught"):
        at.distil(lambda x: LOGITS, at.logistic(features=5)).fit(params, SimpleNamespace(x=X, y=Y), ctx)
    with pytest.raises(DataError, match=r"got \(40, 1\) for 40|must be the teacher's classes, 0 to 0"):
        at.distil(lambda x: LOGITS[:, :1], student).fit(params, SimpleNamespace(x=X, y=Y), ctx)
    with pytest.raises(DataError, match="for 10"):
        at.distil(lambda x: LOGITS, student).fit(params, SimpleNamespace(x=X[:10], y=Y[:10]), ctx)
