"""Training without PyTorch: run a learner's step that was exported as an ONNX graph.

A device needs numpy and ONNX Runtime. `torch_plan` makes plans from PyTorch learners; why and how:
docs/decisions/0004-training-plan.md.

The graph works on batches of one size; a short last batch is padded, and `mask` (1 for real rows)
weighs its loss. lr is an input, so schedules stay with whoever runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ConfigError, DataError, MisuseError
from ..core.update import Update

MEMORY = "memory/"  # the prefix of momentum buffers among the inputs


@dataclass(frozen=True, slots=True)
class Plan:
    """A training step as values: `graph` is ONNX; `leaves` its params in order; `memory` the
    optimiser's leaves, zero at first; `batch`: rows a step takes; `row`: one row's shape.

    Inputs: leaves, memory, "x" (batch, *row), "y", "mask" (batch,), "lr" (). Outputs: "new/" + each
    leaf and memory, then "loss" ().
    """

    graph: bytes
    leaves: tuple[str, ...]
    memory: tuple[str, ...]
    batch: int
    row: tuple[int, ...]


def run_plan(
    plan: Plan,
    params: Mapping[str, Any],
    batches: Iterable[tuple[Any, Any]],
    lr: float | Callable[[int], float],
) -> tuple[Update, list[float]]:
    """Take one step per (x, y) of at most `plan.batch` rows: the new params and each step's loss.

    `lr`: a number, or a function of the step, from 0. Needs onnxruntime and numpy alone.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        raise ConfigError("running a plan needs ONNX Runtime: pip install atoll-fl[edge]") from None
    missing = [name for name in plan.leaves if name not in params]
    if missing:
        raise MisuseError(f"the plan needs leaf {missing[0]!r}, the params have {', '.join(params)}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(plan.graph, options, providers=["CPUExecutionProvider"])
    moving = {name: np.asarray(params[name], np.float32) for name in plan.leaves}
    shapes = {i.name: i.shape for i in session.get_inputs()}
    moving |= {name: np.zeros(shapes[name], np.float32) for name in plan.memory}
    losses = []
    for step, (x, y) in enumerate(batches):
        rate = lr(step) if callable(lr) else lr
        *new, loss = session.run(
            None, moving | _padded(plan, np.asarray(x), np.asarray(y)) | {"lr": np.array(rate, np.float32)}
        )
        moving = dict(zip(moving, new, strict=True))
        losses.append(float(loss))
    return Update.of({name: moving[name] for name in plan.leaves}), losses


def _padded(plan: Plan, x: Any, y: Any) -> dict[str, Any]:
    if x.shape[1:] != plan.row or not 1 <= len(x) <= plan.batch or len(x) != len(y):
        raise DataError(
            f"a plan step takes 1 to {plan.batch} rows of shape {plan.row}, got {x.shape} and {len(y)} labels"
        )
    fill = np.minimum(np.arange(plan.batch), len(x) - 1)
    y = y.astype(np.int64 if y.dtype.kind in "iub" else np.float32)
    return {
        "x": x[fill].astype(np.float32),
        "y": y[fill],
        "mask": (np.arange(plan.batch) < len(x)).astype(np.float32),
    }
