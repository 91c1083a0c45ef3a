"""A plan from the vectors, and ways to spoil it: what a gate must see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.adapt.plan import Plan

FILE = Path(__file__).parents[1] / "vectors" / "mlp.plan"  # 4-8-3, tanh, SGD of 0.1, batches of 8, 2 epochs


def golden() -> Plan:
    return Plan.read(FILE)


class Labelled:
    """Rows of three classes, each around a place of its own."""

    def __init__(self, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.y = rng.integers(0, 3, n)
        self.x = (rng.normal(size=(n, 4)) + 2 * np.eye(4)[self.y]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.y)


def spoilt(change: Callable[[Any], None], graph: str = "step") -> bytes:
    """The plan's bytes with one of its graphs changed through onnx's own package."""
    import onnx

    plan = golden()
    model = onnx.load_from_string(plan.graphs[graph])
    change(model)
    return replace(plan, graphs={**plan.graphs, graph: model.SerializeToString()}).dump()
