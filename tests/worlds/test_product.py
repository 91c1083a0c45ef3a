"""What the tables promise, all at once: a seventeenth of every combination here, all by `make nightly`."""

from __future__ import annotations

import pytest

from tests.worlds.product import CODECS, EXCHANGES, PROMISES, RULES, TOPOLOGIES, WHOLE, cases, legal, wrong

STEP = 17
ALL = list(cases())
SOME = ALL[::STEP]


def test_both_kinds_are_many() -> None:
    rules = 2 * len(RULES) - len(WHOLE)
    assert len(ALL) == len(EXCHANGES) * len(PROMISES) * len(CODECS) * len(TOPOLOGIES) * rules
    assert 0.4 < sum(map(legal, ALL)) / len(ALL) < 0.6
    for axis in zip(*SOME, strict=True):
        assert len(set(axis)) > 1


@pytest.mark.parametrize("case", SOME, ids=" ".join)
def test_what_is_legal_trains_and_the_rest_is_refused(case: tuple[str, ...]) -> None:
    assert wrong(case) == ""
