"""Nearest-neighbour mixing, before another rule: it makes honest updates alike.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023, "Fixing by mixing: a recipe for optimal
Byzantine ML under heterogeneity", alg. 2. Of n updates, f malicious, n > 2f:

    y_i = mean of the n - f updates nearest to g_i, itself among them;    then rule(y_1 … y_n)

Clients whose data differ send updates that differ, and attacks hide in the difference; after mixing
little of it is left.
"""

from __future__ import annotations

import numpy as np

from ...core.errors import CompositionError
from ...core.registry import part
from ...core.update import Array
from .rule import Rule, answer, as_rule, checked, half, malicious, surely
from .stack import Stack


@part("rule")
def nnm(f: float, then: Rule) -> Rule:
    """Each update replaced by the mean of its n - f nearest, then the rule `then` (Allouah et al. 2023).

    `f`: how many clients may be malicious, a count or a share below 0.5. Needs n > 2f.
    """
    checked(f)
    inner = as_rule(then)
    if inner.knows:
        raise CompositionError(
            f"nnm mixes what {inner} must be able to tell apart: use that alone, or nnm before another rule"
        )

    def walk(stack: Stack) -> Array:
        return answer(inner, stack.mixed(_nearest(stack, malicious(f, stack, half(stack.n)))))

    def least(clients: int) -> int:
        return max(2 * surely(f, clients) + 1, inner.least(clients))

    return Rule("nnm", walk, {"f": f, "then": inner}, least)


def _nearest(stack: Stack, f: int) -> Array:
    """(n, n): row i weighs the n - f updates nearest to g_i the same."""
    near = stack.n - f
    order = np.argsort(stack.apart, axis=1, kind="stable")[:, :near]
    mix = np.zeros((stack.n, stack.n))
    np.put_along_axis(mix, order, 1 / near, axis=1)
    return mix
