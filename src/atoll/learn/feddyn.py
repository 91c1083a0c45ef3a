"""FedDyn: a regulariser that moves with the clients, so that their optima agree with the global one.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, "Federated learning based on
dynamic regularization", alg. 1:

    client k   w_k minimises F_k(w) - <h_k, w> + alpha/2 ||w - w_t||²;   h_k <- h_k - alpha (w_k - w_t)
    server     h <- h - alpha/N Σ_S (w_k - w_t);   w <- mean_S(w_k) - h / alpha

h_k starts at 0 and stays with its client. Weights are equal, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.message import Contribution, FitContext, Pull, fit_many
from ..core.registry import part
from ..core.transform import Context, State, Transform, chain, transform
from ..core.update import Update
from .algorithm import Algorithm
from .server import mean, positive
from .wrapped import Wrapped, inside, kept, obeying, own


@dataclass(frozen=True)
class Dynamic(Wrapped):
    """Local training with the terms -<h_k, w> + alpha/2 ||w - w_t||²."""

    alpha: float = 0.1

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        theirs = [own(ctx) or params.zeros() for ctx in ctxs]
        pulls = [Pull(mu=self.alpha, slope=h_k.scale(-1)) for h_k in theirs]
        steered = [inside(ctx, pull=pull) for ctx, pull in zip(ctxs, pulls, strict=True)]
        made = fit_many(self.learner, params, datas, steered)
        return [kept(c, h_k + c.update.scale(-self.alpha)) for c, h_k in zip(made, theirs, strict=True)]

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        return super().evaluate(params, data, inside(ctx))


def settle(alpha: float) -> Transform:
    """The server's part: keeps h, and takes h / alpha off the mean model."""

    def back(delta: Update, h: State, ctx: Context) -> tuple[Update, State]:
        h = h + delta.scale(-alpha * ctx.count / ctx.population)
        return delta + h.scale(-1 / alpha), h

    def init(params: Update) -> State:
        return params.zeros().astype("float64")

    return transform(f"settle({alpha:g})", back=back, init=init, on_mean=True, keeps="back")


@part("algorithm")
def feddyn(alpha: float = 0.1) -> Algorithm:
    """Regularise each client dynamically (Acar et al. 2021, alg. 1); alpha > 0."""
    positive(alpha=alpha)
    return Algorithm(
        "feddyn",
        chain(settle(alpha), mean()),
        lambda learner: Dynamic(obeying(learner, "pull", "feddyn"), alpha),
        weigh="equal",
        values={"alpha": alpha},
    )
