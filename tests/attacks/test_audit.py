"""A canary audit stays below what is promised, comes near it, and finds every way to add too little noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import atoll.job
from atoll.attack.audit import Audit, audit, distance, lowest, most
from atoll.core.errors import ConfigError
from atoll.core.transform import chain, transform
from atoll.job import Job
from atoll.learn.algorithm import fedavg, fedavgm
from atoll.learn.compress import topk
from atoll.learn.dense import softmax
from atoll.learn.per_row import PerRow
from atoll.learn.secure import secure_sum
from atoll.learn.select import poisson
from atoll.learn.server import adam, mean
from atoll.privacy import discrete, dp, noise

RUNS = 300


def job(unit: str, noise: str = "central", rounds: int = 1, **more: Any) -> Job:
    rows = {"unit": "example", "rate": 0.8, "population": 1000} if unit == "example" else {}
    exchange = {"exchange": secure_sum()} if noise == "distributed" else {}
    plain = Job(softmax(lr=0.1), fedavgm(0.5, 0.0) if rows else fedavg(), rounds=rounds, sites=False)
    return plain.replace(**more).private(epsilon=4.0, delta=1e-5, clip=0.5, **rows, **exchange)


KINDS = [("client", "central"), ("client", "distributed"), ("example", "central"), ("example", "distributed")]


@pytest.mark.parametrize(("unit", "noise"), KINDS)
def test_what_is_promised_is_not_found_broken(unit: str, noise: str) -> None:
    found = audit(job(unit, noise), RUNS)
    assert found.kept
    assert 0.25 * found.claim < found.epsilon <= found.claim, "a bound that says nothing would do as well"
    assert found.once <= found.claim


def test_over_many_rounds_and_behind_other_parts() -> None:
    """What stands before the clip, and the server's optimiser, see no more than the noisy sum."""
    longer = job("client", rounds=20, cohort=poisson(0.3))
    assert audit(longer, RUNS).kept
    chained = (adam(), mean(), topk(0.5))
    behind = job("client", algorithm=replace(fedavg(), chain=chain(*chained)))
    assert audit(behind, RUNS) == audit(job("client"), RUNS)


# -- mutants: what the audit must find ---------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noise, "add", lambda total, bound, sigma, key: (np.asarray(total, np.float64), 0.0))
    patch.setattr(discrete, "gaussian", lambda key, size, s, *_: np.zeros(size, np.int64))


def half_of_it(patch: pytest.MonkeyPatch) -> None:
    add, drawn = noise.add, discrete.gaussian
    patch.setattr(noise, "add", lambda total, bound, sigma, key: add(total, bound, sigma / 2, key))
    patch.setattr(discrete, "gaussian", lambda key, size, s, *more: drawn(key, size, s / 2, *more))


def before_the_clip(patch: pytest.MonkeyPatch) -> None:
    """Each client adds it to its update, and the clip takes it away again."""
    clip = dp.clip

    def early(norm: float) -> Any:
        after = clip(norm)

        def out(update: Any, state: Any, ctx: Any) -> Any:
            drawn = ctx.key.generator().normal(0, 2 * norm, update.buffer.size)
            return after.out(update.map(lambda buffer: buffer + drawn), state, ctx)

        return transform("early", out, sets_bound=norm, whole=True)

    patch.setattr(dp, "clip", early)
    no_noise(patch)
    patch.setattr(noise, "add", lambda total, bound, sigma, key: (np.asarray(total, np.float64), 0.0))


def by_who_came(patch: pytest.MonkeyPatch) -> None:
    """Dividing by the number of those who came: against all others a client moves that twice as far."""
    counted = dp.Divisor("counted", back=mean().back, averages=True)
    patch.setattr(atoll.job, "mean", lambda **_: counted)


def twice_the_clip(patch: pytest.MonkeyPatch) -> None:
    clip = dp.clip
    patch.setattr(dp, "clip", lambda norm: replace(clip(2 * norm), sets_bound=norm))
    patch.setattr(atoll.job, "PerRow", lambda rate, norm: PerRow(rate, 2 * norm))


