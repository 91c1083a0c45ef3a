"""When to stop: jobs that are chosen by what earlier ones gave, their noise as well, within one (ε, δ).

Feldman, Zrnic 2021, "Individual privacy accounting via a Rényi filter", §3, and Lécuyer 2021, "Practical
privacy filters and odometers with Rényi differential privacy": for one order α that is fixed beforehand, if
Σ ε_i(α) <= b in whatever way the jobs go, all of them together have a divergence of at most b at order α.
Write S for that sum, L for the privacy loss, P for the distribution of all outcomes. The proof is that

    M(α) = exp((α - 1) (L - S(α)))    has    E_P[M(α)] <= 1    wherever one stops.

Which order is the good one depends on the jobs, and they on chance. To go on while S(α) fits at *some* order,
each with all of δ, is no filter: with two orders an adversary gets 1.97 δ (tests/privacy/test_renyi_filter,
and Regehr et al. 2026, "Privacy filters are captured by residues", on filters of whole profiles). So each
order has a share w of δ, Σ w = 1, and the room

    b(α) = ε + log(w δ α) / (α - 1) - log(1 - 1/α)

(Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy", prop. 12, at w δ). As
(1 - e^{-x})⁺ <= (1/α) (1 - 1/α)^(α-1) e^{(α-1) x} for every x, where S(α) <= b(α) it follows that

    (1 - e^{ε-L})⁺ <= w δ M(α)    and so    E_P[(1 - e^{ε-L})⁺] <= Σ_α w δ E_P[M(α)] <= δ

whichever order it is that fits at the end; the left side is what (ε, δ) bounds.

The first order is the one at which most Gaussian noise fits into (ε, δ), what many jobs together come to; it
has three quarters of δ, which costs a few jobs in a hundred. A lower one serves jobs of little noise, a
higher one few small jobs.

A promise without a curve is at most its ε at every order, but for its δ, which then adds to this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, log1p

# (α - 1) over the first order's, and the order's share of δ
GRID = ((1.0, 3 / 4), (0.7, 1 / 6), (2.0, 1 / 12))
_TRIED = [1 + 2 ** (k / 16) for k in range(-48, 192)]


def orders(epsilon: float, delta: float) -> tuple[float, ...]:
    """The orders of a budget, fixed before anything is spent: to four digits, each above 1."""
    first = max(_TRIED, key=lambda a: _room(epsilon, delta, a) / a)
    return tuple(round(1 + (first - 1) * factor, 4) for factor, _ in GRID)


def used(spent: Sequence[float], orders: Sequence[float], delta: float) -> float:
    """The least ε of a filter that would have let these sums of divergences pass, in total, at `delta`.

    `spent`: by order, >= 0; infinite where an order says nothing.
    """
    if not delta > 0:
        return inf
    by_order = zip(spent, orders, GRID, strict=True)
    return max(0.0, min(s - _room(0.0, delta * share, a) for s, a, (_, share) in by_order))


def _room(epsilon: float, delta: float, a: float) -> float:
    return epsilon + log(delta * a) / (a - 1) - log1p(-1 / a)
