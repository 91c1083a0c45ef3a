"""An audit of one run stays below what is promised, and finds too little noise over many rounds."""

from __future__ import annotations

from functools import cache
from math import exp
from typing import Any

import numpy as np
import pytest
from scipy import stats

from atoll.attack.audit import audit, distance
from atoll.attack.one_run import OneRun, at_least, chance, enough, hits, one_run
from atoll.core.errors import ConfigError
from atoll.job import Job
from atoll.learn.algorithm import fedadam, fedavg, fedavgm
from atoll.learn.buffered import fedbuff
from atoll.learn.defend import robust
from atoll.learn.dense import softmax
from atoll.learn.encrypted import encrypted_sum
from atoll.learn.exchange import plain_sum
from atoll.learn.rules.coordinate import median
from atoll.learn.secure import secure_sum
from atoll.learn.select import Everyone, Poisson, everyone, poisson, sample
from atoll.privacy import noise
from tests.attacks.test_audit import (
    PLAIN,
    Break,
    by_who_came,
    no_noise,
)

MANY = 3  # rounds
CANARIES = 500


@cache
def job(
    unit: str,
    noise: str = "central",
    rounds: int = MANY,
    rate: float = 1.0,
    population: int | None = None,
    cohort: Any = everyone(),  # noqa: B008  a value
) -> Job:
    sigma = {poisson(0.3): 1.05, sample(count=40): 3.0}.get(cohort)  # solved for beforehand: it takes seconds
    asked: dict[str, Any] = {
        "epsilon": 4.0,
        "delta": 1e-5,
        "clip": 0.5,
        "sigma": sigma,
        "population": population,
    }
    if unit == "example":
        asked |= {"unit": unit, "rate": rate, "population": 1000}
    algorithm = fedavgm(0.5, 0.9) if unit == "example" else fedavg()
    exchange = secure_sum() if noise == "distributed" else plain_sum()
    plain = Job(softmax(lr=0.1), algorithm, cohort, rounds, sites=False, exchange=exchange)
    return plain.private(**asked)


KINDS = [("client", "central"), ("client", "distributed"), ("example", "central"), ("example", "distributed")]


@pytest.mark.parametrize(("unit", "noise"), KINDS)
def test_what_is_promised_is_not_found_broken(unit: str, noise: str) -> None:
    found = one_run(job(unit, noise), CANARIES)
    assert found.kept
    assert found.canaries == CANARIES
    assert 0.3 * found.claim < found.epsilon <= found.claim, "a bound that says nothing would do as well"
    assert 0.15 * found.claim < found.proven <= found.claim


@pytest.mark.parametrize("cohort", [poisson(0.3), sample(count=40)])
def test_sampled_clients_and_other_optimisers(cohort: Any) -> None:
    fixed = cohort != poisson(0.3)
    plain = job("client", population=100 if fixed else None, cohort=cohort)
    found = one_run(plain.replace(algorithm=fedadam()), 400)
    assert found.kept
    assert found.canaries == 400
    assert found.epsilon > 0 or fixed, "of a sample of a fixed size, whom nobody replaces is half a neighbour"


OTHERS = [
    (fedavg(), encrypted_sum()),
    (fedbuff(size=10), secure_sum()),
    (robust(median(), buckets=10), secure_sum(colluders=1)),
]


@pytest.mark.parametrize(("algorithm", "exchange"), OTHERS)
def test_other_sums_buckets_and_buffers(algorithm: Any, exchange: Any) -> None:
    plain = Job(softmax(lr=0.1), algorithm, rounds=2, sites=False, exchange=exchange)
    promised = plain.private(epsilon=8.0, delta=1e-5, clip=0.5)
    assert audit(promised, 50).kept
    found = one_run(promised, 100)
    assert 0 < found.epsilon <= 8.0


def test_where_rounds_are_many_it_finds_what_one_canary_at_a_time_does_not() -> None:
    long = job("example", rounds=50)
    assert audit(long, 250).epsilon < 0.5
    assert 1.0 < one_run(long, 500).epsilon <= long.epsilon().epsilon


# -- mutants: what the audit must find ---------------------------------------------------------


def sized_for_all(patch: pytest.MonkeyPatch) -> None:
    """Noise for a mean over all clients, under a mean over those that a round expects."""
    add = noise.add
    patch.setattr(noise, "add", lambda total, bound, sigma, key: add(total, bound, 0.3 * sigma, key))


MUTANTS = [*PLAIN, ("client", "central", sized_for_all)]


@pytest.mark.parametrize(("unit", "noise", "broken"), MUTANTS)
def test_control_too_little_noise_is_found(
    unit: str, noise: str, broken: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    cohort = poisson(0.3) if broken is sized_for_all else everyone()
    found = one_run(job(unit, noise, cohort=cohort).replace(name=broken.__name__), CANARIES)
    assert found.epsilon > found.claim
    assert not found.kept


def test_control_without_any_noise_no_assumption_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)
    for unit in ("client", "example"):
        found = one_run(job(unit).replace(name="bare"), CANARIES)
        assert found.right == found.guesses
        assert found.proven > found.claim


