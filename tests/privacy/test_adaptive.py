"""Clips that follow the lengths of updates: within their bound, towards their quantile, under the promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import atoll as at
from atoll.control import config
from atoll.core.errors import ConfigError
from atoll.core.update import Update
from atoll.learn import adaptive
from atoll.learn.adaptive import BETA, BOUND, LEAF, RATE, clipped
from atoll.learn.wrapped import Wrapped
from atoll.privacy import dp

D = 40


class Steps:
    """Client k always moves the model by k along its own direction; the model forgets where it is."""

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        return {"w": np.zeros(D)}

    def fit(self, params: Update, data: float, ctx: Any) -> at.Contribution:
        w = np.random.default_rng(int(data)).normal(size=D)
        return at.Contribution({"w": w * data / np.linalg.norm(w)}, weight=1.0)

    def evaluate(self, params: Any, data: Any, ctx: Any) -> Mapping[str, Any]:
        return {"w": float(np.linalg.norm(params["w"]))}


@dataclass(frozen=True)
class Listening(Wrapped):
    """Notes the clip that client 0 is told, round for round, as anybody could who reads the models."""

    seen: list[float] = field(default_factory=list)

    def fit_many(self, params: Update, datas: Any, ctxs: Any) -> Any:
        self.seen.extend(float(np.exp(params[LEAF][0])) for ctx in ctxs if ctx.client == 0)
        return super().fit_many(params, datas, ctxs)


def clips(clients: int, rounds: int, **promise: Any) -> list[float]:
    """The clips of a private run."""
    seen: list[float] = []
    job = at.Job(Steps(), rounds=rounds, cohort=at.everyone(), sites=False)
    trained = job.private(delta=1e-5, **promise).trained
    assert trained.wrap is not None
    heard = replace(trained, wrap=lambda learner: Listening(trained.wrap(learner), seen))
    at.simulate(job.replace(algorithm=heard), [float(k + 1) for k in range(clients)], seed=3)
    return seen


@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)), st.floats(1e-4, 1e4))
def test_no_update_is_longer_than_the_bound(w: np.ndarray, clip: float) -> None:
    sent = clipped(Update.of({"w": w}), clip)
    assert sent.norm() <= BOUND
    assert sent["w"].dtype == np.float32
    within = np.linalg.norm(w.astype(np.float64)) <= clip
    assert np.sign(sent[LEAF][0]) == (1 if within else -1)
    if within:
        assert np.allclose(sent["w"] * clip, w, rtol=1e-5, atol=1e-30)


def test_one_more_client_changes_a_sum_by_at_most_the_bound_that_its_noise_is_sized_for() -> None:
    job = at.Job(Steps(), cohort=at.everyone(), rounds=2, sites=False).private(
        epsilon=4.0, delta=1e-5, clip=3.0, adapt=0.5
    )
    noise = dp.noisy(job.trained.chain)
    assert noise is not None
    assert noise.bound == BOUND == dp.longest(job.trained.chain)
    assert abs(BOUND**2 - (1 + (BETA / 2) ** 2)) < 1e-12


@pytest.mark.parametrize("start", [0.5, 200.0])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_the_clip_becomes_the_quantile_of_the_lengths(start: float, quantile: float) -> None:
    seen = clips(100, 150, epsilon=50.0, clip=start, adapt=quantile)
    assert seen[0] == pytest.approx(start, rel=1e-6)
    settled = np.mean(seen[-30:])
    assert settled == pytest.approx(100 * quantile, rel=0.2)
    steps = np.abs(np.diff(np.log(seen)))
    assert steps.max() < RATE * 1.5  # one round moves it by a factor near e^η at most


def test_without_noise_each_step_is_the_papers() -> None:
    """Andrew et al. 2021, alg. 1, line 11, by hand."""
    algorithm = adaptive.adaptive(at.Algorithm("plain", at.mean(over=10), weigh="equal"), 2.5, 0.5)
    rounds = 3
    found = at.simulate(
        at.Job(Steps(), algorithm=algorithm, cohort=at.everyone(), rounds=rounds, sites=False),
        [float(k + 1) for k in range(10)],
        seed=3,
    )
    w, c = np.zeros(D), 2.5
    for _ in range(rounds):
        change = np.zeros(D)
        for k in range(1, 11):
            direction = np.random.default_rng(k).normal(size=D)
            change += direction / np.linalg.norm(direction) * min(k, c)
        w += change / 10
        c *= np.exp(-RATE * (np.mean([k <= c for k in range(1, 11)]) - 0.5))
    assert list(found.params) == ["w"], "the clip is no part of the finished model"
    assert np.allclose(found.params["w"], w, rtol=1e-4, atol=1e-5)


def test_a_servers_optimiser_steps_on_the_model_alone() -> None:
    """Momentum or Adam on log C would overshoot; the clip is the same with and without."""
    states = []
    for algorithm in (at.fedavg(weigh="equal"), at.fedadam(lr=0.1), at.fedavgm()):
        job = at.Job(Steps(), algorithm=algorithm, rounds=5, cohort=at.everyone(), sites=False)
        job = job.private(epsilon=8.0, delta=1e-5, clip=1.0, adapt=0.5)
        leaves = job.trained.chain.start(Update.of({"w": np.zeros(D), LEAF: np.zeros(1)}), "back")
        states.append(leaves)
    assert all(any(isinstance(state, np.ndarray) and state.shape == (1,) for state in s) for s in states)
    assert all(update.layout.size == D for s in states[1:] for update in _updates(s))


def _updates(states: Any) -> list[Update]:
    flat = [x for s in states for x in (s if isinstance(s, tuple) else (s,))]
    return [x for x in flat if isinstance(x, Update)]


def test_clients_under_masks_add_the_noise_themselves() -> None:
    job = at.Job(Steps(), rounds=4, cohort=at.everyone(), sites=False, exchange=at.secure_sum())
    job = job.private(epsilon=8.0, delta=1e-5, clip=1.0, adapt=0.5)
    found = at.simulate(job, [float(k + 1) for k in range(12)], seed=3)
    assert [r["clients"] for r in found.history if r["round"]] == [12] * 4
    assert np.isfinite(found.params["w"]).all()


def test_the_job_file_says_the_same() -> None:
    table = {
        "learner": {"name": "softmax", "lr": 0.1},
        "rounds": 3,
        "cohort": "everyone",
        "algorithm": {"name": "fedavg"},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0, "adapt": 0.5},
    }
    job = config.parse(table).job
    assert job.privacy is not None and job.privacy.adapt == 0.5
    assert (
        job.privacy == job.replace(privacy=None).private(epsilon=8.0, delta=1e-4, clip=1.0, adapt=0.5).privacy
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"adapt": 1.0}, "between 0 and 1"),
        ({"adapt": -0.1}, "between 0 and 1"),
        ({"adapt": 0.5, "unit": "example", "rate": 0.1, "population": 1000}, "not of rows"),
    ],
)
def test_what_means_nothing_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        at.Job(Steps(), cohort=at.everyone()).private(epsilon=8.0, delta=1e-5, clip=1.0, **values)
