"""Small models of a large one: `python -m bench distil [--json FILE] [--keep DIR] [--seeds N]`.

MNIST. A convolutional teacher; a student with less than a tenth of its parameters, trained for each seed by
the labels alone and by distillation, from the same first weights and in the same order; both in integers, and
every variant measured here one row at a time. `--keep` leaves the ONNX files there; a teacher that is there
already is used again.

The gradient of the distilled loss is up to alpha T + 1 - alpha times as steep as that of the labels' loss, so
its rate is smaller by that much.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import atoll as at
from atoll.serve.model import Model
from atoll.serve.variants import int8, profile, score

from .wire import Figure

EPOCHS = {"teacher": 6, "student": 8}
TEMPERATURE, ALPHA = 4.0, 0.9
STEEP = ALPHA * TEMPERATURE + 1 - ALPHA
KNOBS: dict[str, Any] = {
    "lr": 0.05,
    "momentum": 0.9,
    "nesterov": True,
    "batch_size": 64,
    "schedule": "cosine",
}


def teacher() -> Any:
    """1 → 32 → 64 channels of 5 × 5, 256 wide: 317,000 parameters."""
    from torch import nn

    return nn.Sequential(
        *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10)),
    )


def student() -> Any:
    """1 → 8 → 16 channels of 3 × 3, 32 wide: 14,000 parameters."""
    from torch import nn

    return nn.Sequential(
        *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def trained(learner: Any, rows: Any, seed: int) -> Any:
    """The run of one job on pooled rows."""
    return at.simulate(at.Job(learner, rounds=1), at.Sites.of([(rows.x, rows.y)]), seed=seed)


def accuracy(learner: Any, run: Any, rows: Any) -> float:
    """Per cent of the rows."""
    return 100 * float(np.mean(learner.logits(run.params, rows.x).argmax(axis=1) == rows.y))


def figures(keep: Path, seeds: int) -> Iterator[Figure]:
    """Teacher, students, variants."""
    data = at.load_data("mnist")
    train, test = data.train, data.test
    assert test is not None  # noqa: S101  MNIST has its own
    path = keep / "teacher.onnx"
    if not path.exists():
        large = at.torch_learner(teacher, epochs=EPOCHS["teacher"], **KNOBS)
        trained(large, train, 1).export(path, train.x[:2])
    model = Model(path.read_bytes())
    yield Figure("teacher: accuracy", 100 * score(model, test), "%", of="goal: at least 99.2")
    x = np.asarray(train.x, np.float32)
    logits = np.concatenate([model.run(x[at : at + 500])["out"] for at in range(0, len(x), 500)])
    alone = at.torch_learner(student, epochs=EPOCHS["student"], **KNOBS)
    helped = at.distil(lambda _: logits, replace(alone, lr=alone.lr / STEEP), TEMPERATURE, ALPHA)
    gains, runs = [], []
    for seed in range(1, seeds + 1):
        pair = trained(alone, train, seed), trained(helped, train, seed)
        runs.append(pair[1])
        first, second = (accuracy(alone, run, test) for run in pair)
        gains.append(second - first)
        yield Figure(f"seed {seed}: student alone", first, "%")
        yield Figure(f"seed {seed}: student distilled", second, "%", of="goal: at least 98.7, above alone")
    sizes = [sum(p.numel() for p in net.parameters()) for net in (teacher(), student())]
    yield Figure("parameters, teacher over student", sizes[0] / sizes[1], "times", of="goal: at least 10")
    yield Figure("least gain over alone", min(gains), "points", of="goal: above 0")
    runs[0].export(keep / "student.onnx", train.x[:2])
    files = {name: (keep / f"{name}.onnx").read_bytes() for name in ("teacher", "student")}
    for name in tuple(files):
        files[f"{name}-int8"] = int8(files[name], train.x, test)
        (keep / f"{name}-int8.onnx").write_bytes(files[f"{name}-int8"])
    for row in profile(files, test):
        for what, unit in (("size", "bytes"), ("p50", "ms"), ("p99", "ms"), ("memory", "MB")):
            yield Figure(f"{row.name}: {what}", getattr(row, what), unit, of=row.provider)
        yield Figure(f"{row.name}: accuracy as ONNX", 100 * row.score, "%", of=f"{row.lost:.2f} points lost")


def main(words: list[str]) -> int:
    """Print the figures, write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench distil", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--keep", type=Path, help="leave the models there")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args(words)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        keep = asked.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        for figure in figures(keep, asked.seeds):
            print(figure, flush=True)
            found.append(figure)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
