"""A round whose whole cohort holds back is begun anew; one that failed otherwise is over."""

from __future__ import annotations

from collections import Counter

import pytest

from atoll.core.errors import QuorumError, Refused
from atoll.job import Job
from atoll.learn.failure import HELD
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites

SITES = Sites([Bowl([1.0, 4.0], [1.0, -2.0])])


def refusing(times: int, reason: str) -> Quadratic:
    """A learner whose client refuses so many times in each round before it takes part."""

    class Tired(Quadratic):
        def fit(self, params, data, ctx):
            self.seen[ctx.round] += 1
            if self.seen[ctx.round] <= times:
                raise Refused(reason)
            return super().fit(params, data, ctx)

    learner = Tired()
    object.__setattr__(learner, "seen", Counter())
    return learner


def test_a_round_is_begun_anew_until_somebody_may_work() -> None:
    calm = simulate(Job(Quadratic(), rounds=3), SITES)
    run = simulate(Job(refusing(5, f"{HELD}it is warmer than 70 °C"), rounds=3), SITES)
    assert run.params == calm.params
    assert [(r["round"], r["clients"]) for r in run.history[1:]] == [(1, 1), (2, 1), (3, 1)]


def test_control_other_reasons_end_a_round_and_three_of_them_a_run() -> None:
    with pytest.raises(QuorumError, match=r"nobody contributed in 3 rounds.*no rows today"):
        simulate(Job(refusing(5, "no rows today"), rounds=3), SITES)
