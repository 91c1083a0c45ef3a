"""What a job cannot do with so many clients is refused before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import ConfigError, PrivacyError
from tests.exact.quadratic import Bowl, Quadratic, Sites

SITES = Sites([Bowl(np.ones(4), np.arange(4.0) + k / 50, rows=4) for k in range(10)])
JOB = at.Job(Quadratic(lr=0.05, names=("w",), size=4), rounds=2, every=2, sites=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exchange": at.secure_sum(least=20)}, "10 clients are asked in a round, and .* sums at least 20"),
        ({"exchange": at.secure_sum(least=5), "cohort": at.sample(count=3)}, "3 clients are asked"),
        ({"exchange": at.encrypted_sum(members=4)}, "at most 4: ask for another number, or change members"),
        ({"algorithm": at.robust(at.krum(2)), "cohort": at.sample(count=3)}, "needs at least 7 updates"),
        ({"algorithm": at.robust(at.fltrust(0)), "cohort": at.sample(count=5)}, "needs client 0"),
    ],
)  # fmt: skip
def test_too_few_or_too_many_clients(change: dict[str, Any], words: str) -> None:
    seen: list[Any] = []
    with pytest.raises(ConfigError, match=words):
        at.simulate(JOB.replace(**change), SITES, seed=1, watch=seen.append)
    assert not seen, "not even a model was evaluated"


@pytest.mark.parametrize(
    "change",
    [
        {"exchange": at.secure_sum(least=10)},
        {"algorithm": at.robust(at.krum(2)), "cohort": at.sample(count=7)},
        {"algorithm": at.robust(at.fltrust(3))},
        {"cohort": at.poisson(0.5), "algorithm": at.robust(at.median())},
    ],
)
def test_just_enough(change: dict[str, Any]) -> None:
    assert at.simulate(JOB.replace(**change), SITES, seed=1).history[-1]["round"] == 2


def test_a_promise_that_the_noise_does_not_keep_is_not_simulated() -> None:
    kept = JOB.private(epsilon=8.0, delta=1e-4, clip=1.0)
    assert kept.privacy is not None
    at.simulate(kept, SITES, seed=1)
    with pytest.raises(PrivacyError, match=r"claims epsilon 8, and its noise .* in 50 rounds"):
        at.simulate(kept.replace(rounds=50), SITES, seed=1)
    with pytest.raises(PrivacyError, match=r"claims epsilon 1, and its noise of sigma 0.01"):
        at.simulate(kept.replace(privacy=replace(kept.privacy, epsilon=1.0, sigma=0.01)), SITES, seed=1)


def test_losses_are_not_asked_for_where_nothing_but_sums_leaves() -> None:
    choosy = at.power_of_choice(2, 4)
    with pytest.raises(ConfigError, match=r"PowerOfChoice.* asks for it: let sites be true"):
        JOB.replace(cohort=choosy, exchange=at.secure_sum())
    for open_ in ({}, {"exchange": at.secure_sum(), "sites": True}):
        at.simulate(JOB.replace(cohort=choosy, **open_), SITES, seed=1)
