"""Rules by coordinate: the mean, the median, and the mean without its extremes.

Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-robust distributed learning: towards optimal
statistical rates", definitions 1 and 2:

    median           of each coordinate over the n updates
    trimmed mean     of each coordinate, without the f largest and the f smallest values; n > 2f

Neither sees that coordinates belong together: where clients differ, an attack within each coordinate's
spread passes. `nnm` does see it, and lets a backdoor in by coordinates that honest clients leave alone. So
`within` holds the answer of another rule near the median of each coordinate.
"""

from __future__ import annotations

import numpy as np

from ...core.registry import part
from ...core.update import Array
from .rule import Rule, answer, as_rule, checked, half, malicious, surely
from .stack import Stack


@part("rule")
def average() -> Rule:
    """The plain mean, every client alike: no defence, for comparison and after `norm_bound`."""

    def walk(stack: Stack) -> Array:
        return stack.combine(np.full(stack.n, 1 / stack.n))

    return Rule("average", walk)


@part("rule")
def median() -> Rule:
    """The median of each coordinate (Yin et al. 2018, def. 1); of an even number, the middle of two."""

    def middle(some: Array) -> Array:
        some.sort(axis=0)
        return _middle(some)

    return Rule("median", lambda stack: stack.columns(middle))


@part("rule")
def trimmed_mean(f: float) -> Rule:
    """The mean of each coordinate without its `f` largest and smallest values (Yin et al. 2018, def. 2).

    `f`: how many clients may be malicious, a count or a share below 0.5. Needs n > 2f.
    """
    checked(f)

    def walk(stack: Stack) -> Array:
        cut = malicious(f, stack, half(stack.n))

        def inner(some: Array) -> Array:
            some.sort(axis=0)
            return np.asarray(some[cut : len(some) - cut].mean(axis=0, dtype=np.float64))

        return stack.columns(inner)

    return Rule("trimmed_mean", walk, {"f": f}, lambda clients: 2 * surely(f, clients) + 1)


@part("rule")
def within(then: Rule) -> Rule:
    """The answer of `then`, each coordinate no farther from the median than half of the updates are.

    That half-width is the median absolute deviation (Hampel 1974, "The influence curve and its role in robust
    estimation", §4). A coordinate that most clients leave alone stays alone, whoever moves it.
    """
    inner = as_rule(then)

    def keep(some: Array, found: Array) -> Array:
        some.sort(axis=0)
        centre = _middle(some)
        off = _deviation(some, centre.astype(some.dtype))
        return np.clip(found, centre - off, centre + off)

    def walk(stack: Stack) -> Array:
        return stack.columns(keep, answer(inner, stack))

    return Rule("within", walk, {"then": inner}, inner.least, inner.knows)


def _middle(ranked: Array) -> Array:
    """The median of sorted columns (n, width); of an even number, the middle of two."""
    n = len(ranked)
    return np.asarray((ranked[half(n)].astype(np.float64) + ranked[n // 2]) / 2)


def _deviation(ranked: Array, centre: Array) -> Array:
    """The median of |values - centre| of sorted columns (n, width), without sorting again.

    The k values nearest to the centre stand side by side, so the k-th smallest distance is the smallest reach
    of k neighbours.
    """
    n = len(ranked)
    kth = []
    for k in {half(n) + 1, n // 2 + 1}:
        reach = np.full(centre.shape, np.inf, ranked.dtype)
        for low, high in zip(ranked[: n - k + 1], ranked[k - 1 :], strict=True):
            np.minimum(reach, np.maximum(centre - low, high - centre), out=reach)
        kth.append(reach.astype(np.float64))
    return np.asarray(sum(kth) / len(kth))
