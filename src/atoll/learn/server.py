"""What the server does with a sum of updates: divide it, and step with an optimiser.

The mean update is the pseudo-gradient D = Σ p_k (w_k - w) of Reddi et al. 2021, "Adaptive
federated optimization", alg. 2; D points downhill, so optimisers add their step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.registry import part
from ..core.transform import Context, State, Transform, transform
from ..core.update import Update
from ..privacy.dp import Divisor


@part("transform")
def mean(over: float | None = None, share: float | None = None) -> Transform:
    """Divide the sum by the total weight, or by a number that is known before: `over` > 0, or that `share`
    (0, 1] of all clients there are.

    A round whose total weight is 0 changes nothing.
    """
    if over is not None and share is not None:
        raise ConfigError("mean() takes over or share, not both")
    if over is not None and not over > 0:
        raise ConfigError(f"mean(over=...) divides by it: it must be above 0, got {over}")
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"mean(share=...) is a part of all clients, above 0 and at most 1, got {share}")

    def back(total: Update, state: State, ctx: Context) -> tuple[Update, State]:
        divisor = over or (share * ctx.population if share else ctx.weight)
        return total.scale(1.0 / divisor, own=ctx.own) if divisor else total.zeros(), state

    if over or share:
        name = f"mean(over={over:g})" if over else f"mean(share={share:g})"
        return Divisor(name, back=back, averages=True)
    return transform("mean()", back=back, averages=True)


@part("transform")
def sgd(lr: float = 1.0, momentum: float = 0.0) -> Transform:
    """Server SGD: v = momentum * v + D; w += lr * v. With momentum it is FedAvgM.

    Hsu, Qi, Brown 2019, "Measuring the effects of non-identical data distribution", §4.3.
    """
    positive(lr=lr)

    def back(delta: Update, v: State, ctx: Context) -> tuple[Update, State]:
        v = delta if v is None else v.scale(momentum) + delta
        return v.scale(lr), v if momentum else None

    return transform(f"sgd(lr={lr:g}, momentum={momentum:g})", back=back, on_mean=True, keeps="back")


@part("transform")
def adagrad(lr: float = 0.1, b1: float = 0.0, tau: float = 1e-3) -> Transform:
    """FedAdagrad: v += D²."""
    return _adaptive("adagrad", lr, b1, tau, lambda v, d2: v + d2)


@part("transform")
def adam(lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Transform:
    """FedAdam: v = b2 v + (1 - b2) D²; no bias correction, as in the paper."""
    return _adaptive("adam", lr, b1, tau, lambda v, d2: b2 * v + (1 - b2) * d2)


@part("transform")
def yogi(lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Transform:
    """FedYogi: v -= (1 - b2) D² sign(v - D²)."""
    return _adaptive("yogi", lr, b1, tau, lambda v, d2: v - (1 - b2) * d2 * np.sign(v - d2))


def _adaptive(name: str, lr: float, b1: float, tau: float, second: Callable[[Any, Any], Any]) -> Transform:
    """m = b1 m + (1 - b1) D; v by `second`, from tau²; w += lr m / (sqrt(v) + tau)."""
    positive(lr=lr, tau=tau)

    def init(params: Update) -> State:
        zero = params.zeros().astype(np.float64)
        return zero, zero.map(lambda buffer: buffer + tau**2)

    def back(delta: Update, state: State, ctx: Context) -> tuple[Update, State]:
        m = state[0].scale(b1) + delta.scale(1 - b1)
        v = Update(delta.layout, second(state[1].buffer, np.square(delta.buffer)))
        step = Update(delta.layout, lr * m.buffer / (np.sqrt(v.buffer) + tau))
        return step, (m, v)

    return transform(f"{name}(lr={lr:g})", back=back, init=init, on_mean=True, keeps="back")


def positive(**values: float) -> None:
    """Raise ConfigError for the first of the named values that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value}")
