"""A plan against its source: ONNX Runtime and PyTorch over 20 steps, layer by layer, rule by rule."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from atoll.adapt.plan import Plan
from atoll.adapt.plan_learner import plan_learner
from atoll.adapt.plan_run import Steps
from atoll.adapt.torch import torch_learner
from atoll.core.errors import CompositionError, ConfigError
from atoll.core.message import FitContext, Pull
from atoll.core.rng import Rng
from atoll.core.update import Update

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
nn, F = torch.nn, torch.nn.functional

# The exporter's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True, scope="module")
def one_registry() -> Any:
    """PyTorch lists its 500 translations anew for every export; here once."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        )
        yield


class Cnn(nn.Module):
    """Strided, grouped, depthwise and padded convolution, overlapping and averaging pools, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = (
            nn.Conv2d(1, 4, 5, padding=2, bias=False),
            nn.Conv2d(4, 8, 3, 2, groups=2, padding=1),
        )
        self.n, self.c3, self.f = nn.BatchNorm2d(4), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(32, 3)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.n(self.c1(x))), 3, stride=2, padding=1)
        x = F.avg_pool2d(self.c3(F.relu(self.c2(x))), 2)
        return self.f(x.flatten(1))


class Dense(nn.Module):
    """Dense layers, BatchNorm and LayerNorm, GELU; a part of it is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(6, 12, bias=False), nn.BatchNorm1d(12), nn.Linear(12, 12)
        self.l, self.c = nn.LayerNorm(12), nn.Linear(12, 3)
        self.b.weight.requires_grad_(requires_grad=False)

    def forward(self, x: Any) -> Any:
        return self.c(F.gelu(self.l(self.b(F.gelu(self.n(self.a(x)), approximate="tanh")))))


class Gru(nn.Module):
    """A GRU over five moments and what it ends with."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.f = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.f(self.g(x)[0][:, -1])


class Decoder(nn.Module):
    """Transposed convolution (strided, padded, grouped, with rows no window reached)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.b, self.f = nn.ConvTranspose2d(4, 3, 2), nn.Linear(3 * 81, 3)

    def forward(self, x: Any) -> Any:
        return self.f(self.b(F.elu(self.a(x))).flatten(1))


class Lstm(nn.Module):
    """An LSTM over five moments, what it ends with, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.f = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.f(F.silu(self.g(x)[0][:, -1]))


class Heads(nn.Module):
    """Two heads of attention over five moments, GroupNorm, and the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.MultiheadAttention(4, 2, batch_first=True), nn.GroupNorm(2, 4)
        self.f = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        x = x + self.a(x, x, x, need_weights=False)[0]
        return self.f(self.n(x.transpose(1, 2)).mean(2))


def mlp() -> Any:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


