"""The exported training step, run by ONNX Runtime, against PyTorch over 20 steps."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from atoll.adapt.onnx import run_plan
from atoll.adapt.torch import torch_learner
from atoll.core.errors import ConfigError, DataError, MisuseError
from atoll.core.update import Update

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
nn, F = torch.nn, torch.nn.functional

# The exporter's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def mlp() -> Any:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


class Cnn(nn.Module):
    """Strided, grouped and padded convolution, overlapping and averaging pools."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 5, padding=2), nn.Conv2d(4, 8, 3, stride=2, groups=2, padding=1)
        self.f = nn.Linear(32, 3)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.c1(x)), 3, stride=2, padding=1)
        x = F.avg_pool2d(F.relu(self.c2(x)), 2)
        return self.f(x.flatten(1))


def batches(row: tuple[int, ...], sizes: list[int]) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, *row)).astype(np.float32), rng.integers(0, 3, n)) for n in sizes]


def torch_steps(module: Any, params: Update, steps: Any, optimizer: Any, clip: float | None = None) -> Update:
    module.load_state_dict({k: torch.tensor(v) for k, v in params.items()})
    optimizer = optimizer(module.parameters())
    for x, y in steps:
        optimizer.zero_grad()
        F.cross_entropy(module(torch.tensor(x)), torch.tensor(y)).backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return Update.of({k: v.detach().numpy() for k, v in module.state_dict().items()})


@pytest.mark.parametrize(
    ("make", "row", "values", "optimizer"),
    [
        (mlp, (6,), {}, lambda p: torch.optim.SGD(p, 0.1)),
        (
            mlp, (6,), {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clip": 0.5},
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        (Cnn, (1, 16, 16), {}, lambda p: torch.optim.SGD(p, 0.1)),
    ],
)  # fmt: skip
def test_twenty_steps_equal_torch(make: Any, row: Any, values: Any, optimizer: Any) -> None:
    learner = torch_learner(make, **values)
    params = learner.init(np.random.default_rng(0))
    steps = batches(row, [5] * 19 + [2])  # the last batch is short
    plan = learner.plan(row, 5)
    got, losses = run_plan(plan, params, steps, 0.1)
    want = torch_steps(make(), params, steps, optimizer, values.get("clip"))
    assert len(losses) == 20
    assert np.isfinite(losses).all()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5, err_msg=name)
        assert np.abs(got[name] - params[name]).max() > 1e-3


def test_a_plan_holds_standard_operators_and_no_paths() -> None:
    import onnx

    plan = torch_learner(mlp).plan((6,), 4)
    model = onnx.load_from_string(plan.graph)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [i.name for i in model.graph.input] == [*plan.leaves, "x", "y", "mask", "lr"]
    assert [o.name for o in model.graph.output] == [*(f"new/{n}" for n in plan.leaves), "loss"]
    assert b".py" not in plan.graph


@pytest.mark.parametrize(
    ("module", "values", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), {}, "aten.*(dropout|bernoulli)"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), {}, "running statistics"),
        (mlp, {"optimizer": "adam", "lr": 0.1}, "optimizer='sgd'"),
        (mlp, {"loss": F.mse_loss}, "loss by name"),
    ],
)
def test_what_cannot_be_exported_is_refused(module: Any, values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        torch_learner(module, **values).plan((6,), 4)


def test_running_a_plan_checks_what_it_is_given() -> None:
    learner = torch_learner(mlp)
    plan, params = learner.plan((6,), 4), learner.init(np.random.default_rng(0))
    for x in (np.zeros((5, 6)), np.zeros((0, 6)), np.zeros((4, 7))):
        with pytest.raises(DataError, match="1 to 4 rows"):
            run_plan(plan, params, [(x, np.zeros(len(x), int))], 0.1)
    with pytest.raises(MisuseError, match="needs leaf"):
        run_plan(plan, {"w": params["0.bias"]}, [], 0.1)


def test_a_device_needs_no_pytorch(tmp_path: Any) -> None:
    learner = torch_learner(mlp)
    plan, path = learner.plan((6,), 4), tmp_path / "step.onnx"
    path.write_bytes(plan.graph)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from atoll.adapt.onnx import Plan, run_plan\n"
        f"plan = Plan(open(sys.argv[1], 'rb').read(), {plan.leaves}, (), 4, (6,))\n"
        f"shapes = {dict(learner.net.layout.shapes)}\n"
        "params = {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}\n"
        "new, losses = run_plan(plan, params, [(np.ones((4, 6)), np.zeros(4, int))] * 5, 0.5)\n"
        "assert losses[-1] < losses[0], losses\n"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_export_for_serving(tmp_path: Any) -> None:
    import onnxruntime as ort

    learner = torch_learner(Cnn)
    params, path = learner.init(np.random.default_rng(0)), tmp_path / "model.onnx"
    x = np.random.default_rng(1).normal(size=(7, 1, 16, 16)).astype(np.float32)
    learner.export(params, path, x[:3])
    (got,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    with torch.no_grad():
        want = learner.net.loaded(params).eval()(torch.tensor(x)).numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)
