"""Noise of each client's own: nobody sees an update without it, and whatever is done with them is private."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import CompositionError, ConfigError
from atoll.core.rng import Rng
from atoll.core.transform import Context
from atoll.core.update import Update
from atoll.privacy import accountant, dp

D = 2000
PROMISE: Mapping[str, Any] = {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0, "noise": "local"}


class Shift:
    """Client k moves every number by k, beyond the clip."""

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        return {"w": np.zeros(D)}

    def fit(self, params: Update, data: float, ctx: Any) -> at.Contribution:
        return at.Contribution({"w": np.full(D, float(data))}, weight=1.0)

    def evaluate(self, params: Any, data: Any, ctx: Any) -> Mapping[str, Any]:
        return {"w": float(np.mean(params["w"]))}


def job(**values: Any) -> at.Job:
    return at.Job(Shift(), **{"cohort": at.everyone(), "rounds": 1, "sites": False, **values})


def sent(private: at.Job, coins: bytes = bytes(range(32)), round: int = 0) -> np.ndarray:
    """What leaves a client for an update of ones, less what the clip leaves of it."""
    chain = dp.mine(private.trained.chain, coins)
    update = Update.of({"w": np.ones(D)})
    out, _ = chain.out(update, chain.start(update, "out"), Context(Rng.of(1).at(round), round))
    return np.asarray(out["w"] - dp.SLACK / np.sqrt(D))


def test_what_leaves_a_client_has_its_noise() -> None:
    private = job().private(**PROMISE)
    assert private.privacy is not None
    sigma = private.privacy.sigma
    noise = sent(private) / sigma
    assert abs(noise.mean()) < 0.1 and noise.std() == pytest.approx(1, abs=0.05)
    assert np.array_equal(sent(private), sent(private)), "the same update has the same noise"
    for other in (sent(private, bytes(32)), sent(private, round=1)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.1


def test_replacing_a_client_is_what_is_accounted() -> None:
    """Two updates of one client are two clips apart: it takes twice the sigma that hides its presence."""
    private = job(rounds=5).private(**PROMISE)
    assert private.privacy is not None
    exact = accountant.epsilon([accountant.Release(private.privacy.sigma / 2, 1.0, 5, "all")], 1e-4)
    assert exact == pytest.approx(8.0, rel=1e-3) and exact <= 8.0
    assert private.epsilon().epsilon == private.epsilon().known == pytest.approx(exact)
    assert "towards everybody" in str(private.epsilon())


def test_sampling_hides_nobody_from_who_sees_each_update() -> None:
    drawn, all_ = (job(cohort=c).private(**PROMISE).privacy for c in (at.poisson(0.1), at.everyone()))
    assert drawn is not None and all_ is not None
    assert drawn.sigma == all_.sigma
    central = job(cohort=at.poisson(0.1)).private(**{**PROMISE, "noise": None}).privacy
    assert central is not None and central.sigma < drawn.sigma / 2


def test_any_rule_may_follow() -> None:
    """Central noise takes no rule but a sum; an update that is private by itself takes any."""
    robust = at.robust(at.trimmed_mean(0.2))
    found = at.simulate(job(algorithm=robust).private(**PROMISE), [float(k) for k in range(10)], seed=3)
    assert np.isfinite(found.params["w"]).all()
    with pytest.raises(CompositionError, match="noise is sized for a sum"):
        _ = job(algorithm=robust).private(**{**PROMISE, "noise": None}).trained


def test_what_comes_after_the_noise_is_free_and_what_lifts_the_clip_is_not() -> None:
    after = at.chain(at.mean(), at.clip(1.0), dp.Own("", sigma=2.0, needs_bound=True), at.int8())
    assert dp.local(dp.bounded(after)) and dp.longest(dp.bounded(after)) is None
    before = at.chain(at.mean(), at.clip(1.0), at.int8(), dp.Own("", sigma=2.0, needs_bound=True))
    with pytest.raises(CompositionError, match="changes updates after"):
        dp.bounded(before)


def test_rows_at_a_site_that_trusts_nobody() -> None:
    """Every site's step has noise of its own, whose size is that of central noise for all sites together."""
    sites = at.partition(at.load_data("digits"), clients=5, seed=1, holdout=0)
    base = at.Job(at.softmax(), at.fedavgm(lr=2.0, momentum=0.5), rounds=4, cohort=at.everyone(), sites=False)
    promise = {"epsilon": 4.0, "delta": 1e-4, "clip": 0.5, "unit": "example", "rate": 0.3, "population": 1797}
    local, central = base.private(**promise, noise="local"), base.private(**promise)
    assert local.privacy is not None and central.privacy is not None
    assert local.privacy.sigma == central.privacy.sigma
    assert local.epsilon().epsilon == pytest.approx(4.0, rel=1e-3)
    found = at.simulate(local, sites, seed=3)
    assert found.metrics == at.simulate(local, sites, seed=3).metrics


def test_masks_and_own_noise_are_two_ways_to_the_same() -> None:
    with pytest.raises(ConfigError, match="solved for local noise"):
        job(exchange=at.secure_sum()).private(**PROMISE)


def test_a_clip_that_follows_goes_with_it() -> None:
    found = at.simulate(job(rounds=3).private(**PROMISE, adapt=0.5), [float(k) for k in range(10)], seed=3)
    assert list(found.params) == ["w"]
