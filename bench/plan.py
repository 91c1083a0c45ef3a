"""`python -m bench plan [--json FILE]`: a training step by ONNX Runtime beside PyTorch's own, and its memory.

Both train the same batches of 10 from the same params on one core, in turns of ten steps, so that what else
the machine does slows both; the ratio is the median over turns of processor time. Where the params after 20
steps differ by more than 1e-4 no time counts. Memory is the peak of a process of its own that only trains.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH, TURNS, STEPS = 10, 9, 10
PEAK = """
import sys, numpy as np, atoll as at
from types import SimpleNamespace
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.control.engine import learning
for name in ("torch", "onnx"): assert name not in sys.modules
learner = at.plan_learner(sys.argv[1])
row, out = learner.plan.about.row, learner.plan.about.out[0]
rng = np.random.default_rng(0)
data = SimpleNamespace(x=rng.normal(size=(200, *row)).astype(np.float32), y=rng.integers(0, out, 200))
learner.fit(learner.init(rng), data, FitContext(Rng.of(0)))
lines = open('/proc/self/status').read().splitlines()  # rusage would count whoever forked us
print(next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 1024)
"""


def nets() -> dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]]:
    """Name -> how it is made, the shape of a row, its optimiser."""
    from torch import nn

    def mlp() -> Any:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))

    def cnn() -> Any:
        """The FedAvg paper's, 1.66 M parameters."""
        return nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
        )  # fmt: skip

    def norm() -> Any:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1568, 10),
        )  # fmt: skip

    image = (1, 28, 28)
    return {
        "784-200-10": (mlp, image, {}),
        "784-200-10, Adam": (mlp, image, {"optimizer": "adam", "lr": 0.001}),
        "paper's CNN": (cnn, image, {"lr": 0.05}),
        "BatchNorm, depthwise": (norm, image, {"momentum": 0.9, "lr": 0.02}),
    }


def measured(name: str, make: Any, row: tuple[int, ...], values: dict[str, Any]) -> dict[str, Any]:
    """One net: times, their ratio, how far the params part, sizes."""
    import torch
    from torch.nn import functional as F

    from atoll.adapt.plan_run import Steps
    from atoll.adapt.torch import torch_learner

    learner = torch_learner(make, batch_size=BATCH, **values)
    plan = learner.plan(row)
    first = plan.first
    assert first is not None  # noqa: S101
    module, rate = learner.net.loaded(first).train(), learner.lr
    rules: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    momentum = {"momentum": learner.momentum} if learner.optimizer == "sgd" else {}
    optimizer = rules[learner.optimizer](module.parameters(), lr=rate, **momentum)
    steps = Steps(plan, first, 60.0)
    rng = np.random.default_rng(0)
    x = rng.random((STEPS, BATCH, *row), dtype=np.float32)
    y = rng.integers(0, 10, (STEPS, BATCH))
    torch.set_num_threads(1)

    def eager() -> None:
        for at in range(STEPS):
            optimizer.zero_grad()
            loss: Any = F.cross_entropy(module(torch.from_numpy(x[at])), torch.from_numpy(y[at]))
            loss.backward()
            optimizer.step()

    def planned() -> None:
        for at in range(STEPS):
            steps.take(x[at], y[at], rate)

    times: list[tuple[float, float]] = []
    gap = 0.0
    for turn in range(TURNS):
        took = []
        for side in (eager, planned):
            began = time.process_time()
            side()
            took.append((time.process_time() - began) / STEPS)
        times.append((took[0], took[1]))
        if turn == 1:
            ours, theirs = steps.params(), module.state_dict()
            gap = max(float(np.abs(ours[n] - theirs[n].numpy()).max()) for n in ours)
    with tempfile.TemporaryDirectory() as folder:
        file = plan.save(Path(folder) / "net.plan")
        words = [sys.executable, "-c", PEAK, str(file)]
        peak = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    warm = times[2:]
    return {
        "net": name,
        "eager_ms": 1e3 * statistics.median(a for a, _ in warm),
        "plan_ms": 1e3 * statistics.median(b for _, b in warm),
        "ratio": statistics.median(b / a for a, b in warm),
        "gap": gap,
        "plan_kb": len(plan.bare().dump()) / 1024,
        "peak_mb": peak,
    }


def main(words: list[str]) -> int:
    """Print the table, write the file; 1 where a plan does not learn what PyTorch learns."""
    parser = argparse.ArgumentParser(prog="python -m bench plan", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--only", default="", help="nets whose name contains this")
    asked = parser.parse_args(words)
    logging.disable(logging.WARNING)  # PyTorch's exporter misses torchvision
    found = [measured(name, *net) for name, net in nets().items() if asked.only in name]
    for row in found:
        print(
            f"{row['net']:22} eager {row['eager_ms']:7.2f} ms  plan {row['plan_ms']:7.2f} ms"
            f"  ratio {row['ratio']:5.2f}  gap {row['gap']:.1e}  plan {row['plan_kb']:6.1f} KiB"
            f"  peak {row['peak_mb']:6.1f} MiB"
        )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    parted = [row["net"] for row in found if row["gap"] > (1e-2 if "Adam" in row["net"] else 1e-4)]
    if parted:
        print(f"the sides disagree, so no time counts: {', '.join(parted)}", file=sys.stderr)
    return 1 if parted else 0
