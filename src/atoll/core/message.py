"""What a learner is asked, and what it answers.

A learner is any object with three methods; no base class:

    init(rng) -> params                     a mapping of names to arrays
    fit(params, data, ctx) -> Contribution  train on one client's data
    evaluate(params, data, ctx) -> metrics  a mapping of names to numbers or mergeable metrics

It may offer `fit_many(params, datas, ctxs) -> list[Contribution]` for a batch of clients; the
law is fit_many == [fit(...) for each] to 1e-5, checked by `atoll.testing.check_learner`. Algorithms
that steer local training take learners that say they follow it: `obeys = {"pull", "moves"}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .errors import MisuseError
from .rng import Rng
from .update import Update


@dataclass(frozen=True, slots=True)
class Pull:
    """Terms an algorithm adds to the local objective F_k(w), the same for every learner:

        F_k(w) + mu/2 ||w - anchor||² + <slope, w>

    so each local gradient gains `mu * (w - anchor) + slope`. FedProx is a `mu` towards the
    model it was sent; SCAFFOLD a `slope` of c - c_k; FedDyn both.
    `anchor`: an Update, None for the params that `fit` starts from. `slope`: an Update or None.
    """

    mu: float = 0.0
    anchor: Update | None = None
    slope: Update | None = None


@dataclass(frozen=True, slots=True)
class FitContext:
    """What `fit` may know besides params and data.

    `key`: this client's own random stream for this round. `round`: from 0. `client`: its id.
    `state`: what this client's last *used* contribution left, None at first; never sent.
    `pull`: extra terms of the local objective, None for none. `moves`: which leaves may change,
    by name; None for all (FedRep trains its head first, then its body).
    """

    key: Rng
    round: int = 0
    client: int = 0
    state: Any = None
    pull: Pull | None = None
    moves: Callable[[str], bool] | None = None

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator on this client's stream for this round."""
        return self.key.generator()


@dataclass(slots=True, init=False)
class Contribution:
    """One client's answer: `update` is the change it proposes (new minus old), or a mapping
    of named arrays that becomes one; `weight` >= 0 is its say, as a rule its number of rows.

    `metrics`: numbers (averaged by weight) or mergeable metrics. `steps`: local optimiser steps
    taken (FedNova's tau). `state`: what to keep for this client's next turn; never sent.
    Raises MisuseError for a negative or non-finite weight.
    """

    update: Update
    weight: float
    metrics: Mapping[str, Any]
    steps: int
    state: Any

    def __init__(
        self,
        update: Mapping[str, Any],
        weight: float = 1.0,
        metrics: Mapping[str, Any] | None = None,
        *,
        steps: int = 1,
        state: Any = None,
    ) -> None:
        if not (weight >= 0 and math.isfinite(weight)):
            raise MisuseError(f"a contribution's weight must be finite and at least 0, got {weight}")
        self.update = Update.of(update)
        self.weight = float(weight)
        self.metrics = metrics or {}
        self.steps = steps
        self.state = state


@runtime_checkable
class Learner(Protocol):
    """The three methods; see the top of this file."""

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]: ...

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution: ...

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]: ...


def fit_many(
    learner: Learner, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
) -> list[Contribution]:
    """Every client's contribution, by the learner's own `fit_many` where it has one."""
    batch = getattr(learner, "fit_many", None)
    if batch is not None:
        return list(batch(params, datas, ctxs))
    return [learner.fit(params, data, ctx) for data, ctx in zip(datas, ctxs, strict=True)]
