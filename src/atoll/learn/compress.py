"""Lossy updates whose loss is made good later: signs, and the largest entries.

What compression takes away from an update is kept at its client and added to the next one (error
feedback: Karimireddy, Rebjock, Stich, Jaggi 2019, "Error feedback fixes SignSGD", alg. 2):

    v = Δ + e;   send C(v);   e <- v - C(v)

The memory e is a client's own, survives rounds it is not drawn in, and is committed only when the
server used what was sent. Values stay real numbers here: packing them is the codec's work.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np

from ..core.errors import ConfigError, MisuseError
from ..core.registry import part
from ..core.transform import Context, State, Transform, transform
from ..core.update import Array, Update


@part("transform")
def sign() -> Transform:
    """Send signs only, times the mean magnitude ||v||_1 / d (Karimireddy et al. 2019, alg. 2)."""

    def squash(v: Array) -> Array:
        scale = np.abs(v, dtype=np.float64).mean() if v.size else 0.0
        return np.asarray(np.sign(v) * v.dtype.type(scale))

    return _remembering("sign()", squash)


@part("transform")
def topk(fraction: float = 0.01) -> Transform:
    """The `fraction` (0, 1] of entries that are largest in magnitude, the others 0; at least one.

    The threshold is exact; of equal magnitudes the first in leaf order stay.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must be above 0 and at most 1, got {fraction}")

    def largest(v: Array) -> Array:
        k = ceil(fraction * v.size)
        return np.where(_largest(np.abs(v), k), v, v.dtype.type(0)) if 0 < k < v.size else v

    return _remembering(f"topk({fraction:g})", largest)


def _largest(size: Array, k: int) -> Array:
    """Which k entries of `size` are largest, the earlier of equals first; 0 < k < len(size)."""
    threshold = np.partition(size, size.size - k)[size.size - k]
    above = size > threshold
    ties = np.flatnonzero(size == threshold)[: k - np.count_nonzero(above)]
    above[ties] = True
    return np.asarray(above)


def dense(update: Update, part: str) -> None:
    """Raise MisuseError for an update with sparse rows, which this part does not know."""
    if update.rows:
        raise MisuseError(f"{part} takes dense leaves, and {sorted(update.rows)} came as sparse rows")


def _remembering(name: str, squash: Callable[[Array], Array]) -> Transform:
    """The compression `squash` with error feedback; state: the error e as an Update."""

    def out(update: Update, e: State, ctx: Context) -> tuple[Update, State]:
        dense(update, name)
        v = update + e
        if not v.finite():  # a diverged client: the aggregator must see it, not a squashed NaN
            return v, e
        sent = Update(v.layout, squash(v.buffer))
        return sent, v - sent

    def init(params: Update) -> Update:
        return params.zeros()

    return transform(name, out, init=init, keeps="out", loses_bound=True, whole=True)
