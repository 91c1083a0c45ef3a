"""What releases cost: published figures, dp-accounting's own, and the plans that invert them."""

from __future__ import annotations

from math import inf, nan

import dp_accounting as dpa
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import ConfigError
from atoll.privacy.accountant import Release, advantage, cost, delta, epsilon, plan, warnings

# sigma, rate, times, epsilon at delta 1e-5. The last: TensorFlow Privacy's tutorial, MNIST, 60 epochs.
KNOWN = [
    (0.5, 1.0, 1, 9.9973),
    (1.0, 1.0, 1, 4.3772),
    (2.0, 1.0, 1, 1.9931),
    (10.0, 1.0, 100, 4.3772),
    (1.0, 0.01, 1000, 1.8282),
    (2.0, 0.1, 200, 3.3597),
    (0.5, 0.01, 1000, 13.3608),
    (1.1, 256 / 60000, 14062, 2.3817),
]


def by_library(sigma: float, rate: float, times: int, at: float) -> float:
    event = dpa.GaussianDpEvent(sigma)
    accountant = pld.PLDAccountant()
    accountant.compose(event if rate == 1 else dpa.PoissonSampledDpEvent(rate, event), times)
    return float(accountant.get_epsilon(at))


@pytest.mark.parametrize(("sigma", "rate", "times", "known"), KNOWN)
def test_figures_that_are_known(sigma: float, rate: float, times: int, known: float) -> None:
    found = epsilon([Release(sigma, rate, times, "all" if rate == 1 else "poisson")], 1e-5)
    assert found == pytest.approx(known, rel=1e-4)
    theirs = by_library(sigma, rate, times, 1e-5)
    assert theirs * (1 - 1e-6) <= found <= theirs * 1.01


@given(st.floats(0.3, 20), st.floats(0.1, 12))
@settings(max_examples=60)
def test_of_everybody_epsilon_and_delta_are_inverse(sigma: float, at: float) -> None:
    one = [Release(sigma, 1.0, 1, "all")]
    chance = delta(one, at)
    if 1e-300 < chance < 0.99:
        assert epsilon(one, chance) == pytest.approx(at, rel=1e-5)


def test_releases_add_up() -> None:
    twice = [Release(2.0, times=2, sampling="all"), Release(1.0, sampling="all")]
    assert epsilon(twice, 1e-6) == pytest.approx(
        epsilon([Release((1 / 2 + 1) ** -0.5, sampling="all")], 1e-6)
    )
    mixed = [Release(1.0, 0.01, 10), Release(4.0, sampling="all")]
    parts = [epsilon([one], 1e-5) for one in mixed]
    assert max(parts) < epsilon(mixed, 1e-5) < sum(parts)
    assert epsilon([], 1e-5) == 0.0 and delta([], 1.0) == 0.0


def test_a_sample_of_fixed_size_is_accounted_by_its_own_bound() -> None:
    fixed = Release(4.0, 0.1, 60, "fixed", 1000)
    accountant = dpa.rdp.RdpAccountant(neighboring_relation=dpa.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dpa.SampledWithoutReplacementDpEvent(1000, 100, dpa.GaussianDpEvent(2.0)), 60)
    assert epsilon([fixed], 1e-5) == pytest.approx(float(accountant.get_epsilon(1e-5)))
    assert epsilon([fixed], 1e-5) > epsilon([Release(4.0, 0.1, 60)], 1e-5), "replaced, not removed"
    with pytest.raises(ConfigError, match="not accounted together"):
        epsilon([fixed, Release(4.0, 0.1)], 1e-5)


@pytest.mark.parametrize(
    ("given", "missing", "value"),
    [
        ({"epsilon": 2.0, "rate": 1.0, "rounds": 1}, "sigma", 1.9938),
        ({"epsilon": 2.3, "rate": 1.0, "rounds": 1}, "sigma", 1.760),
        ({"epsilon": 1.8282, "rate": 0.01, "rounds": 1000}, "sigma", 1.0),
        ({"epsilon": 3.3597, "sigma": 2.0, "rounds": 200}, "rate", 0.1),
        ({"epsilon": 1.8283, "sigma": 1.0, "rate": 0.01}, "times", 1000),
    ],
)
def test_a_plan_finds_what_is_missing(given: dict[str, float], missing: str, value: float) -> None:
    made = plan(delta=1e-5, **given)  # type: ignore[arg-type]
    assert getattr(made.release, missing) == pytest.approx(value, rel=1e-3)
    assert made.epsilon <= given["epsilon"] * (1 + 1e-9), "on the safe side"
    assert made.known >= made.epsilon


