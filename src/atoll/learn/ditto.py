"""A personal model beside the shared one: Ditto, and plain fine-tuning.

Li, Hu, Beirami, Smith 2021, "Ditto: fair and robust federated learning through personalization",
alg. 1. The shared w is FedAvg's. Client k also keeps v_k, trained on

    F_k(v) + lambda/2 ||v - w||²

from where it stood: lambda = 0 is local training, a large one ties v_k to w. Only w is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext, Pull, fit_many
from ..core.registry import part
from ..core.update import Update
from .algorithm import Algorithm
from .wrapped import Wrapped, inside, kept, obeying, own


@dataclass(frozen=True)
class Beside(Wrapped):
    """FedAvg's local training, and v_k's after it."""

    lam: float = 1.0

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        made = fit_many(self.learner, params, datas, [inside(ctx) for ctx in ctxs])
        return [self._personal(*turn, params) for turn in zip(made, datas, ctxs, strict=True)]

    def _personal(self, c: Contribution, data: Any, ctx: FitContext, w: Update) -> Contribution:
        v = own(ctx) or w
        tied = replace(ctx, key=ctx.key.at("personal"), state=None, pull=Pull(mu=self.lam, anchor=w))
        return kept(c, v + fit_many(self.learner, v, [data], [tied])[0].update)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        return super().evaluate(own(ctx) or params, data, inside(ctx))


@part("algorithm")
def ditto(lam: float = 1.0) -> Algorithm:
    """Every client trains its own model, tied to the shared one (Li et al. 2021, alg. 1).

    `lam` >= 0: the paper's lambda. Sites are evaluated with their own models.
    """
    if not lam >= 0:
        raise ConfigError(f"lam must be at least 0, got {lam}")
    return Algorithm(
        "ditto", wrap=lambda learner: Beside(obeying(learner, "pull", "ditto"), lam), values={"lam": lam}
    )


@dataclass(frozen=True)
class Tuned(Wrapped):
    """The learner, and a way to a client's own model."""

    times: int = 1

    def personal(self, params: Update, rows: Any, ctx: FitContext) -> Update:
        """The model after `times` local trainings on the client's own training rows."""
        for at in range(self.times):
            again = replace(ctx, key=ctx.key.at("tune", at))
            params = params + fit_many(self.learner, params, [rows], [again])[0].update
        return params


@part("algorithm")
def fine_tune(times: int = 1) -> Algorithm:
    """FedAvg; each site fine-tunes the shared model on its own training rows before it uses it.

    `times` >= 1: local trainings. Sites are evaluated with their tuned models, so an evaluation
    costs as much as `times` rounds of everyone; choose `every` with that in mind.
    """
    if times < 1:
        raise ConfigError(f"times must be at least 1, got {times}")
    return Algorithm("fine_tune", wrap=lambda learner: Tuned(learner, times), values={"times": times})
