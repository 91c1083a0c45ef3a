"""A clip that follows the lengths of updates: a quantile of them, learnt under the same noise.

Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive clipping", alg. 1:

    client k   b_k = 1 if |Δ_k| <= C else 0;    sends Δ_k min(1, C / |Δ_k|) and b_k
    server     C <- C exp(-η (mean of b_k - γ))

Here both are one vector of a known length, so that one clip, one noise and one promise cover them, whoever
adds the noise, and the model's noise follows C by itself:

    client k   u_k = Δ_k min(1/C, 1/|Δ_k|)  and  β (b_k - 1/2),  together at most BOUND = √(1 + β²/4) long
    server     w <- w + C mean(u_k);   log C <- log C - η (mean of b_k - γ)

With noise of σ BOUND on that sum the paper's σ_b is σ BOUND / β, its z_Δ is σ BOUND (its theorem 1). log C
travels to the clients as one more leaf of the model, and is as public as the model is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite, log, sqrt
from typing import Any

import numpy as np

from ..core.message import Contribution, FitContext, fit_many
from ..core.transform import Context, State, Step, Transform, chain, transform
from ..core.update import Update
from ..privacy.dp import SLACK
from .algorithm import Algorithm
from .wrapped import Wrapped

LEAF = "clip/log"
BETA = 0.2  # σ_b is 5 σ: a twentieth of 100 clients, as the paper advises, for 0.5 % more noise on the model
BOUND = sqrt(1 + BETA**2 / 4)
RATE = 0.2  # η, as in the paper


def adaptive(algorithm: Algorithm, start: float, quantile: float) -> Algorithm:
    """The algorithm with clips of its own, at first `start` > 0, then where a share `quantile` in (0, 1) of
    the clients' updates are shorter. Each update it sends is at most BOUND long.
    """
    wrap = algorithm.wrap

    def clipping(learner: Any) -> Any:
        return Clipping(learner if wrap is None else wrap(learner), start)

    steps = [step if step.averages else _beside(step) for step in algorithm.chain.steps]
    here = next((i for i, step in enumerate(steps) if step.averages), len(steps))
    follow = _follow(start, quantile)
    return replace(algorithm, chain=chain(*steps[:here], follow, *steps[here:]), wrap=clipping)


@dataclass(frozen=True)
class Clipping(Wrapped):
    """Local training whose updates are clipped to what the params' last leaf says, in units of it."""

    start: float = 1.0

    def init(self, rng: np.random.Generator) -> Update:
        first = Update.of(self.learner.init(rng))
        return first.join(Update.of({LEAF: np.full(1, log(self.start), first.buffer.dtype)}))

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        made = fit_many(self.learner, _model(params), datas, ctxs)
        clip = exp(float(params[LEAF][0]))
        for c in made:
            c.update = clipped(c.update, clip)
        return made

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        return super().evaluate(_model(params), data, ctx)

    def served(self, params: Update) -> Update:
        """The model alone."""
        inner = getattr(self.learner, "served", lambda model: model)
        found: Update = inner(_model(params))
        return found


def clipped(update: Update, clip: float) -> Update:
    """An update in units of the clip, at most 1 long, and whether it was within: β/2, or -β/2."""
    length = update.norm()
    within = length <= clip or not isfinite(length)  # the aggregator refuses what is not finite
    unit = update.scale(SLACK / (clip if within else length))
    bit = np.full(1, BETA / 2 if within else -BETA / 2, update.buffer.dtype)
    return unit.join(Update.of({LEAF: bit * update.buffer.dtype.type(SLACK)}))


def _follow(start: float, quantile: float) -> Transform:
    """The server's half: it keeps log C, to the bit what the model's leaf says."""

    def init(params: Update) -> State:
        return np.array(params[LEAF])

    def back(total: Update, state: State, ctx: Context) -> tuple[Update, State]:
        buffer = total.buffer * total.buffer.dtype.type(exp(float(state[0])))
        here = total.layout.slices[LEAF]
        short = total[LEAF].astype(np.float64) / BETA + 0.5  # the share of updates within the clip
        buffer[here] = -RATE * (short - quantile)
        return Update(total.layout, buffer), (state + buffer[here]).astype(state.dtype)

    name = f"follow({quantile:g}, start={start:g})"
    return transform(name, back=back, init=init, keeps="back", on_mean=True)


def _model(params: Update) -> Update:
    return params.pick(lambda name: name != LEAF)


def _beside(inner: Transform) -> Transform:
    """The same for the model's leaves alone."""

    def past(step: Step) -> Step:
        def both(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
            model, state = step(_model(update), state, ctx)
            return model.join(update.pick(lambda name: name == LEAF)), state

        return both

    plain = Transform("")
    return replace(
        inner,
        out=inner.out if inner.out is plain.out else past(inner.out),
        back=inner.back if inner.back is plain.back else past(inner.back),
        init=lambda params: inner.init(_model(params)),
    )
