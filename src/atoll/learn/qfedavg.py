"""q-FedAvg: clients with a high loss weigh more, so that accuracy is spread evenly.

Li, Sanjabi, Beirami, Smith 2020, "Fair resource allocation in federated learning", alg. 2:

    client k   Δ_k = F_k^q L (w - w_k),   h_k = q F_k^(q-1) ||L (w - w_k)||² + L F_k^q
    server     w <- w - Σ Δ_k / Σ h_k

F_k is the client's loss at the model it was sent, w_k its model after local training, L = 1 / lr.
q = 0 is FedAvg with equal weights. The paper draws clients by size: sample(by="size").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import ConfigError, MisuseError
from ..core.message import Contribution, FitContext, fit_many
from ..core.registry import part
from ..core.transform import Context, State, Transform, chain, transform
from ..core.update import Update
from .algorithm import Algorithm
from .server import mean, positive
from .wrapped import Wrapped

H = "fair.h"
MOST_H = 2.0**30


@dataclass(frozen=True)
class Fair(Wrapped):
    """Local training whose contribution is -Δ_k / L, and h_k in a leaf of its own."""

    q: float = 1.0
    lr: float = 0.1

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        made = fit_many(self.learner, params, datas, ctxs)
        return [self._scaled(*turn, params) for turn in zip(made, datas, ctxs, strict=True)]

    def _scaled(self, c: Contribution, data: Any, ctx: FitContext, params: Update) -> Contribution:
        h = 0.0
        if c.weight:
            loss, q, lipschitz = self._loss(params, data, ctx), self.q, 1 / self.lr
            h = lipschitz * loss**q
            h += q * loss ** (q - 1) * (lipschitz * c.update.norm()) ** 2 if loss else 0.0
            c.update = c.update.scale(loss**q)
        c.update = c.update.join(Update.of({H: np.array([h], c.update.buffer.dtype)}))
        return c

    def _loss(self, params: Update, data: Any, ctx: FitContext) -> float:
        metrics = self.learner.evaluate(params, data, ctx)
        if "loss" not in metrics:
            raise MisuseError(
                f"qfedavg weighs clients by `loss`, which evaluate must give; got {sorted(metrics)}"
            )
        loss = float(getattr(metrics["loss"], "value", metrics["loss"]))
        if not loss >= 0:
            raise MisuseError("qfedavg takes the loss to the power q: it must be at least 0")
        return loss


def fair(lr: float) -> Transform:
    """The server's part: Σ Δ_k / Σ h_k, from the means of both."""

    def back(delta: Update, state: State, ctx: Context) -> tuple[Update, State]:
        h = float(delta[H][0])
        model = delta.pick(lambda name: name != H)
        return (model.scale(1 / (lr * h)) if h else model.zeros()), state

    return transform(f"fair({lr:g})", back=back, on_mean=True, adds={H: MOST_H})


@part("algorithm")
def qfedavg(q: float = 1.0, lr: float = 0.1) -> Algorithm:
    """Lift the clients with the highest loss (Li et al. 2020, alg. 2).

    `q` >= 0: 0 is FedAvg, larger is fairer. `lr`: the local learning rate; its inverse is the
    paper's L.
    """
    if not q >= 0:
        raise ConfigError(f"q must be at least 0, got {q}")
    positive(lr=lr)
    values = {"q": q, "lr": lr}
    steps = chain(fair(lr), mean())
    return Algorithm("qfedavg", steps, lambda learner: Fair(learner, q, lr), weigh="equal", values=values)
