"""A learner whose every number can be worked out by hand: F_k(w) = 1/2 Σ_i a_i (w_i - b_i)².

Data: (a, b), arrays of the model's shape. Gradient steps of rate lr, in float64, honour the
context's pull and moves exactly; F_k's optimum is b, that of Σ F_k is Σ a b / Σ a.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from atoll.core.message import Contribution, FitContext, Pull
from atoll.core.update import Update
from atoll.job import Job
from atoll.run import RECORDS, Folder, Run, State, simulate


class Bowl(NamedTuple):
    """One client's F_k; `rows` is its weight, `steps` its local steps where they are its own."""

    a: Any
    b: Any
    rows: int = 1
    steps: int | None = None


@dataclass(frozen=True)
class Quadratic:
    """`steps` gradient steps of rate lr * decay**round, from zeros; `names` share out the numbers."""

    lr: float = 0.1
    steps: int = 5
    size: int = 2
    names: tuple[str, ...] = ("w",)
    decay: float = 1.0
    momentum: float = 0.0
    obeys: ClassVar[frozenset[str]] = frozenset({"pull", "moves"})

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        return {name: np.zeros(self.size) for name in self.names}

    def fit(self, params: Update, data: Bowl, ctx: FitContext) -> Contribution:
        w, v = params.buffer.copy(), 0.0
        pull = ctx.pull or Pull()
        anchor = (pull.anchor or params).buffer
        slope = pull.slope.buffer if pull.slope is not None else 0.0
        free = np.concatenate([np.full(self.size, ctx.moves is None or ctx.moves(n)) for n in self.names])
        steps = data.steps if data.steps is not None else self.steps
        for _ in range(steps):
            g = np.asarray(data.a) * (w - np.asarray(data.b)) + pull.mu * (w - anchor) + slope
            v = self.momentum * v + g
            w = w - self.lr * self.decay**ctx.round * v * free
        return Contribution(
            Update(params.layout, w - params.buffer),
            data.rows,
            {"loss": self._loss(params, data)},
            steps=steps,
        )

    def evaluate(self, params: Update, data: Bowl, ctx: FitContext) -> Mapping[str, float]:
        return {"loss": self._loss(params, data)}

    def _loss(self, params: Update, data: Bowl) -> float:
        return float(0.5 * (np.asarray(data.a) * (params.buffer - np.asarray(data.b)) ** 2).sum())


class Sites(list[Bowl]):
    """Clients whose test rows are their training rows."""

    @property
    def tests(self) -> list[Bowl]:
        return list(self)


def kept(job: Job, sites: list[Bowl], folder: Path) -> tuple[Run, State]:
    """The run of a job, and what coordinator and clients hold after it, as read back from a folder."""
    run = simulate(job, sites, out=folder)
    state = Folder(folder, RECORDS).resume()
    assert state is not None
    last = {client: held for client, (_, held) in state.staged.items()}  # all were used in these tests
    return run, replace(state, committed={**state.committed, **last})


def optimum(bowls: list[Bowl], *, by_rows: bool = False) -> Any:
    """Where Σ p_k F_k is least, p_k equal or by rows."""
    p = [b.rows if by_rows else 1.0 for b in bowls]
    return sum(k * np.asarray(c.a) * c.b for k, c in zip(p, bowls, strict=True)) / sum(
        k * np.asarray(c.a) for k, c in zip(p, bowls, strict=True)
    )


def fixed_point(bowls: list[Bowl], pulls: list[Any]) -> Any:
    """Where Σ pulls_k (b_k - w) = 0: client k moves w by pulls_k of its way to b_k."""
    return sum(r * np.asarray(c.b) for r, c in zip(pulls, bowls, strict=True)) / sum(pulls)