def test_coins_that_nobody_tosses_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator asks all in every round: amplification is counted and not there."""
    monkeypatch.setattr(Poisson, "pick", Everyone.pick)
    assert not one_run(job("client", cohort=poisson(0.3)).replace(name="all"), CANARIES).kept


def test_dividing_by_who_came_is_left_to_the_canary_against_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_who_came(monkeypatch)
    once = job("client", rounds=1).replace(name="by who came")
    assert one_run(once, 200).kept
    assert not audit(once, 300).kept


# -- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],  # appendix D; §7, figure 11
)
def test_the_bound_is_the_papers(m: int, r: int, v: int, delta: float, printed: float) -> None:
    assert at_least(m, r, v, delta, 0.05) == pytest.approx(printed, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize(("m", "r", "v"), [(50, 20, 20), (400, 90, 61), (400, 400, 0), (10, 1, 1)])
def test_the_chance_is_the_theorems(m: int, r: int, v: int, epsilon: float) -> None:
    w = stats.binom(r, 1 / (1 + exp(-epsilon)))
    for delta in (0.0, 1e-6, 1e-3):
        steps = [(w.cdf(v - 1) - w.cdf(v - i - 1)) / i for i in range(1, m + 1)]
        want = min(1.0, w.sf(v - 1) + 2 * m * delta * max(steps))
        assert chance(m, r, v, epsilon, delta) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("delta", [0.0, 1e-4, 2e-3])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
def test_no_mechanism_that_keeps_it_is_right_more_often(epsilon: float, delta: float) -> None:
    """Randomised response that shows each of 400 bits by a chance of δ, and guesses those first."""
    rng, m, r, trials = np.random.default_rng(7), 400, 40, 20_000
    shown = np.minimum(rng.binomial(m, delta, trials), r)
    right = shown + rng.binomial(r - shown, 1 / (1 + exp(-epsilon)))
    for v in range(r // 2, r + 1):
        share = (right >= v).mean()
        assert share <= chance(m, r, v, epsilon, delta) + 4 * np.sqrt(max(share, 1e-4) / trials)
    found = np.array([at_least(m, r, int(v), delta, 0.05) for v in range(r + 1)])
    broken = (found[right] > epsilon).mean()
    assert broken <= 0.05 + 0.005
    if not delta:
        assert (right >= r - 1).mean() == pytest.approx(chance(m, r, r - 1, epsilon, 0.0), abs=0.012)


def test_a_promise_that_is_true_is_seldom_found_broken() -> None:
    """Of 60 runs at the very noise that is promised, 5 % at most may say that it is less: it was none."""
    rows = job("example")
    assert sum(not one_run(rows, 100, seed=seed).kept for seed in range(60)) == 0


def test_guesses_of_sums_of_rounds_tell_the_noise_of_each() -> None:
    z, times = stats.norm, 30
    for near, rate in [(0.3, 1.0), (2.0, 0.1), (0.5, 0.5)]:
        fpr, often = 0.1, np.arange(times + 1)
        hit = z.cdf(z.ppf(fpr) + often * near / np.sqrt(times)) @ stats.binom.pmf(often, times, rate)
        assert distance(fpr, 1 - hit, rate, times) == pytest.approx(near, rel=1e-6)
    assert distance(0.1, 1e-9, 0.01, times) < np.inf


def test_guesses_begin_at_both_ends() -> None:
    scores, there = np.array([0.1, 0.9, 0.4, 0.8, 0.2]), np.array([False, True, True, False, True])
    assert [hits(scores, there, r) for r in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert enough(1000, 0.5, 0.025) == 100
    assert enough(1000, 4.0, 0.025) > 220
    assert enough(100, 8.0, 0.025) == 10
    r = enough(1000, 4.0, 0.025)
    assert at_least(1000, r, r, 1e-5, 0.025) > 4.0


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="no promise to audit"):
        one_run(Job(softmax(lr=0.1)))
    alone = Job(softmax(lr=0.1), sites=False).private(epsilon=4.0, delta=1e-5, clip=0.5, noise="local")
    with pytest.raises(ConfigError, match="seen one by one"):
        one_run(alone)
    for canaries, confidence in ((1, 0.95), (10, 0.0), (10, 1.0)):
        with pytest.raises(ConfigError, match="an audit takes"):
            one_run(job("client"), canaries, confidence)


def test_the_same_seed_gives_the_same_audit() -> None:
    one = one_run(job("example", rounds=1), 50, seed=3)
    assert isinstance(one, OneRun)
    assert one == one_run(job("example", rounds=1), 50, seed=3)
    assert one != one_run(job("example", rounds=1), 50, seed=4)
