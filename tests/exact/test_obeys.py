"""Algorithms that steer local training refuse learners that do not say they follow."""

import pytest

from atoll.core.errors import ConfigError
from atoll.learn.ditto import ditto
from atoll.learn.feddyn import feddyn
from atoll.learn.fedprox import fedprox
from atoll.learn.personal import fedper, fedrep
from atoll.learn.scaffold import scaffold
from tests.exact.quadratic import Quadratic


class Deaf(Quadratic):
    """Trains as it likes."""

    obeys = frozenset()


@pytest.mark.parametrize("algorithm", [fedprox(0.1), scaffold(), feddyn(0.1), ditto(), fedrep("w")], ids=str)
def test_a_learner_that_would_ignore_the_algorithm_is_refused(algorithm) -> None:
    with pytest.raises(ConfigError, match=f"{algorithm.name} steers.*Deaf.*obeys"):
        algorithm.wrap(Deaf())
    assert algorithm.wrap(Quadratic()) is not None


def test_what_needs_no_steering_takes_any_learner() -> None:
    assert fedper("w").wrap(Deaf()) is not None
    assert fedprox(0).wrap is None
