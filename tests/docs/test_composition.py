"""The page that says what combines with what is the generated one, and every pair it allows runs."""

import numpy as np
import pytest

from atoll.core.transform import chain
from atoll.job import Job, Tree
from atoll.learn.algorithm import Algorithm
from atoll.learn.secure import secure_sum
from atoll.learn.server import mean
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites
from tools.composition_table import PAGE, PARTS, PLACES, judged, page, pair, private, summed, table

BY_NAME = {str(part): part for part, _ in PARTS}
VERDICTS = table([part for part, _ in PARTS])
ALLOWED = [(left, right) for left, right, verdict in VERDICTS if verdict == "yes"]
SITES = Sites([Bowl(np.ones(4), np.array([1.0, -2.0, 3.0, 4.0]) * k, rows=k) for k in range(1, 6)])


def test_the_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tools.composition_table"


def test_the_table_has_both_kinds() -> None:
    assert len(ALLOWED) > 50
    assert len(VERDICTS) - len(ALLOWED) > 15


@pytest.mark.parametrize(("left", "right"), ALLOWED)
def test_every_allowed_pair_trains_and_in_a_tree_alike(left: str, right: str) -> None:
    parts = pair(BY_NAME[left], BY_NAME[right])
    learner = Quadratic(lr=0.05, names=("own/v", "w"))
    job = Job(learner, Algorithm("pair", chain(*parts), weigh="equal"), rounds=3, every=3)
    run = simulate(job, SITES)
    assert not any(record.get("failed") for record in run.history)
    assert np.isfinite(run.params.buffer).all()
    assert np.abs(run.params["w"]).max() > 0
    if any(part.drops for part in parts):
        assert (run.params["own/v"] == 0).all()
    assert simulate(job.replace(topology=Tree((2,))), SITES).params == run.params


SUMMED = [(a, b) for a, b in ALLOWED if "ring" not in b]


@pytest.mark.parametrize(("left", "right"), SUMMED)
def test_every_allowed_pair_trains_under_a_secure_sum_as_well(left: str, right: str) -> None:
    parts = pair(BY_NAME[left], BY_NAME[right])
    learner = Quadratic(lr=0.05, names=("own/v", "w"))
    plain = Job(learner, Algorithm("pair", chain(*parts), weigh="equal"), rounds=3, every=3)
    job = plain.replace(exchange=secure_sum(largest=64.0))
    run = simulate(job, SITES)
    assert not any(record.get("failed") for record in run.history)
    np.testing.assert_allclose(run.params.buffer, simulate(plain, SITES).params.buffer, atol=1e-3)
    assert simulate(job.replace(topology=Tree((2,))), SITES).params == run.params


def test_a_secure_sum_makes_its_own_integers() -> None:
    assert len(ALLOWED) - len(SUMMED) > 10
    assert "leave ring(32) out" in summed(chain(mean(), BY_NAME["ring(32)"]))


NOISY = [
    (str(part), place) for part, _ in PARTS for place in range(len(PLACES)) if judged(part, place) == "✓"
]


def test_noise_goes_with_some_and_not_with_others() -> None:
    assert 8 < len(NOISY) < len(PARTS) * len(PLACES) - 8


@pytest.mark.parametrize(("part", "place"), NOISY)
def test_every_allowed_place_beside_noise_trains_and_in_a_tree_alike(part: str, place: int) -> None:
    algorithm = Algorithm("private", private(BY_NAME[part], place), weigh="equal")
    learner = Quadratic(lr=0.05, names=("own/v", "w"))
    job = Job(learner, algorithm, rounds=3, every=3, sites=False)
    run = simulate(job, SITES)
    assert not any(record.get("failed") for record in run.history)
    assert np.isfinite(run.params.buffer).all() and np.abs(run.params["w"]).max() > 0
    assert simulate(job.replace(topology=Tree((2,))), SITES).params == run.params
    if "ring" not in part:
        blind = simulate(job.replace(exchange=secure_sum()), SITES)
        assert not any(record.get("failed") for record in blind.history)
        assert np.abs(blind.params["w"]).max() > 0
