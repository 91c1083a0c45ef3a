"""The dense learners against PyTorch step by step, closed forms, scikit-learn and finite differences."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest

from atoll.core.message import FitContext, Pull
from atoll.core.rng import Rng, shuffles
from atoll.core.update import Update
from atoll.learn import batched, kernel
from atoll.learn.dense import Dense, linear, logistic, mlp, softmax
from atoll.learn.task import Work

ENGINES = [
    "numpy",
    pytest.param("c", marks=pytest.mark.skipif(kernel.level() < 0, reason="no compiled kernel")),
]
CTX = FitContext(Rng.of(3), round=2)


class Rows(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def noisy(params: Update, seed: int) -> Update:
    noise = np.random.default_rng(seed).normal(0, 0.2, params.layout.size)
    return Update(params.layout, params.buffer + noise.astype(params.buffer.dtype))


def draw(learner: Dense, n: int) -> Rows:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(n, learner.features)).astype(learner.dtype)
    if learner.loss == "squared":
        return Rows(x, rng.normal(size=(n, learner.outputs)).astype(learner.dtype))
    return Rows(x, rng.integers(0, 2 if learner.loss == "logistic" else learner.outputs, n))


def by_torch(learner: Dense, start: Update, data: Rows, ctx: FitContext) -> tuple[np.ndarray, float]:
    """New minus old weights and the mean loss, by torch.nn, autograd and torch.optim.SGD."""
    torch = pytest.importorskip("torch")
    widths = (learner.features, *learner.hidden, learner.outputs)
    kind = getattr(torch, learner.dtype)
    layers = [torch.nn.Linear(a, b, dtype=kind) for a, b in pairwise(widths)]
    params = [p for layer in layers for p in (layer.weight, layer.bias)]
    with torch.no_grad():
        for p, leaf in zip(params, start.values(), strict=True):
            p.copy_(torch.tensor(leaf.T.copy()))
    lr = learner.lr * learner.decay**ctx.round
    moving = [p for p, name in zip(params, start, strict=True) if ctx.moves is None or ctx.moves(name)]
    sgd = torch.optim.SGD(moving, lr=lr, momentum=learner.momentum, weight_decay=learner.weight_decay)
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    pull, total, batch = ctx.pull or Pull(), 0.0, learner.batch_size or len(x)
    anchor = [torch.tensor(v.T.copy()) for v in (pull.anchor or start).values()]
    slope = [torch.tensor(v.T.copy()) for v in (pull.slope or start.zeros()).values()]
    for order in shuffles(np.array([ctx.key.key], np.uint64), learner.epochs, len(x))[0]:
        for at in range(0, len(x), batch):
            rows = torch.tensor(order[at : at + batch])
            z = x[rows]
            for k, layer in enumerate(layers):
                z = layer(z) if k == len(layers) - 1 else getattr(torch, learner.activation)(layer(z))
            loss = torch_loss(torch, learner.loss, z, y[rows])
            total += loss.item() * len(rows)
            for p, a, s in zip(params, anchor, slope, strict=True):
                loss = loss + pull.mu / 2 * (p - a).square().sum() + (s * p).sum()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    new = np.concatenate([p.detach().numpy().T.reshape(-1) for p in params])
    return new - start.buffer, total / len(x) / learner.epochs


def torch_loss(torch: Any, loss: str, z: Any, y: Any) -> Any:
    F = torch.nn.functional
    if loss == "squared":
        return F.mse_loss(z, y)
    return (
        F.cross_entropy(z, y)
        if loss == "softmax"
        else F.binary_cross_entropy_with_logits(z[:, 0], y.to(z.dtype))
    )


CASES = {
    "linear": linear(7, 3, epochs=2, batch_size=5),
    "logistic": logistic(7, 2, epochs=3, batch_size=4, momentum=0.9),
    "softmax": softmax(20, 5, epochs=2, batch_size=10, weight_decay=0.1),
    "softmax, all rows": softmax(20, 5, epochs=4, batch_size=None),
    "mlp": mlp((33, 17), features=20, outputs=5, epochs=2, batch_size=8, decay=0.5),
    "mlp tanh": mlp((16,), "tanh", "logistic", 9, 1, epochs=3, batch_size=7, momentum=0.5, weight_decay=0.01),
    "mlp widening": mlp((2, 9), "tanh", "softmax", 1, 40, epochs=2, batch_size=6),
    "mlp squared": mlp((6, 5, 4), loss="squared", features=3, outputs=2, lr=0.02, epochs=3, batch_size=9),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case: str, pulled: bool, engine: str) -> None:
    learner = replace(CASES[case], kernel=engine)
    start = noisy(learner.init(np.random.default_rng(0)), 1)
    ctx = CTX
    if pulled:
        pull = Pull(0.3, noisy(start, 2), noisy(start.zeros(), 3))
        ctx = replace(CTX, pull=pull, moves=lambda name: name != "layer0.bias")
    data = draw(learner, 43)
    delta, loss = by_torch(learner, start, data, ctx)
    answer = learner.fit(start, data, ctx)
    np.testing.assert_allclose(answer.update.buffer, delta, atol=1e-5)
    assert answer.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert answer.steps == learner.epochs * -(-43 // (learner.batch_size or 43))
    assert np.any(delta)


@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch_to_the_last_digits_in_float64(case: str) -> None:
    learner = replace(CASES[case], dtype="float64")
    start = noisy(learner.init(np.random.default_rng(0)), 1)
    data = draw(learner, 43)
    delta, _ = by_torch(learner, start, data, CTX)
    np.testing.assert_allclose(learner.fit(start, data, CTX).update.buffer, delta, atol=1e-12)


def test_full_batches_sum_to_the_pooled_gradient() -> None:
    """FedSGD: the weighted mean of one full step per client is one step on all rows."""
    learner = mlp((9,), features=6, outputs=4, batch_size=None, dtype="float64")
    start, data = learner.init(np.random.default_rng(0)), draw(learner, 60)
    cuts = [slice(0, 7), slice(7, 30), slice(30, 60)]
    parts = learner.fit_many(start, [Rows(data.x[c], data.y[c]) for c in cuts], [CTX] * 3)
    mean = sum(p.weight * p.update.buffer for p in parts) / 60
    np.testing.assert_allclose(mean, learner.fit(start, data, CTX).update.buffer, atol=1e-12)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradient_is_the_slope_of_the_loss(loss: str, activation: str) -> None:
    """Central differences of `evaluate` in every coordinate."""
    outputs = 1 if loss == "logistic" else 3
    learner = mlp((5, 4), activation, loss, 6, outputs, lr=1.0, batch_size=None, dtype="float64")
    at, data = noisy(learner.init(np.random.default_rng(0)), 4), draw(learner, 11)
    slope = np.empty(at.layout.size)
    for k, step in enumerate(1e-5 * np.eye(at.layout.size)):
        up, down = (learner.evaluate(Update(at.layout, at.buffer + s), data)["loss"] for s in (step, -step))
        slope[k] = (up - down) / 2e-5
    np.testing.assert_allclose(-learner.fit(at, data, CTX).update.buffer, slope, atol=1e-8)


def test_linear_regression_reaches_the_normal_equations() -> None:
    learner = linear(3, 1, lr=0.1, epochs=2000, batch_size=None, dtype="float64")
    data = draw(learner, 40)
    start = learner.init(np.random.default_rng(0))
    design = np.column_stack([data.x, np.ones(40)])
    best = np.linalg.lstsq(design, data.y, rcond=None)[0]
    np.testing.assert_allclose(learner.fit(start, data, CTX).update.buffer, best[:, 0], atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_softmax_reaches_scikit_learn(engine: str) -> None:
    model = pytest.importorskip("sklearn.linear_model").LogisticRegression(
        C=1 / (0.01 * 150), tol=1e-8, max_iter=500
    )
    learner = softmax(4, 3, lr=0.5, epochs=3000, batch_size=None, weight_decay=0.01, kernel=engine)
    x, y = pytest.importorskip("sklearn.datasets").load_iris(return_X_y=True)
    data = Rows(((x - x.mean(0)) / x.std(0)).astype(np.float32), y)
    start = learner.init(np.random.default_rng(0))
    free = replace(CTX, moves=lambda name: name.endswith("weight"))  # both penalise W; sklearn leaves b free
    fitted = learner.fit(start, data, free).update
    model.set_params(fit_intercept=False).fit(data.x.astype(np.float64), y)
    np.testing.assert_allclose(fitted["layer0.weight"], model.coef_.T, atol=5e-5)
    assert learner.evaluate(fitted, data)["accuracy"] == pytest.approx(
        model.score(data.x.astype(np.float64), y)
    )


def test_evaluate_is_the_loss_and_accuracy_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    learner = mlp((8,), features=5, outputs=4)
    params, data = noisy(learner.init(np.random.default_rng(0)), 1), draw(learner, 200)
    work = Work((5, 8, 4), "softmax", "relu", 1, 1, 0.0, 0.0, params.buffer)
    z = batched.forward(work.dims, work.activation, params.buffer[None], data.x[None])[-1][0]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    seen = learner.evaluate(params, data)
    assert seen["loss"] == pytest.approx(metrics.log_loss(data.y, p), rel=1e-5)
    assert seen["accuracy"] == pytest.approx(metrics.accuracy_score(data.y, p.argmax(axis=1)))


def test_an_mlp_starts_as_pytorch_does_and_others_from_zero() -> None:
    params = mlp((300, 200), features=100, outputs=10).init(np.random.default_rng(0))
    for name, width in (
        ("layer0.weight", 100),
        ("layer0.bias", 100),
        ("layer1.weight", 300),
        ("layer2.bias", 200),
    ):
        bound = width**-0.5
        assert 0.9 * bound < np.abs(params[name]).max() <= bound
        assert abs(params[name].std() / bound - 3**-0.5) < (0.03 if name.endswith("weight") else 0.25)
    assert not softmax(4, 3).init(np.random.default_rng(0)).buffer.any()
