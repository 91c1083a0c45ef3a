"""Champion and challenger: who wins, how often chance wins, and when nobody is let play."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.serve.challenge import chance, judged
from atoll.serve.terms import Terms

TERMS = Terms()


def play(seed: int, *, gain: float, n: int = 400, walk: float = 0.0) -> bool:
    """Losses of two models on rows that a slow walk makes alike where they are near in time."""
    rng = np.random.default_rng(seed)
    hard = 1.0 + walk * np.sin(np.arange(n) / 40 + rng.uniform(0, 6)) ** 2
    champion = hard * rng.gamma(4.0, 0.25, n)
    challenger = hard * rng.gamma(4.0, 0.25 * (1 - gain), n)
    return judged(champion, challenger, rng.integers(0, 2, n), TERMS, classes=True).won


def test_who_is_better_wins_and_who_is_not_does_not() -> None:
    assert sum(play(seed, gain=0.2) for seed in range(50)) >= 48
    assert sum(play(seed, gain=-0.1) for seed in range(50)) == 0


@pytest.mark.parametrize("walk", [0.0, 1.0])
def test_chance_wins_no_more_often_than_it_may(walk: float) -> None:
    assert sum(play(seed, gain=0.0, walk=walk) for seed in range(400)) <= 400 * 0.08


def test_rows_that_are_alike_do_not_count_as_many() -> None:
    """One block of the rows is better by far, which by rows would look certain."""
    gains = np.zeros(400)
    gains[:20] = 1.0
    assert chance(gains) > 0.2
    assert chance(np.ones(400)) < 0.001


def test_a_gain_below_the_margin_is_no_win() -> None:
    champion = np.ones(500)
    found = judged(champion, champion * 0.995, np.arange(500) % 2, TERMS, classes=True)
    assert not found.won
    assert found.why == "the new model is not better by the margin"
    assert found.p < 0.01
    assert judged(champion, champion * 0.98, np.arange(500) % 2, TERMS, classes=True).won


def test_too_few_rows_one_class_and_infinite_answers_are_no_win() -> None:
    labels = np.arange(100) % 2
    few = judged(np.ones(59), np.zeros(59), labels[:59], TERMS, classes=True)
    assert few.why == "59 rows are too few to compare on: 60 are needed"
    alone = judged(np.ones(100), np.zeros(100), np.ones(100), TERMS, classes=True)
    assert alone.why == "all rows are of one class: nothing can be compared on them"
    assert judged(np.ones(100), np.zeros(100), np.ones(100), TERMS, classes=False).won
    broken = np.zeros(100)
    broken[7] = np.nan
    assert "not finite" in judged(np.ones(100), broken, labels, TERMS, classes=True).why
    assert judged(np.full(100, np.inf), np.zeros(100), labels, TERMS, classes=True).rows == 0


def test_the_same_rows_give_the_same_verdict() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(100), rng.random(100)
    labels = np.arange(100) % 2
    assert judged(a, b, labels, TERMS, classes=True) == judged(a, b, labels, TERMS, classes=True)
