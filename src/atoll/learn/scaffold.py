"""SCAFFOLD: control variates take the drift out of local steps.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, "SCAFFOLD: stochastic controlled averaging
for federated learning", alg. 1 with option II:

    client k   y <- y - lr (g_k(y) - c_k + c),  K steps from y = x
               c_k+ = c_k - c + (x - y) / (K lr);   sends y - x and c_k+ - c_k
    server     x <- x + mean(y - x);   c <- c + |S|/N mean(c_k+ - c_k)

The server's c travels as a second group of leaves, `control/...`, so a round moves twice the
bytes; c_k stays with its client. Weights are equal, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.message import Contribution, FitContext, Pull, fit_many
from ..core.registry import part
from ..core.transform import Context, State, Transform, chain, only, transform
from ..core.update import Update
from .algorithm import Algorithm
from .server import mean
from .wrapped import Wrapped, inside, kept, obeying, own, plain_sgd, step_size

CONTROL = "control/"


@dataclass(frozen=True)
class Controlled(Wrapped):
    """Local training along g_k - c_k + c; params are the model's leaves and `control/` ones."""

    def init(self, rng: np.random.Generator) -> Update:
        x = Update.of(self.learner.init(rng))
        return x.join(x.zeros().rename(lambda name: CONTROL + name))

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        x = self.served(params)
        c = params.pick(_control).rename(lambda name: name.removeprefix(CONTROL))
        theirs = [own(ctx) or c.zeros() for ctx in ctxs]
        steered = [inside(ctx, pull=Pull(slope=c - c_k)) for ctx, c_k in zip(ctxs, theirs, strict=True)]
        made = fit_many(self.learner, x, datas, steered)
        return [self._turn(*turn, c) for turn in zip(made, theirs, ctxs, strict=True)]

    def _turn(self, made: Contribution, c_k: Update, ctx: FitContext, c: Update) -> Contribution:
        """The contribution with the change of c_k beside that of the model."""
        change = c_k.zeros()
        if made.steps and made.weight:
            change = made.update.scale(-1 / (made.steps * step_size(self.learner, ctx))) - c
        made.update = made.update.join(change.rename(lambda name: CONTROL + name))
        return kept(made, c_k + change)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        return super().evaluate(self.served(params), data, inside(ctx))

    def served(self, params: Update) -> Update:
        """The model alone, without the controls."""
        return params.pick(lambda name: not _control(name))


def _control(name: str) -> bool:
    return name.startswith(CONTROL)


def share() -> Transform:
    """The mean over the round's clients as a change of the mean over all: times |S| / N."""

    def back(delta: Update, state: State, ctx: Context) -> tuple[Update, State]:
        return delta.scale(ctx.count / ctx.population), state

    return transform("share()", back=back, on_mean=True)


@part("algorithm")
def scaffold() -> Algorithm:
    """Correct each local step by control variates (Karimireddy et al. 2020, alg. 1, option II).

    Needs a learner of plain SGD steps with `lr`; others are refused.
    """
    steps = chain(only(CONTROL, share()), mean())
    return Algorithm(
        "scaffold",
        steps,
        lambda learner: Controlled(obeying(plain_sgd(learner, "scaffold"), "pull", "scaffold")),
        weigh="equal",
    )
