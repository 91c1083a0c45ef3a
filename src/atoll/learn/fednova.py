"""FedNova: clients may take different numbers of local steps without pulling the optimum.

Wang, Liu, Liang, Joshi, Poor 2020, "Tackling the objective inconsistency problem in heterogeneous
federated optimization", eq. 8 and table 1:

    client k   d_k = (w_k - w) / ||a_k||_1
    server     w <- w + tau_eff Σ p_k d_k,   tau_eff = Σ p_k ||a_k||_1

||a_k||_1 is tau_k for plain SGD; with momentum rho, (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.registry import part
from ..core.transform import Context, State, Transform, chain, transform
from ..core.update import Update
from .algorithm import Algorithm
from .server import mean

TAU = "nova.tau"
MOST_STEPS = 2.0**20  # effective local steps of one client


def effective(tau: int, momentum: float = 0.0) -> float:
    """||a||_1: how much `tau` local steps accumulate, in gradients. 1 for a client without steps."""
    if tau < 1:
        return 1.0
    rho = momentum
    return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)


@part("transform")
def nova(momentum: float = 0.0) -> Transform:
    """Normalise each update by its local steps; on the mean, multiply by their mean.

    `momentum`: of the local SGD, in [0, 1).
    """
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum must be at least 0 and below 1, got {momentum}")

    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        a = effective(ctx.steps, momentum)
        leaf = Update.of({TAU: np.array([a], update.buffer.dtype)})
        return update.scale(1 / a).join(leaf), state

    def back(delta: Update, state: State, ctx: Context) -> tuple[Update, State]:
        return delta.pick(lambda name: name != TAU).scale(float(delta[TAU][0])), state

    return transform(f"nova({momentum:g})", out, back, on_mean=True, adds={TAU: MOST_STEPS})


@part("algorithm")
def fednova(momentum: float = 0.0) -> Algorithm:
    """Average updates per local step (Wang et al. 2020, eq. 8); `momentum`: the learner's own."""

    def wrap(learner: Any) -> Any:
        if getattr(learner, "optimizer", "sgd") != "sgd":
            raise ConfigError(f"fednova knows the steps of SGD, not of {learner.optimizer!r}")
        mine = getattr(learner, "momentum", momentum)
        if mine != momentum:
            raise ConfigError(f"the learner's momentum is {mine:g}: write fednova(momentum={mine:g})")
        return learner

    return Algorithm("fednova", chain(nova(momentum), mean()), wrap, values={"momentum": momentum})
