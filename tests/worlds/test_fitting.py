"""A pipeline's figures, look after look: the same bytes over any tree, in the open or under masks, whoever
falls over; who is lost is in all of the sums or in none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll as at
from atoll.core.errors import ConfigError, DataError, QuorumError
from atoll.core.rng import Rng
from atoll.data.pipeline import Pipeline, Recipe
from atoll.job import Job
from atoll.learn.figures import LARGEST, RING, Figures, _limbs, _whole
from atoll.learn.integers import Scale
from atoll.simulate.faults import Crash, World, lognormal
from atoll.statistics import fitting
from tests.sense.plant import contract
from tests.sense.test_pipeline import raw

PARTS = [raw(20 + 7 * k, k) * np.float32(1 + k) for k in range(5)]
FALLS = (Crash("coordinator", 0.6), Crash(".0", 1.0))
BAD = World(delay=lognormal(-2.0, 1.0), loss=0.1, repeat=0.1, crashes=FALLS)
SECURE = at.secure_sum(least=3)
WAYS: list[tuple[Any, ...]] = [
    (at.plain_sum(), at.tree((2,)), BAD),
    (SECURE, at.flat(), World()),
    (SECURE, at.tree((2,)), BAD),
]


def job(**values: Any) -> Job:
    return Job(at.softmax(), rounds=3, **values)


def play(made: Job, parts: Any = PARTS, world: World | None = None) -> tuple[Any, at.Run]:
    recipe = Recipe("median" if made.learner.median else "mean")  # type: ignore[attr-defined]
    run = at.simulate(made, parts, world=world)
    return recipe.made(contract(), *made.learner.read(run.params)), run  # type: ignore[attr-defined]


@pytest.mark.parametrize("fill", ["mean", "median"])
def test_the_figures_are_the_same_bytes_whichever_way_they_were_summed(fill: Any) -> None:
    want = at.fit_pipeline(PARTS, contract(), fill=fill)
    for exchange, topology, world in WAYS[fill == "median" :]:
        made = fitting(job(exchange=exchange, topology=topology), contract(), Recipe(fill))
        found, run = play(made, world=world)
        assert found == want
        assert [r["clients"] for r in run.history] == [5] * len(run.history)
    assert len(run.history) == (2 if fill == "mean" else 10)


def test_who_cannot_answer_the_first_look_is_in_none() -> None:
    wrong = [*PARTS[:2], np.full((9, 3), math.inf), *PARTS[2:]]
    for exchange in (at.plain_sum(), SECURE):
        found, run = play(fitting(job(exchange=exchange), contract(), Recipe()), wrong)
        assert found == at.fit_pipeline(PARTS, contract())
        assert "infinite" in run.history[0]["failed"][2]
        assert [r["cohort"] for r in run.history] == [6, 5]
    with pytest.raises(QuorumError, match="infinite"):
        at.fit_pipeline(wrong, contract())  # with the sites in hand, somebody can look at them


@pytest.mark.parametrize("fill", ["mean", "median"])
def test_who_is_lost_on_the_way_is_in_none_or_it_ends(fill: Any) -> None:
    world = World(delay=lognormal(-2.0, 0.1), crashes=(Crash("client4", 0.4, 1e9),))
    values = {"deadline": 20.0}
    found, run = play(fitting(job(**values), contract(), Recipe(fill)), world=world)
    assert found == at.fit_pipeline(PARTS[:4], contract(), fill=fill)
    cohorts = [r["cohort"] for r in run.history]
    assert cohorts[0] == 5 and cohorts[-1] == 4
    assert len(cohorts) > (2 if fill == "mean" else 10)  # it has begun again
    late = World(delay=lognormal(-2.0, 0.1), crashes=(Crash("client4", 2.0, 1e9),))
    with pytest.raises(QuorumError, match="of 5 there are 4 left"):
        play(fitting(job(**values, exchange=SECURE), contract(), Recipe(fill)), world=late)


def test_figures_that_nobody_may_look_for_are_refused_with_the_reason() -> None:
    private = job().private(epsilon=8.0, delta=1e-4, clip=1.0)
    with pytest.raises(ConfigError, match=r"\$\.data\.pipeline: .* promises privacy, and no noise covers"):
        fitting(private, contract(), Recipe())
    pytest.importorskip("tenseal")
    with pytest.raises(ConfigError, match="which only secure_sum"):
        fitting(job(exchange=at.encrypted_sum(members=16)), contract(), Recipe())


def test_a_look_at_other_columns_fails_at_its_site() -> None:
    learner = Figures(2)
    with pytest.raises(DataError, match="expected 2 columns"):
        learner.fit(at.Update.of(learner.init(np.random.default_rng(0))), raw(3), None)  # type: ignore[arg-type]


REALS = st.floats(-(2.0**290), 2.0**290) | st.floats(-1.0, 1.0)


@given(st.lists(REALS, min_size=1, max_size=6), st.integers(2, 1 << 20))
def test_limbs_are_whole_and_pass_a_ring_exactly(sums: list[float], members: int) -> None:
    cut = _limbs(np.array(sums))
    assert (cut == np.rint(cut)).all() and np.abs(cut).max() <= LARGEST
    assert np.abs(_whole(cut) - sums).max() <= 2.0**-317
    scale = Scale(RING, LARGEST, members, 1.0)
    plain = at.Update.of({"x": cut})
    hidden = scale.out(plain, 1.0, Rng.of(0))
    back = scale.back(hidden + hidden, plain.layout, 2).update
    assert (back["x"] == 2 * cut).all()


def test_a_pipeline_of_ranges_needs_no_look() -> None:
    bounded = at.Contract.of({"name": "b", "columns": {"a": {"low": 10, "high": 30}}})
    recipe = Recipe("middle", "range")
    assert not recipe.moments and not recipe.median
    made = recipe.made(bounded, None, None, None)
    assert isinstance(made, Pipeline) and made.rows([[10], [math.nan]]).tolist() == [[-1], [0]]


def test_columns_of_any_size_and_far_from_zero_keep_their_digits() -> None:
    rng = np.random.default_rng(3)
    wide = {
        "tiny": (1e-30, 0.0),
        "huge": (1e30, 0.0),
        "far": (1.0, 1e9),
        "still": (0.0, 7.25),
        "none": (0.0, 0.0),
    }
    units, centres = np.array(list(wide.values())).T
    parts = [rng.normal(size=(50 + 9 * k, 5)) * units + centres for k in range(4)]
    made = at.fit_pipeline(parts, at.Contract.of({"name": "w", "columns": {name: {} for name in wide}}))
    pool = np.concatenate(parts)
    for j, step in enumerate(made.steps):
        assert step.fill == step.centre == pytest.approx(pool[:, j].mean(), rel=1e-12)
        assert 1 / step.unit == pytest.approx(pool[:, j].std() or 1.0, rel=1e-12)
    with pytest.raises(QuorumError, match="larger than 1e38"):
        at.fit_pipeline([np.array([[1e39]])], at.Contract.of({"name": "w", "columns": {"x": {}}}))


def test_many_rows_are_looked_at_in_blocks() -> None:
    rows = raw(20_001, 5)
    whole = rows.astype(np.float64)
    made = at.fit_pipeline([rows], contract(), fill="median")
    assert made.steps[1].fill == np.nanmedian(whole[:, 1])
    assert made.steps[0].centre == pytest.approx(whole[:, 0].mean(), rel=1e-12)