ADAM = {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01}
SGD = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clip": 0.5}
CASES = {
    "cnn": (Cnn, (1, 16, 16), {}, lambda p: torch.optim.SGD(p, 0.1)),
    "dense": (
        Dense, (6,), SGD, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "gru": (Gru, (5, 4), {"momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "decoder": (Decoder, (2, 4, 4), {}, lambda p: torch.optim.SGD(p, 0.1)),
    "lstm": (Lstm, (5, 4), {}, lambda p: torch.optim.SGD(p, 0.1)),
    "heads": (Heads, (5, 4), {}, lambda p: torch.optim.SGD(p, 0.1)),
    "adam": (mlp, (6,), ADAM, lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01)),
    "adamw": (
        mlp, (6,), {**ADAM, "optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01),
    ),
}  # fmt: skip


@functools.cache
def case(name: str) -> tuple[Any, Plan]:
    make, row, values, _ = CASES[name]
    learner = torch_learner(make, batch_size=5, epochs=2, **values)
    return learner, learner.plan(row)


def rows(row: tuple[int, ...], n: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return SimpleNamespace(x=rng.normal(size=(n, *row)).astype(np.float32), y=rng.integers(0, 3, n))


def torch_steps(module: Any, first: Update, steps: Any, optimizer: Any, clip: float | None) -> Update:
    module.load_state_dict({k: torch.tensor(v) for k, v in first.items()}, strict=False)
    moving = [p for p in module.parameters() if p.requires_grad]
    optimizer = optimizer(moving)
    for part in steps:
        optimizer.zero_grad()
        F.cross_entropy(module(torch.tensor(part.x)), torch.tensor(part.y)).backward()
        if clip:
            nn.utils.clip_grad_norm_(moving, clip)
        optimizer.step()
    return Update.of({name: module.state_dict()[name].detach().numpy() for name in first})


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_equal_torch(name: str) -> None:
    make, row, values, optimizer = CASES[name]
    _, plan = case(name)
    first = plan.first
    assert first is not None
    parts = [rows(row, n, seed) for seed, n in enumerate([5] * 9 + [2] + [5] * 9 + [3])]  # short ones too
    steps = Steps(plan, first, 60.0)
    losses = [steps.take(part.x, part.y, values.get("lr", 0.1)) for part in parts]
    got, want = steps.params(), torch_steps(make().train(), first, parts, optimizer, values.get("clip"))
    assert len(losses) == 20 and np.isfinite(losses).all()
    for leaf in want:
        tolerance = 1e-5 if "adam" not in name else 1e-3
        np.testing.assert_allclose(got[leaf], want[leaf], rtol=0, atol=tolerance, err_msg=leaf)
        frozen = (name, leaf) == ("dense", "b.weight")
        assert (np.abs(got[leaf] - first[leaf]).max() > 1e-3) != frozen


@pytest.mark.parametrize("name", ["cnn", "dense"])
def test_a_plan_is_a_learner_like_its_source(name: str) -> None:
    source, plan = case(name)
    mine, first, data = plan_learner(plan), plan.first, rows(plan.about.row, 12)
    ctx = FitContext(Rng.of(3), pull=Pull(mu=0.5), moves=lambda leaf: not leaf.startswith("c"))
    a, b = mine.fit(first, data, ctx), source.fit(first, data, ctx)
    np.testing.assert_allclose(a.update.buffer, b.update.buffer, atol=1e-5)
    assert (a.weight, a.steps) == (b.weight, b.steps) == (12, 6)
    assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], abs=1e-4)
    found, want = mine.evaluate(first, data), source.evaluate(first, data, ctx)
    assert found == pytest.approx(want, abs=1e-4)
    assert mine.head_leaves() == source.head_leaves() and mine.norm_leaves() == source.norm_leaves()


def test_single_rows_are_clipped_as_by_the_source() -> None:
    source, plan = case("adam")
    data, first = rows((6,), 13), plan.first
    got, want = plan_learner(plan).clipped(first, data, 0.3), source.clipped(first, data, 0.3)
    np.testing.assert_allclose(got.buffer, want.buffer, atol=1e-5)
    assert plan_learner(plan).clipped(first, rows((6,), 0), 0.3).norm() == 0
    with pytest.raises(CompositionError, match="clips no single rows"):
        plan_learner(case("dense")[1]).clipped(first, data, 0.3)


@pytest.mark.parametrize(
    ("module", "values", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), {}, "aten.*(dropout|bernoulli)"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, momentum=None)), {}, "BatchNorm"),
        (mlp, {"schedule": lambda step: 1.0}, "schedule by name"),
        (mlp, {"loss": F.mse_loss}, "loss by name"),
        (mlp, {"batch_size": None}, "batches of one size"),
    ],
)
def test_what_cannot_be_exported_is_refused(module: Any, values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        torch_learner(module, **values).plan((6,))


def test_a_layer_that_mixes_the_rows_of_a_batch_is_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(6, 3)

        def forward(self, x: Any) -> Any:
            return self.f(x - x.mean(0))  # the copies in a short batch are in this mean

    with pytest.raises(ConfigError, match="mix the rows"):
        torch_learner(Centred, batch_size=4).plan((6,))
