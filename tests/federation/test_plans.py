"""A network that somebody wrote in PyTorch learns at sites where there is no PyTorch: real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll as at
from atoll.control.engine.parcels import keep_frames, read_frames
from atoll.serve.model import Model
from atoll.wire.codec import Message
from tests.federation.processes import ROOT, Federation, Nursery, simulated

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # the exporter's own
]
JOB: dict[str, Any] = {
    "name": "own net",
    "seed": 5,
    "rounds": 2,
    "data": {"name": "wine", "clients": 2, "holdout": 0.25},
    "learner": {"name": "softmax"},
}
# In every process from here on: whoever imports torch fails.
BLOCKED = "import sys\nfor name in ('torch', 'onnx', 'onnxscript'):\n    sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = torch.nn.Linear(13, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.b(torch.relu(self.n(self.a(x))))


def plans(folder: Path) -> list[Path]:
    """Blobs that hold a plan."""
    files = [f for f in folder.rglob("blobs/*/*") if len(f.name) == 64]
    return [f for f in files if read_frames(f, finite=False).kind == "plan"]


def test_a_module_travels_as_a_plan_and_learns_without_torch(tmp_path: Path, nursery: Nursery) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src"), str(ROOT)])
    with Federation(tmp_path / "fed", JOB, nursery=nursery) as fed:
        fed.set("client-2", policy={"plans": True, "plan_mb": 64})
        for name in fed.names:
            fed.start(name, **({"PYTHONPATH": path} if name in fed.clients else {}))
        fed.until(lambda: fed.joined() >= {*fed.clients, *fed.edges}, what="everybody to join")
        learner = at.torch_learner(Net, lr=0.05, batch_size=16)
        hub = fed.connect()
        refused = hub.submit(at.Job(learner=learner, rounds=2, name="own net"), data="wine", seed=5)
        fed.until(lambda: fed.state(refused.id) not in ("queued", "running"), what="the first run to end")
        names = refused.names
        told = {names[int(c)]: why for r in refused.history for c, why in r.get("failed", {}).items()}
        assert "set plans = true under [policy]" in told.pop("client-1")
        assert told == {}  # the other trained

        fed.kill("client-1")
        fed.set("client-1", policy={"plans": True})
        fed.start("client-1", PYTHONPATH=path)
        plan = learner.plan((13,), seed=5).save(tmp_path / "net.plan")
        small = {"name": "small", "down": {"name": "thin", "fraction": 0.1}}  # its first values do not travel
        table = {**JOB, "learner": {"name": "plan", "file": str(plan)}, "algorithm": small}
        run = hub.submit(table, seed=5)
        fed.finished(run.id)
        for name in fed.clients:
            assert "libtorch" not in Path(f"/proc/{fed.lives[name].pid}/maps").read_text()
        own = hub.export("own-net", tmp_path / "net.onnx").read_bytes()
        assert Model(own).classes == at.load_data("wine").classes
        edges = fed.folder / "edges"
        fed.until(lambda: not plans(edges), what="the edge to let the plan go")
        planted = edges / "blobs" / "aa" / ("a" * 64)
        planted.parent.mkdir(parents=True)
        keep_frames(planted, Message("plan", {}, {}))
        assert plans(edges) == [planted], "the control"
        fed.stop(*fed.names)
        assert fed.leaves(run.id) == simulated(table, 5)
