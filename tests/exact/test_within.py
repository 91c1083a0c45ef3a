"""Fine-tuning within a quota: never beyond it, and a killed node comes to the same params."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.adapt.plan_learner import plan_learner
from atoll.core.errors import ConfigError
from atoll.core.rng import Rng
from atoll.learn.within import Budget, Tuned, fine_tune_within, toward
from tests.serve.plans import FILE, Labelled

KEY, ROWS = Rng.of(7), Labelled(100)


def learners() -> list[Any]:
    return [plan_learner(FILE), at.softmax(features=4, outputs=3)]


def ticking(step: float) -> Any:
    """A clock whose every piece takes `step` seconds."""
    moments = count()
    return lambda: next(moments) * step


@pytest.mark.parametrize("learner", learners(), ids=["plan", "softmax"])
def test_it_stops_before_the_budget_is_spent_and_says_why(learner: Any) -> None:
    params = at.Update.of(learner.init(np.random.default_rng(0)))
    slow = Budget(seconds=3.5, passes=9)
    for budget, why in ((Budget(), "rows"), (Budget(steps=5), "steps"), (slow, "seconds")):
        done = fine_tune_within(learner, params, ROWS, budget, ticking(1.0), key=KEY, piece=16)
        assert done.stopped == why and done.pieces >= 1
        assert done.seconds <= budget.seconds and done.steps <= budget.steps
        assert learner.evaluate(done.params, ROWS)["loss"] < learner.evaluate(params, ROWS)["loss"]
    assert done.pieces == 3


def test_killed_at_any_piece_it_goes_on_to_the_same_params() -> None:
    learner, kept = plan_learner(FILE), list[Tuned]()
    params = learner.init(np.random.default_rng(0))
    budget = Budget(passes=2)
    whole = fine_tune_within(learner, params, ROWS, budget, ticking(0.1), key=KEY, piece=32, keep=kept.append)
    assert len(kept) == whole.pieces == 8
    for left in kept:
        again = fine_tune_within(learner, left, ROWS, budget, ticking(0.1), key=KEY, piece=32)
        assert np.array_equal(again.params.buffer, whole.params.buffer)


def test_who_has_less_time_comes_less_far_on_the_same_way() -> None:
    learner, kept = at.softmax(features=4, outputs=3), list[Tuned]()
    params = at.Update.of(learner.init(np.random.default_rng(0)))
    fine_tune_within(learner, params, ROWS, Budget(), ticking(1.0), key=KEY, piece=16, keep=kept.append)
    for seconds in (1.0, 3.5, 5.0):
        slow = Budget(seconds=seconds)
        done = fine_tune_within(learner, params, ROWS, slow, ticking(1.0), key=KEY, piece=16)
        assert done.pieces == int(seconds)
        assert np.array_equal(done.params.buffer, kept[done.pieces - 1].params.buffer)


def test_half_way_lies_half_way() -> None:
    first, last = (at.Update.of({"w": np.float32([a, 1.0])}) for a in (0.0, 4.0))
    assert [toward(first, last, r)["w"].tolist() for r in (0.5, 1.0)] == [[2.0, 1.0], [4.0, 1.0]]


def test_no_rows_and_no_budget() -> None:
    learner = plan_learner(FILE)
    params = learner.init(np.random.default_rng(0))
    assert fine_tune_within(learner, params, Labelled(0), Budget(), ticking(1), key=KEY).stopped == "rows"
    with pytest.raises(ConfigError, match="above 0"):
        Budget(seconds=0)
