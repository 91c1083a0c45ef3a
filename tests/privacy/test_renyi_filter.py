"""Why orders share delta: the filter that gives each of them all of it is broken by an adversary."""

from __future__ import annotations

from math import exp, log, log1p

import pytest

from atoll.privacy.renyi_filter import GRID, orders, used

EPSILON, DELTA = 8.0, 2.4417672971226258e-05
A, B = 2.5805680296276376, 25.963191101887148  # the adversary's two orders


def two(p: float, loss: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Outcomes of chance p and 1 - p, and their privacy losses."""
    return (p, 1 - p), (loss, log((1 - p) / (1 - p * exp(-loss))))


def divergence(p: float, loss: float, a: float) -> float:
    moments = (q * exp((a - 1) * x) for q, x in zip(*two(p, loss), strict=True))
    return log(sum(moments)) / (a - 1)


def room(a: float, delta: float) -> float:
    return EPSILON + log(delta * a) / (a - 1) - log1p(-1 / a)


def beyond(chances: tuple[float, float], losses: tuple[float, float], epsilon: float) -> float:
    """Exactly by how much P exceeds e^epsilon Q."""
    return sum(q * max(0.0, 1 - exp(epsilon - x)) for q, x in zip(chances, losses, strict=True))


def worst(a: float, most: float, epsilon: float) -> float:
    """The most by which something of two outcomes exceeds, whose divergence at `a` is at most `most`."""
    best = 0.0
    for k in range(1, 60):
        loss = max(epsilon, 0.0) + 0.05 * k
        low, high = 0.0, 1 - 1e-12
        for _ in range(60):
            p = (low + high) / 2
            low, high = (p, high) if divergence(p, loss, a) <= most else (low, p)
        best = max(best, beyond(*two(low, loss), epsilon))
    return best


def attacked(delta_a: float, delta_b: float) -> float:
    """What an adversary gets: after the first outcome it takes whatever has room at the order that is good
    for it then.
    """
    p, loss = 0.0011241991239586914, 0.8230454640840681
    total = 0.0
    for chance, x in zip(*two(p, loss), strict=True):
        rooms = [(a, room(a, d) - divergence(p, loss, a)) for a, d in ((A, delta_a), (B, delta_b))]
        total += chance * max(worst(a, r, EPSILON - x) for a, r in rooms if r > 0)
    return total


def test_at_some_order_with_all_of_delta_is_no_filter() -> None:
    assert attacked(DELTA, DELTA) > 1.9 * DELTA


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_shares_of_delta_hold(share: float) -> None:
    assert attacked(share * DELTA, (1 - share) * DELTA) <= DELTA


def test_one_order_that_was_fixed_holds() -> None:
    assert attacked(DELTA, 1e-300) <= DELTA
    assert attacked(1e-300, DELTA) <= DELTA


def test_shares_come_to_one_and_orders_are_above_one() -> None:
    assert sum(share for _, share in GRID) == pytest.approx(1.0)
    for epsilon in (0.01, 0.5, 8.0, 100.0):
        for delta in (0.1, 1e-5, 1e-12):
            assert all(a > 1 for a in orders(epsilon, delta))


def test_what_was_spent_is_counted_at_the_order_where_it_is_least() -> None:
    grid = orders(8.0, 1e-5)
    some = [0.2 * a for a in grid]
    total = used(some, grid, 1e-5)
    assert 0 < total < 8
    assert used([2 * x for x in some], grid, 1e-5) > total
    blind = [float("inf")] * len(grid)
    assert used(blind, grid, 1e-5) == float("inf")
    assert used([some[0], *blind[1:]], grid, 1e-5) >= total
    assert used(some, grid, 0.0) == float("inf")
