"""Cyclic: each client goes on where the one before it stopped."""

import numpy as np
import pytest

from atoll.core.errors import ConfigError, QuorumError, Refused
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.job import Job, Tree
from atoll.learn.cyclic import cyclic
from atoll.learn.failure import HELD
from atoll.learn.moon import moon
from atoll.learn.select import sample
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites

SITES = Sites(
    [
        Bowl([1.0, 4.0], [1.0, -2.0], rows=9),
        Bowl([3.0, 1.0], [-1.0, 2.0]),
        Bowl([2.0, 2.0], [4.0, 4.0], rows=3),
    ]
)


class Told(Quadratic):
    """Remembers the order in which clients trained."""

    def fit(self, params, data, ctx):
        self.visits.append((ctx.round, ctx.client))
        return super().fit(params, data, ctx)


def told(**more):
    learner = Told(**more)
    object.__setattr__(learner, "visits", [])
    return learner


def test_a_round_is_one_client_after_the_other() -> None:
    learner = told()
    run = simulate(Job(learner, cyclic(), rounds=3), SITES)
    assert [r for r, _ in learner.visits] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [sorted(c for r, c in learner.visits if r == n) for n in range(3)] == [[0, 1, 2]] * 3
    w = Update.of({"w": np.zeros(2)})
    for n, client in learner.visits:
        w = w + Quadratic().fit(w, SITES[client], FitContext(Rng.of(0), n, client)).update
    np.testing.assert_allclose(run.params["w"], w["w"], rtol=1e-12)
    assert [r["clients"] for r in run.history[1:]] == [3, 3, 3]
    assert run.traffic.up == 3 * 3 * 2 * 8


def test_the_order_follows_from_the_seed_and_no_topology() -> None:
    job = Job(Quadratic(), cyclic(), rounds=4, cohort=sample(count=2))
    flat = simulate(job, SITES, seed=1).params
    assert simulate(job.replace(topology=Tree((2,))), SITES, seed=1).params == flat
    assert simulate(job, SITES, seed=1).params == flat
    assert simulate(job, SITES, seed=2).params != flat


def test_a_client_that_fails_is_left_out() -> None:
    class Shy(Quadratic):
        def fit(self, params, data, ctx):
            if ctx.client == 1:
                raise ValueError("no rows today")
            return super().fit(params, data, ctx)

    run = simulate(Job(Shy(), cyclic(), rounds=5), SITES)
    assert [r["clients"] for r in run.history[1:]] == [2] * 5
    assert all("no rows today" in r["failed"][1] for r in run.history[1:])


@pytest.mark.parametrize("seed", range(4))
def test_a_client_that_holds_back_is_left_out_wherever_it_stands(seed) -> None:
    class Tired(Quadratic):
        def fit(self, params, data, ctx):
            if ctx.client == 1:
                raise Refused(f"{HELD}its battery is below 20%")
            return super().fit(params, data, ctx)

    run = simulate(Job(Tired(), cyclic(), rounds=3), SITES, seed=seed)
    assert [(r["round"], r["clients"]) for r in run.history[1:]] == [(1, 2), (2, 2), (3, 2)]


@pytest.mark.parametrize("seed", range(4))
def test_one_missing_client_says_nothing_about_a_round(seed) -> None:
    class Late(Quadratic):
        def fit(self, params, data, ctx):
            if ctx.round < 2 or ctx.client != 1:
                raise ValueError("not yet")
            return super().fit(params, data, ctx)

    # two rounds without anybody, then one with a single client, wherever it stands in the order
    run = simulate(Job(Late(), cyclic(), rounds=4), SITES, seed=seed)
    assert [r["clients"] for r in run.history[1:]] == [0, 0, 1, 1]


def test_one_missing_client_does_not_end_a_run_of_one_round() -> None:
    class Odd(Quadratic):
        def fit(self, params, data, ctx):
            if ctx.client == 1:
                raise ValueError("no")
            return super().fit(params, data, ctx)

    assert list(simulate(Job(Odd(), cyclic(), rounds=1), SITES).history[1]["failed"]) == [1]


def test_three_rounds_without_anybody_end_it() -> None:
    class Never(Quadratic):
        def fit(self, params, data, ctx):
            raise ValueError("no")

    with pytest.raises(QuorumError, match="nobody contributed in 3 rounds in a row, up to round 3"):
        simulate(Job(Never(), cyclic(), rounds=5), SITES)


def test_moon_asks_a_learner_for_its_contrastive_form() -> None:
    class Knows(Quadratic):
        def contrastive(self, mu, temperature):
            return ("contrastive", mu, temperature)

    assert moon(mu=2.0, temperature=0.25).wrap(Knows()) == ("contrastive", 2.0, 0.25)
    with pytest.raises(ConfigError, match="Quadratic does not show any: use torch_learner"):
        moon().wrap(Quadratic())
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        moon(temperature=0)
