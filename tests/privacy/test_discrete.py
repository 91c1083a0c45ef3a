"""Noise of whole numbers: its distribution, and its cost against divergences that are computed exactly."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from atoll.core.errors import ConfigError, MisuseError
from atoll.privacy import discrete
from atoll.privacy.accountant import Release, epsilon, plan
from atoll.privacy.discrete import BLUR

KEY = bytes(range(32))


def mass(s: float, reach: int) -> np.ndarray:
    """The discrete Gaussian's probabilities from -reach to reach."""
    k = np.arange(-reach, reach + 1)
    p = np.exp(-(k**2) / (2 * s * s))
    return np.asarray(p / p.sum())


@pytest.mark.parametrize("s", [0.5, 0.8, 3.0, 17.3])
def test_numbers_are_discrete_gaussian(s: float) -> None:
    size, reach = 400_000, int(6 * s) + 2
    found = discrete.gaussian(KEY, size, s)
    wanted = mass(s, reach) * size
    counts = np.bincount(np.clip(found, -reach, reach) + reach, minlength=2 * reach + 1)
    often = wanted > 20
    assert (
        stats.chisquare(counts[often], wanted[often] * counts[often].sum() / wanted[often].sum()).pvalue
        > 1e-3
    )
    assert counts[~often].sum() < 5 * wanted[~often].sum() + 40


@pytest.mark.parametrize("s", [1000.0, 2.0**25, 2.0**37])
def test_large_ones_are_as_good_as_normal(s: float) -> None:
    found = discrete.gaussian(KEY, 200_000, s)
    assert stats.kstest(found / s, "norm").pvalue > 1e-3
    assert abs(found.std() / s - 1) < 0.01


def test_a_key_is_a_noise() -> None:
    one = discrete.gaussian(KEY, 70_000, 9.0)
    assert (one == discrete.gaussian(KEY, 70_000, 9.0)).all()
    assert (one[:5] == discrete.gaussian(KEY, 5, 9.0)).all()
    assert abs(np.corrcoef(one, discrete.gaussian(KEY[::-1], 70_000, 9.0))[0, 1]) < 0.02
    for key, s in ((b"short", 9.0), (KEY, 0.1), (KEY, 2.0**40)):
        with pytest.raises(MisuseError, match="noise needs a key"):
            discrete.gaussian(key, 5, s)


def renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    keep = (p > 1e-250) & (q > 1e-250)
    return float(logsumexp(order * np.log(p[keep]) + (1 - order) * np.log(q[keep])) / (order - 1))


@pytest.mark.parametrize("clients", [1, 3, 10])
@pytest.mark.parametrize("s", [1.2, 2.0, 5.0])
@pytest.mark.parametrize("step", [1, 3])
def test_a_sum_of_theirs_costs_no_more_than_the_published_bound(clients: int, s: float, step: int) -> None:
    """Rényi divergences of the exact distribution of the sum from itself, `step` to the side."""
    one = mass(s, int(12 * s * sqrt(clients)) + 40)
    total = one
    for _ in range(clients - 1):
        total = np.convolve(total, one)
    blur = 10 * sum(np.exp(-2 * np.pi**2 * s**2 * k / (k + 1)) for k in range(1, clients))
    assert blur <= 10 * clients * np.exp(-((np.pi * s) ** 2)), "as `spread` reckons it"
    for order in (1.5, 2.0, 4.0, 16.0):
        exact = renyi(total[step:], total[:-step], order)
        assert exact <= order / 2 * (step**2 / (clients * s**2) + blur / 2) * (1 + 1e-9)
        assert exact > 0.9 * order / 2 * step**2 / (clients * s**2), "and not much less"


@pytest.mark.parametrize(("sigma", "times"), [(1.0, 1), (2.0, 10), (5.0, 60)])
def test_it_is_accounted_by_that_bound(sigma: float, times: int) -> None:
    """The least over all orders of the bound, converted (Canonne, Kamath, Steinke 2020, prop. 12)."""
    found = epsilon([Release(sigma, 1.0, times, "all", noise="distributed")], 1e-5)
    rate = times * (1 / sigma**2 + BLUR) / 2
    orders = np.linspace(1.01, 200, 200_000)
    converted = orders * rate + np.log((orders - 1) / orders) - (np.log(1e-5) + np.log(orders)) / (orders - 1)
    assert found == pytest.approx(converted.min(), rel=0.01)
    assert found > epsilon([Release(sigma, 1.0, times, "all")], 1e-5), "never below what a Gaussian costs"
    sampled = Release(sigma, 0.1, times, "poisson", noise="distributed")
    assert epsilon([sampled], 1e-5) == found, "no amplification: members see who takes part"
    fixed = Release(sigma, 0.1, times, "fixed", 100, noise="distributed")
    assert epsilon([fixed], 1e-5) > 1.5 * found, "one is replaced by another"


def test_the_planner_solves_for_it() -> None:
    made = plan(epsilon=2.0, delta=1e-5, rate=1.0, rounds=20, noise="distributed")
    assert made.epsilon == pytest.approx(2.0, rel=2e-3)
    assert made.epsilon == made.known
    assert made.release.sigma > plan(epsilon=2.0, delta=1e-5, rate=1.0, rounds=20).release.sigma
    assert "towards everybody" in str(made)


def test_too_coarse_a_grid_is_refused() -> None:
    assert discrete.spread(2.0, 100.0, 16, 1000) == 50.0
    with pytest.raises(ConfigError, match="take more bits"):
        discrete.spread(1.0, 5.0, 64, 1000)
