"""Small steps for the model, so that what members download is small as well.

Tang, Lian, Yu, Zhang, Liu 2019, "DoubleSqueeze: Parallel stochastic gradient descent with double-pass
error-compensated compression", alg. 1, the server's half:

    m = Δ + e;   the model moves by C(m);   e <- m - C(m)

C(m) is s or -s at the largest entries and 0 elsewhere. Nothing is approximate for those who download: the
model itself moves so, and the coordinator keeps the error. Consecutive models are then equal in most
numbers, and as s is a power of two, others differ in few bits: their lossless delta (transport/delta.py),
which members who hold the model before are sent, is small.
"""

from __future__ import annotations

from functools import partial
from math import isfinite

import numpy as np

from ..core.registry import part
from ..core.transform import Context, State, Transform, transform
from ..core.update import Update
from .compress import largest, share
from .quantise import dense

_NAME = "thin"


@part("transform")
def thin(fraction: float = 0.05) -> Transform:
    """Coming back, move only the `fraction` (0, 1] of the model's numbers that want to move most.

    What is left waits at the coordinator. It stands before the mean: `chain(thin(), mean(), int2())`.
    """
    share(fraction)
    name = f"{_NAME}({fraction:g})"
    back = partial(_back, name, fraction)
    return transform(name, back=back, init=_nothing, keeps="back", on_mean=True, whole=True)


def thins(chain: Transform) -> bool:
    """Whether what a model has changed by in a round is small."""
    return any(step.name.startswith(f"{_NAME}(") for step in chain.steps)


def _nothing(params: Update) -> Update:
    return params.zeros()


def _back(name: str, fraction: float, delta: Update, e: State, ctx: Context) -> tuple[Update, State]:
    dense(delta, name)
    m = delta.buffer + e.buffer
    if not (m.size and isfinite(length := float(np.abs(m).max())) and length):
        return delta, e  # nothing moves, or all is lost: the rounds say so
    where = largest(m, fraction, ctx.key)
    kept = m[where]
    s = 2.0 ** np.round(np.log2(np.abs(kept).mean()))
    step = np.zeros_like(m)
    step[where] = np.copysign(s, kept)
    m -= step
    return Update(delta.layout, step), Update(delta.layout, m)
