"""A model of its own for every client: some leaves that stay at home.

FedBN   Li, Jiang, Zhang, Kamp, Dou 2021, "FedBN: federated learning on non-IID features via local
        batch normalization", alg. 1: normalisation layers stay.
FedPer  Arivazhagan, Aggarwal, Singh, Choudhary 2019, "Federated learning with personalization
        layers", alg. 1: the head stays, trained together with the body.
FedRep  Collins, Hassani, Mokhtari, Shakkottai 2021, "Exploiting shared representations for
        personalized federated learning", alg. 1: the head stays; head steps first, then body steps.

In the federation's params the leaves that stay are called `own/...`. They are sent out once with
the model, as a first value; what a client makes of them is its state and never leaves it. The
model that the coordinator holds keeps the first value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext, fit_many
from ..core.registry import part
from ..core.transform import Context, State, Transform, chain, transform
from ..core.update import Update
from .algorithm import Algorithm
from .server import mean
from .wrapped import Wrapped, inside, kept, obeying, own, placed, starting

OWN = "own/"


@dataclass(frozen=True)
class Private(Wrapped):
    """Local training that starts from the client's own value of the leaves that `stays` names.

    `turns`: which leaves move, one training after the other; None for all at once.
    """

    stays: Callable[[str], bool]
    turns: tuple[Callable[[str], bool] | None, ...] = (None,)

    def init(self, rng: np.random.Generator) -> Update:
        first = Update.of(self.learner.init(rng))
        if not any(map(self.stays, first)):
            raise ConfigError(f"no leaf stays at its client: choose from {', '.join(first)}", "$.algorithm")
        return first.rename(lambda name: OWN + name if self.stays(name) else name)

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        # one by one: a batch starts from one model, and every client here has its own
        return [self._one(params, data, ctx) for data, ctx in zip(datas, ctxs, strict=True)]

    def _one(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        first = w = self._mine(params, ctx)
        ctx = inside(ctx)
        for at, moves in enumerate(self.turns):
            key = ctx.key.at("turn", at) if at else ctx.key
            c = fit_many(self.learner, w, [data], [replace(ctx, key=key, moves=moves)])[0]
            w = w + c.update
            ctx = replace(ctx, state=c.state)
        if len(self.turns) > 1:
            c.update, c.steps = w - first, c.steps * len(self.turns)
        c.update = Update(params.layout, c.update.buffer)
        return kept(c, w.pick(self.stays))

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        return super().evaluate(self._mine(params, ctx), data, inside(ctx))

    def served(self, params: Update) -> Update:
        """The model under the learner's own names."""
        return params.rename(lambda name: name.removeprefix(OWN))

    def _mine(self, params: Update, ctx: FitContext) -> Update:
        w, private = self.served(params), own(ctx)
        return w if private is None else placed(w, private)


@part("transform")
def stay(prefix: str = OWN) -> Transform:
    """Leaves whose name starts with `prefix` are never sent; the model's value of them stays."""
    stays = starting(prefix)

    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        return update.pick(lambda name: not stays(name)), state

    def back(total: Update, zeros: Update, ctx: Context) -> tuple[Update, State]:
        return placed(zeros, total), zeros

    def init(params: Update) -> Update:
        return params.zeros().astype(np.float64)

    return transform(f"stay({prefix!r})", out, back, drops=stays, init=init, keeps="back")


def _personal(name: str, which: Callable[[Any], Callable[[str], bool]], **more: Any) -> Algorithm:
    """An algorithm whose private leaves are those that `which(learner)` says."""

    def wrap(learner: Any) -> Any:
        stays = which(learner)
        turns = (stays, lambda leaf: not stays(leaf)) if name == "fedrep" else (None,)
        return Private(learner, stays, turns)

    return Algorithm(name, chain(mean(), stay()), wrap, **more)


@part("algorithm")
def fedbn() -> Algorithm:
    """Normalisation layers stay with their client (Li et al. 2021, alg. 1).

    Needs a learner with `norm_leaves()`, such as `torch_learner`.
    """

    def norms(learner: Any) -> Callable[[str], bool]:
        names = frozenset(
            _named(learner, "norm_leaves", "fedbn", "use fedper(head=...) to name leaves yourself")
        )
        if not names:
            raise ConfigError(
                "fedbn keeps normalisation layers at the clients, and this model has none: use fedavg"
            )
        return names.__contains__

    return _personal("fedbn", norms)


@part("algorithm")
def fedper(head: str | None = None) -> Algorithm:
    """The head stays with its client (Arivazhagan et al. 2019, alg. 1).

    `head`: how its leaves' names start; None asks the learner's `head_leaves()`.
    """
    return _personal("fedper", lambda learner: _head(learner, head, "fedper"), values={"head": head})


@part("algorithm")
def fedrep(head: str | None = None) -> Algorithm:
    """The head stays with its client; it trains first, the body after it (Collins et al. 2021).

    `head`: how its leaves' names start; None asks the learner's `head_leaves()`. Each of the two
    takes the learner's whole local training, so a round costs two.
    """
    return _personal(
        "fedrep",
        lambda learner: _head(obeying(learner, "moves", "fedrep"), head, "fedrep"),
        values={"head": head},
    )


def _head(learner: Any, head: str | None, algorithm: str) -> Callable[[str], bool]:
    if head is not None:
        return starting(head)
    names = frozenset(_named(learner, "head_leaves", algorithm, 'name the head, as in head="layer1"'))
    return names.__contains__


def _named(learner: Any, method: str, algorithm: str, fix: str) -> Any:
    if not hasattr(learner, method):
        raise ConfigError(
            f"{algorithm} asks for {method}(), which {type(learner).__name__} does not have: {fix}"
        )
    return getattr(learner, method)()
