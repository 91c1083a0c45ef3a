"""The PyTorch learner on a GPU: the numbers of the CPU, the same bytes twice, no draw of a caller's moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.cuda.is_available():
    pytest.skip("no GPU here, or a PyTorch without CUDA", allow_module_level=True)
nn, F = torch.nn, torch.nn.functional


@dataclass
class Rows:
    x: Any
    y: Any

    def __len__(self) -> int:
        return len(self.x)


def rows(n: int, shape: tuple[int, ...], seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return Rows(rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 3, n))


def mlp() -> Any:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def wide() -> Any:
    return nn.Sequential(nn.Linear(6, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))


def normed() -> Any:
    """Without a bias before the norm: its gradient is the noise of rounding, which Adam would blow up."""
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def cnn(drop: float = 0.0) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(drop) if drop else nn.Identity(),
        nn.Linear(16 * 49, 128), nn.ReLU(), nn.Linear(128, 3),
    )  # fmt: skip


class Untraced(nn.Module):
    """A forward that no trace follows, and that draws by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.one(x))
        if float(x.detach().sum()) > -1.0:
            x = F.dropout(x, 0.5, training=self.training)
        return self.two(x)


NETS: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[str, ...]]] = {
    "mlp": (mlp, (6,), ("plain", "loop", "vmap", "auto")),
    "wide": (wide, (6,), ("plain", "loop", "vmap", "auto")),
    "normed": (normed, (6,), ("plain", "loop", "auto")),
    "cnn": (cnn, (1, 28, 28), ("plain", "loop", "vmap", "auto")),
}
WAYS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "lr": 0.02, "clip": 1.0},
    "adamw": {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1, "schedule": "cosine"},
}


def learners(name: str, engine: str, **more: Any) -> tuple[Any, Any]:
    """The same learner twice: on the CPU, on the GPU."""
    values = {"epochs": 2, "batch_size": 5, "engine": engine, **more}
    return tuple(at.torch_learner(NETS[name][0], device=d, **values) for d in ("cpu", "cuda"))  # type: ignore[return-value]


def start(learner: Any) -> Update:
    return learner.init(np.random.default_rng(1))


def contexts(n: int) -> list[FitContext]:
    return [FitContext(Rng.of(5).at("client", i), client=i) for i in range(n)]


def sites(name: str) -> list[Rows]:
    return [rows(n, NETS[name][1], n) for n in (23, 23, 9, 1, 12)]


@pytest.fixture(autouse=True)
def full_precision() -> Any:
    """Comparisons with a CPU want 32-bit products; GPUs round them to 19 bits in convolutions otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "engine"), [(n, e) for n, (_, _, engines) in NETS.items() for e in engines])
def test_a_gpu_learns_what_a_cpu_learns(name: str, engine: str, way: str) -> None:
    here, there = learners(name, engine, **WAYS[way])
    params, data = start(here), sites(name)
    a, b = (learner.fit_many(params, data, contexts(len(data))) for learner in (here, there))
    for one, two in zip(a, b, strict=True):
        assert (one.weight, one.steps) == (two.weight, two.steps)
        assert one.metrics["loss"] == pytest.approx(two.metrics["loss"], abs=1e-3)
        scale = max(float(np.abs(one.update.buffer).max()), 1e-3)
        np.testing.assert_allclose(two.update.buffer, one.update.buffer, rtol=0, atol=0.02 * scale)


@pytest.mark.parametrize(("name", "engine"), [(n, e) for n, (_, _, engines) in NETS.items() for e in engines])
def test_the_same_seed_gives_the_same_bytes(name: str, engine: str) -> None:
    data = sites(name)
    found = set()
    for _ in range(3):
        _, there = learners(name, engine)
        made = there.fit_many(start(there), data, contexts(len(data)))
        found.add(b"".join(c.update.buffer.tobytes() for c in made))
    assert len(found) == 1


@pytest.mark.parametrize("make", [lambda: cnn(0.5), Untraced], ids=["rewritten", "as it is"])
def test_what_is_drawn_is_drawn_by_client_and_nothing_of_the_caller_moves(make: Any) -> None:
    shape = (6,) if make is Untraced else (1, 28, 28)
    learner = at.torch_learner(make, device="cuda", batch_size=5)
    params, data = start(learner), rows(20, shape)
    one, other = contexts(2)
    before = torch.cuda.get_rng_state()
    first = learner.fit(params, data, one).update
    assert torch.equal(before, torch.cuda.get_rng_state())
    torch.rand(7, device="cuda")  # what somebody else draws changes nothing
    assert learner.fit(params, data, one).update == first
    assert learner.fit(params, data, other).update != first


def test_words_that_come_often_are_added_in_one_order() -> None:
    """An embedding's gradient is a sum over the rows that name a word: thousands here for each of five."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.top = nn.Embedding(5, 32), nn.Linear(32, 3)

        def forward(self, x: Any) -> Any:
            return self.top(self.table(x.long()).mean(1))

    rng = np.random.default_rng(0)
    data = Rows(rng.integers(0, 5, (2000, 20)).astype(np.float32), rng.integers(0, 3, 2000))
    found = set()
    for _ in range(4):
        learner = at.torch_learner(Words, device="cuda", batch_size=500, epochs=2)
        found.add(learner.fit(start(learner), data, contexts(1)[0]).update.buffer.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("name", NETS)
def test_evaluation_and_outputs_are_the_cpu_s(name: str) -> None:
    here, there = learners(name, "auto")
    params, data = start(here), rows(700, NETS[name][1])
    a, b = (learner.evaluate(params, data, contexts(1)[0]) for learner in (here, there))
    assert a == pytest.approx(b, abs=2e-3)
    np.testing.assert_allclose(there.logits(params, data.x), here.logits(params, data.x), atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "wide", "cnn"])
def test_rows_are_clipped_as_on_the_cpu(name: str) -> None:
    here, there = learners(name, "auto")
    params, data = start(here), rows(40, NETS[name][1])
    a, b = (learner.clipped(params, data, 0.5).buffer for learner in (here, there))
    np.testing.assert_allclose(b, a, atol=1e-3)
    assert np.abs(a).max() > 1e-2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_may_be_made_from_a_module_that_lies_on_the_gpu(device: str) -> None:
    given = mlp().to("cuda")
    for module in (given, lambda: mlp().to("cuda")):
        learner = at.torch_learner(module, device=device)
        params = start(learner)
        assert params == start(learner)
        assert learner.fit(params, rows(20, (6,)), contexts(1)[0]).update.norm() > 0
    assert next(given.parameters()).is_cuda


@pytest.mark.parametrize("method", [at.fedavg, lambda **k: at.fedprox(mu=0.1, **k), at.scaffold, at.moon])
def test_a_federation_learns_on_it(method: Any) -> None:
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(3, 6))
    parts = []
    for n in (40, 60, 80):
        y = rng.integers(0, 3, n)
        parts.append(Rows((centres[y] + rng.normal(size=(n, 6))).astype(np.float32), y))

    class Data(list[Any]):
        tests = parts

    def accuracy(device: str) -> float:
        learner = at.torch_learner(mlp, lr=0.1, batch_size=10, device=device)
        run = at.simulate(at.Job(learner, method(), rounds=8), Data(parts), seed=3)
        return float(np.mean([site["accuracy"] for site in run.sites.values()]))

    assert accuracy("cuda") == pytest.approx(accuracy("cpu"), abs=0.03)
    assert accuracy("cuda") > 0.7