def no_clip_of_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(atoll.job, "PerRow", lambda rate, norm: PerRow(rate, 1e9))


def all_rows(patch: pytest.MonkeyPatch) -> None:
    """Coins that nobody tosses: amplification is counted and not there."""
    patch.setattr(atoll.job, "PerRow", lambda rate, norm: PerRow(1.0, norm))


PLAIN = [  # what either audit finds
    *((*kind, broken) for kind in KINDS for broken in (no_noise, half_of_it)),
    ("client", "central", before_the_clip),
    ("client", "distributed", before_the_clip),
    ("client", "central", twice_the_clip),
    ("example", "central", twice_the_clip),
    ("example", "distributed", twice_the_clip),
    ("example", "central", no_clip_of_rows),
]
MUTANTS = [*PLAIN, ("client", "central", by_who_came)]


@pytest.mark.parametrize(("unit", "noise", "broken"), MUTANTS)
def test_control_too_little_noise_is_found(
    unit: str, noise: str, broken: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    found = audit(job(unit, noise), RUNS)
    assert found.epsilon > found.claim
    assert not found.kept


def test_control_without_any_noise_no_assumption_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    no_noise(monkeypatch)
    assert audit(job("client"), RUNS).once > 4.0


def test_coins_that_nobody_tosses_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seldom = (
        job("example")
        .replace(privacy=None)
        .private(epsilon=2.0, delta=1e-5, clip=0.5, unit="example", rate=0.2, population=1000)
    )
    assert audit(seldom, RUNS).kept
    all_rows(monkeypatch)
    assert not audit(seldom.replace(name="again"), RUNS).kept


# -- the bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("errors", "runs"), [(0, 10), (1, 10), (37, 300), (299, 300), (300, 300)])
def test_the_bound_on_a_rate_is_clopper_and_pearsons(errors: int, runs: int) -> None:
    want = stats.binomtest(errors, runs, alternative="less").proportion_ci(0.95, "exact").high
    assert most(errors, runs, 0.05) == pytest.approx(want, abs=1e-6)


def test_the_distance_is_the_gaussians() -> None:
    z = stats.norm
    for near, rate in [(0.3, 1.0), (2.0, 1.0), (1.0, 0.4)]:
        fpr = z.sf(0.5 * near)
        fnr = 1 - (1 - rate) * fpr - rate * z.sf(-0.5 * near)
        assert distance(fpr, fnr, rate) == pytest.approx(near, rel=1e-6)
    assert distance(0.5, 0.5) == distance(1.0, 0.0) == distance(0.4, 0.7) == 0
    assert lowest(0.01, 0.5, 0.0) == pytest.approx(np.log(50))
    assert lowest(0.5, 0.01, 0.0) == pytest.approx(np.log(50))
    assert lowest(0.5, 0.5, 0.1) == lowest(0.0, 1.0, 0.1) == 0


def test_a_promise_that_is_true_is_seldom_found_broken() -> None:
    """Of guesses at the very sigma that is promised, 5 % at most may say that it is less."""
    rng, broken, near = np.random.default_rng(0), 0, 1.0
    for _ in range(400):
        alarms = int((rng.normal(0, 1, 100) > near / 2).sum())
        misses = int((rng.normal(near, 1, 100) <= near / 2).sum())
        broken += distance(most(alarms, 100, 0.025), most(misses, 100, 0.025)) > near
    assert broken <= 20


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="no promise to audit"):
        audit(Job(softmax(lr=0.1)))
    for runs, confidence in ((0, 0.95), (10, 0.0), (10, 1.0)):
        with pytest.raises(ConfigError, match="an audit takes"):
            audit(job("client"), runs, confidence)


def test_the_same_seed_gives_the_same_audit() -> None:
    one = audit(job("client"), 20, seed=3)
    assert isinstance(one, Audit)
    assert one == audit(job("client"), 20, seed=3)
    assert one != audit(job("client"), 20, seed=4)
