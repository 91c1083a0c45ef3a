"""Evidence and records: what a round shows of liars, what honest clients never show, what is remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.attack import attackers, poison
from atoll.core.errors import MisuseError
from atoll.core.registry import build, parts
from atoll.data import dirichlet, iid, load_data, partition
from atoll.job import Job
from atoll.learn import detect
from atoll.learn.defend import robust
from atoll.learn.dense import mlp
from atoll.learn.detect import SUSPECT, Evidence, Record, judge, look, reinstate, suspects
from atoll.learn.rules import Stack, median
from atoll.run import simulate

CLIENTS, SEED = 20, 1
LIARS = attackers(CLIENTS, 0.2, SEED)


def named(by: Any, attack: str | None, rounds: int = 5, seed: int = SEED) -> tuple[int, ...]:
    """Who is suspect after some rounds of digits under the recommended rule."""
    pytest.importorskip("sklearn")
    job = Job(mlp((30,), lr=0.2, batch_size=10), robust(), rounds=rounds, sites=False)
    liars = LIARS if attack else ()
    data = partition(load_data("digits"), clients=CLIENTS, by=by, seed=seed)
    return simulate(poison(job, liars, build("attack", attack or "nan")), data, seed).suspects


@pytest.mark.parametrize("attack", [p.name for p in parts("attack") if p.name != "backdoor"])
def test_liars_are_found_within_five_rounds_and_nobody_else(attack: str) -> None:
    assert named(iid(), attack) == LIARS


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_is_merely_unlike_the_others_is_left_alone(seed: int) -> None:
    assert named(dirichlet(1.0), None, rounds=10, seed=seed) == ()


def test_evidence_by_its_definition() -> None:
    U = np.array([[3.0, 4.0], [0.0, 5.0], [0.0, 10.0], [-5.0, 0.0], [6.0, 8.0]])
    answer = np.array([0.0, 2.0])
    seen = look(Stack.of(U), answer, [9])
    cosine = np.array([0.8, 1.0, 1.0, 0.0, 0.8])
    np.testing.assert_allclose(seen.length, np.array([5, 5, 10, 5, 10]) / 5)
    np.testing.assert_allclose(seen.angle, cosine / 0.8)
    np.testing.assert_array_equal(seen.twin, [True, True, True, False, True])
    assert seen.agree == pytest.approx(0.8)
    assert seen.refused == (9,)
    nothing = look(Stack.of(np.zeros((3, 2))), np.zeros(2))
    assert not nothing.twin.any() and (nothing.angle == 0).all() and nothing.agree == 0


@given(st.integers(0, 999), st.integers(3, 9))
def test_evidence_knows_no_unit_and_no_order(seed: int, n: int) -> None:
    U = np.random.default_rng(seed).normal(1, 1, (n, 6))
    here, there = look(Stack.of(U), median()(U)), look(Stack.of(U[::-1] * 8), median()(U) * 3)
    for name in ("length", "angle", "twin"):
        np.testing.assert_allclose(getattr(there, name)[::-1], getattr(here, name), rtol=1e-6)


def round_of(**values: Any) -> Evidence:
    made = {"length": np.ones(1), "angle": np.ones(1), "twin": np.zeros(1, bool), "agree": 0.5}
    return Evidence(**{**made, **{k: np.array([v]) if k != "agree" else v for k, v in values.items()}})


LIES = {"angle": {"angle": -1.0}, "long": {"length": 9.0}, "short": {"length": 0.1}, "twin": {"twin": True}}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told_after_three_rounds_and_not_before(lie: str) -> None:
    records: dict[int, Record] = {}
    for n in range(1, 6):
        records = judge(records, [7], round_of(**LIES[lie]))
        assert suspects(records) == ((7,) if n >= detect.ROUNDS else ())
    for _ in range(30):  # from now on it is honest: what it did is outweighed in time
        assert 0 <= records[7].score <= 1
        records = judge(records, [7], round_of())
    assert suspects(records) == ()


@pytest.mark.parametrize("lie", LIES)
def test_who_was_honest_for_long_may_not_lie_for_as_long(lie: str) -> None:
    records: dict[int, Record] = {}
    for _ in range(1000):
        records = judge(records, [7], round_of())
    assert records[7] == Record(1000, 1000, 1.0, 0.0, 0.0)
    for _ in range(2 * detect.MEMORY):
        records = judge(records, [7], round_of(**LIES[lie]))
    assert suspects(records) == (7,)


def test_a_mean_is_of_all_rounds_until_they_are_many() -> None:
    angles = [0.1 * n for n in range(detect.MEMORY)]
    records: dict[int, Record] = {}
    for angle in angles:
        records = judge(records, [7], round_of(angle=angle))
    assert records[7].angle == pytest.approx(np.mean(angles))
    records = judge(records, [7], round_of(angle=1.0))
    assert records[7].angle == pytest.approx(np.mean(angles) * 19 / 20 + 1.0 / 20)


def test_rounds_in_which_nobody_agrees_say_nothing_of_angles() -> None:
    records: dict[int, Record] = {}
    for _ in range(9):
        records = judge(records, [7], round_of(angle=-1.0, agree=0.05))
    assert records[7] == Record(rounds=9)
    assert suspects(records) == ()


def test_who_did_not_take_part_is_not_judged_and_who_is_refused_is() -> None:
    records = {3: Record(5, 5, 0.9, 0.1, 0.0)}
    for _ in range(3):
        seen = Evidence(np.ones(1), np.ones(1), np.zeros(1, bool), 0.5, (8,))
        records = judge(records, [7], seen)
    assert records[3] == Record(5, 5, 0.9, 0.1, 0.0)
    assert suspects(records) == (8,)
    with pytest.raises(MisuseError, match="evidence about 2 clients"):
        judge(records, [1, 2], round_of())


def test_an_admin_reinstates() -> None:
    records = {1: Record(9, 9, -1.0, 0.0, 1.0), 2: Record(9, 9, 1.0, 0.0, 0.0)}
    assert records[1].score == 1.0 > SUSPECT
    assert reinstate(records, 1) == {1: Record(), 2: records[2]}
    assert suspects(records) == (1,)  # it is a value
    with pytest.raises(MisuseError, match="client 5 has no record"):
        reinstate(records, 5)