def test_a_plan_for_samples_of_a_fixed_size() -> None:
    made = plan(delta=1e-5, epsilon=4.0, rate=0.1, rounds=60, sampling="fixed", population=1000)
    assert 3.99 < made.epsilon <= 4.0
    assert epsilon([made.release], 1e-5) == made.epsilon


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_who_knows_the_cohort_knows_no_less(rate: float) -> None:
    """Both of the same neighbours: one member is another one, so that two updates are two clips apart."""
    found = cost(Release(2.0, rate, 20, "fixed", 100), 1e-5)
    assert found.known >= found.epsilon
    assert found.known == pytest.approx(epsilon([Release(1.0, 1.0, 20, "all")], 1e-5))
    assert "one may be another" in str(found)


def test_towards_the_coordinator_sampling_hides_nobody() -> None:
    found = cost(Release(2.0, 0.1, 200), 1e-5)
    assert found.epsilon == pytest.approx(3.3597, rel=1e-3)
    assert found.known == pytest.approx(epsilon([Release(2.0, 1.0, 200, "all")], 1e-5))
    assert "200 x a sum of each with probability 0.1" in str(found) and "coordinator" in str(found)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"delta": 1e-5, "epsilon": 2.0, "rate": 0.1}, "missing: sigma, rounds"),
        ({"delta": 1e-5, "epsilon": 2.0, "rate": 0.1, "rounds": 3, "sigma": 1.0}, "missing: none"),
        ({"delta": 1.0, "epsilon": 2.0, "rate": 0.1, "rounds": 3}, "delta is a probability"),
        ({"delta": 0.0, "epsilon": 2.0, "rate": 0.1, "rounds": 3}, "delta is a probability"),
        ({"delta": 1e-5, "epsilon": -1.0, "rate": 0.1, "rounds": 3}, "epsilon is above 0"),
        ({"delta": 1e-5, "epsilon": inf, "rate": 0.1, "rounds": 3}, "epsilon is above 0"),
        ({"delta": 1e-5, "sigma": 0.0, "rate": 0.1, "rounds": 3}, "sigma is a noise multiplier above 0"),
        ({"delta": 1e-5, "sigma": nan, "rate": 0.1, "rounds": 3}, "sigma is a noise multiplier above 0"),
        ({"delta": 1e-5, "sigma": 1.0, "rate": 1.1, "rounds": 3}, "a sampling rate is"),
        ({"delta": 1e-5, "sigma": 1.0, "rate": 0.1, "rounds": 0}, "at least once"),
        ({"delta": 1e-5, "sigma": 1.0, "rate": 0.1, "rounds": 3, "sampling": "fixed"}, "the population"),
        ({"delta": 1e-5, "sigma": 0.1, "epsilon": 1.0, "rate": 1.0}, "raise sigma"),
        ({"delta": 1e-5, "sigma": 0.1, "epsilon": 0.1, "rounds": 1000}, "at any rate"),
    ],
)
def test_values_that_mean_nothing(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(**values)  # type: ignore[arg-type]


def test_what_a_planner_hears_before_it_spends() -> None:
    made = cost(Release(2.0, 0.1, 10), 1e-2)
    assert "not below 1/100" in warnings(made, 100)[0]
    assert any("empty" in text for text in warnings(made, 5))
    assert any("times as long" in text for text in warnings(made, 100, size=8000))
    assert warnings(cost(Release(2.0, 0.1, 10), 1e-7), 1_000_000, size=8000) == []


def test_what_an_attacker_can_gain_at_most() -> None:
    assert advantage(0.0, 0.0) == 0.0
    assert advantage(1.0, 1e-5) == pytest.approx(0.46212, abs=1e-4)
    assert advantage(1000.0, 1e-5) == 1.0
