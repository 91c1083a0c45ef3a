"""The filter's figures from dp-accounting: curves, conversions, and that no filter beats full knowledge."""

from __future__ import annotations

from dataclasses import replace
from math import floor

import dp_accounting
import pytest
from dp_accounting import rdp

from atoll.privacy.accountant import Release, curve, delta, epsilon
from atoll.privacy.renyi_filter import GRID, orders, used

JOBS = [
    Release(18.89, 1.0, 20, "all"),
    Release(3.56, 0.1, 60),
    Release(2.7, 0.01, 1000),
    Release(0.6, 0.01, 100),
    Release(8.0, 0.2, 30, "fixed", 100),
    Release(18.89, 1.0, 20, "all", None, "distributed"),
]


@pytest.mark.parametrize("release", JOBS, ids=str)
@pytest.mark.parametrize("budget", [(8.0, 1e-5), (1.0, 1e-6)])
def test_one_order_gives_what_dp_accounting_gives_there(
    release: Release, budget: tuple[float, float]
) -> None:
    grid = orders(*budget)
    spent = curve(release, grid)
    noise = dp_accounting.GaussianDpEvent(release.sigma)
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    if release.sampling == "fixed":
        relation = dp_accounting.NeighboringRelation.REPLACE_ONE
        half = dp_accounting.GaussianDpEvent(release.sigma / 2)
        event = dp_accounting.SampledWithoutReplacementDpEvent(100, 20, half)
    else:
        event = noise if release.rate == 1 else dp_accounting.PoissonSampledDpEvent(release.rate, noise)
    for a, share, found in zip(grid, (w for _, w in GRID), spent, strict=True):
        made = rdp.RdpAccountant(orders=[a], neighboring_relation=relation)
        made.compose(event, release.times)
        assert found == pytest.approx(float(made.rdp[0]), rel=1e-3)  # whole numbers cost a little more
        assert found >= float(made.rdp[0]) * (1 - 1e-9)
        alone = [found if b == a else float("inf") for b in grid]
        theirs = made.get_epsilon(budget[1] * share)
        assert used(alone, grid, budget[1]) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("release", JOBS[:4], ids=str)
def test_so_many_jobs_as_it_lets_in_keep_the_promise_by_tighter_books(release: Release) -> None:
    """What is let in costs less than the budget by privacy loss distributions; where it is many, not very
    much less.
    """
    budget, grid = (8.0, 1e-5), orders(8.0, 1e-5)
    one = curve(release, grid)
    many = next(n for n in range(10_000) if used([(n + 1) * x for x in one], grid, budget[1]) > budget[0])
    assert many >= 1
    assert delta([replace(release, times=many * release.times)], budget[0]) <= budget[1]
    if many >= 10:
        more = replace(release, times=floor(1.35 * many) * release.times)
        assert epsilon([more], budget[1]) > budget[0]
