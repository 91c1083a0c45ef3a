"""FedProx: each client is pulled towards the model it was sent.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, "Federated optimization in heterogeneous
networks", alg. 2. Client k minimises F_k(w) + mu/2 ||w - w_t||², so its gradient gains
mu (w - w_t). With mu = 0 it is FedAvg.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext, Pull, fit_many
from ..core.registry import part
from ..core.update import Update
from .algorithm import Algorithm
from .wrapped import Wrapped, obeying


@dataclass(frozen=True)
class Proximal(Wrapped):
    """Local training with the term mu/2 ||w - w_t||²."""

    mu: float = 0.0

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        pull = Pull(mu=self.mu)
        return fit_many(self.learner, params, datas, [replace(ctx, pull=pull) for ctx in ctxs])


@part("algorithm")
def fedprox(mu: float = 0.01) -> Algorithm:
    """Keep local models near the one they started from; mu >= 0 (Li et al. 2020, alg. 2)."""
    if not mu >= 0:
        raise ConfigError(f"mu must be at least 0, got {mu}")
    wrap = (lambda learner: Proximal(obeying(learner, "pull", "fedprox"), mu)) if mu else None
    return Algorithm("fedprox", wrap=wrap, values={"mu": mu})
