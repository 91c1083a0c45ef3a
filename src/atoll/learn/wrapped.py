"""A learner around a learner: what an algorithm that changes local training is made of.

A wrapper says what differs, mostly by a `fit_many` that hands the inner learner other params or
another context; what it does not say, the inner learner answers (`chunk`, `bounds`).
It delegates through `core.message.fit_many`, so batched engines stay batched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext, fit_many
from ..core.update import Update


class Kept(NamedTuple):
    """A client's state under a wrapper that keeps one: `own`, and the inner learner's."""

    own: Any = None
    inner: Any = None


@dataclass(frozen=True)
class Wrapped:
    """`learner` as it is; wrappers change what they need of it."""

    learner: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "learner":
            raise AttributeError(name)
        return getattr(self.learner, name)

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        first: Mapping[str, Any] = self.learner.init(rng)
        return first

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        return self.fit_many(params, [data], [ctx])[0]

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        return fit_many(self.learner, params, datas, ctxs)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.learner.evaluate(params, data, ctx)
        return found


def own(ctx: FitContext) -> Any:
    """What the wrapper kept for this client, None at first."""
    return ctx.state.own if ctx.state is not None else None


def inside(ctx: FitContext, **changes: Any) -> FitContext:
    """The context as the inner learner may see it: with its own state, and these changes."""
    return replace(ctx, state=ctx.state.inner if ctx.state is not None else None, **changes)


def kept(c: Contribution, mine: Any) -> Contribution:
    """The contribution with the wrapper's own state around the learner's."""
    c.state = Kept(mine, c.state)
    return c


def placed(params: Update, leaves: Update) -> Update:
    """`params` with some of its leaves replaced by `leaves`."""
    buffer = params.buffer.copy()
    for name in leaves:
        buffer[params.layout.slices[name]] = leaves[name].reshape(-1)
    return Update(params.layout, buffer, rows=params.rows)


def starting(prefix: str) -> Callable[[str], bool]:
    """Whether a name starts with `prefix`."""
    return lambda name: name.startswith(prefix)


def step_size(learner: Any, ctx: FitContext) -> float:
    """The rate of this round's local steps, `learner.lr` times `learner.decay` to the round."""
    return float(learner.lr * getattr(learner, "decay", 1.0) ** ctx.round)


def obeying(learner: Any, what: str, algorithm: str) -> Any:
    """The learner, if it says by `obeys` that its fit follows ctx.`what`, "pull" or "moves".

    Raises ConfigError for any other: it would ignore the algorithm in silence.
    """
    if what in getattr(learner, "obeys", ()):
        return learner
    raise ConfigError(
        f"{algorithm} steers local training by ctx.{what}, and {type(learner).__name__} does not say that"
        f' its fit follows it: do what FitContext describes and set obeys = {{"{what}"}}'
    )


def plain_sgd(learner: Any, algorithm: str) -> Any:
    """The learner, if its local steps are SGD of one known rate; else ConfigError.

    Formulas that divide by the local steps and their rate are wrong for any other optimiser.
    """
    if not hasattr(learner, "lr"):
        raise ConfigError(f"{algorithm} divides by the local rate, and {type(learner).__name__} has no `lr`")
    for name, plain in (("momentum", 0), ("optimizer", "sgd"), ("schedule", None), ("clip", None)):
        value = getattr(learner, name, plain)
        if value != plain:
            raise ConfigError(
                f"{algorithm} assumes plain SGD steps of one rate, and this learner has {name}={value!r}:"
                f" set {name}={plain!r}"
            )
    return learner
