"""FedNova: with equal steps it is FedAvg; with unequal ones it finds the optimum FedAvg misses."""

import numpy as np
import pytest

from atoll.core.errors import ConfigError
from atoll.core.rng import Rng
from atoll.core.transform import Context
from atoll.core.update import Update
from atoll.job import Job
from atoll.learn.algorithm import fedavg
from atoll.learn.fednova import TAU, effective, fednova, nova
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites, fixed_point, optimum

A, B = ([1.0, 2.0], [1.0, -2.0]), ([2.0, 1.0], [-1.0, 2.0])


def end(algorithm, sites, learner, rounds):
    return simulate(Job(learner, algorithm, rounds=rounds, every=rounds), sites).params["w"]


@pytest.mark.parametrize("steps", [4, 8])
def test_equal_steps_of_a_power_of_two_are_fedavg_bit_for_bit(steps) -> None:
    sites = Sites([Bowl(*A, rows=3), Bowl(*B, rows=5)])
    learner = Quadratic(steps=steps)
    assert end(fednova(), sites, learner, 6).tolist() == end(fedavg(), sites, learner, 6).tolist()


def test_equal_steps_are_fedavg() -> None:
    sites = Sites([Bowl(*A, rows=3), Bowl(*B, rows=5)])
    learner = Quadratic(steps=7)
    np.testing.assert_allclose(
        end(fednova(), sites, learner, 6), end(fedavg(), sites, learner, 6), rtol=1e-13
    )


def test_unequal_steps_find_the_weighted_optimum_and_fedavg_does_not() -> None:
    # After tau steps a client has gone r = 1 - (1 - lr a)^tau of its way. FedAvg balances p r,
    # FedNova p r / tau, which is p lr a (1 - O(lr)): the weighted optimum as lr -> 0.
    sites = Sites([Bowl(*A, rows=3, steps=1), Bowl(*B, rows=1, steps=10)])
    best, off = optimum(sites, by_rows=True), []
    for lr, rounds in ((0.05, 250), (0.005, 2500)):
        r = [1 - (1 - lr * np.array(c.a)) ** c.steps for c in sites]
        weighted = [c.rows * x for c, x in zip(sites, r, strict=True)]
        normal = [c.rows * x / c.steps for c, x in zip(sites, r, strict=True)]
        found = end(fednova(), sites, Quadratic(lr=lr), rounds)
        np.testing.assert_allclose(found, fixed_point(sites, normal), atol=1e-6)
        np.testing.assert_allclose(
            end(fedavg(), sites, Quadratic(lr=lr), rounds), fixed_point(sites, weighted), atol=1e-6
        )
        assert np.abs(fixed_point(sites, weighted) - best).max() > 0.5
        off.append(np.abs(found - best).max())
    assert off[0] < 0.3
    assert off[1] < off[0] / 8  # vanishes with lr, as O(lr)


def test_one_round_by_hand() -> None:
    # one number, a = 1, lr = 0.5, weights equal. b = 1, one step: Δ = 0.5, d = 0.5.
    # b = 4, two steps: w = 2, 3: Δ = 3, d = 1.5. tau_eff = 1.5; step = 1.5 * mean(0.5, 1.5) = 1.5.
    sites = Sites([Bowl([1.0], [1.0], steps=1), Bowl([1.0], [4.0], steps=2)])
    assert end(fednova(), sites, Quadratic(lr=0.5, size=1), 1).tolist() == [1.5]


def test_what_momentum_accumulates() -> None:
    # rho = 0.5, three steps: the gradients count 1 + .5 + .25, 1 + .5 and 1 times: 4.25
    assert effective(3, 0.5) == pytest.approx(4.25, abs=1e-15)
    assert effective(3) == 3
    assert effective(0) == 1


def test_with_momentum_equal_steps_are_fedavg() -> None:
    sites = Sites([Bowl(*A, rows=3), Bowl(*B, rows=5)])
    learner = Quadratic(steps=7, momentum=0.9, lr=0.02)
    found = end(fednova(momentum=0.9), sites, learner, 6)
    np.testing.assert_allclose(found, end(fedavg(), sites, learner, 6), rtol=1e-9)


def test_the_learners_momentum_must_be_said() -> None:
    with pytest.raises(ConfigError, match=r"write fednova\(momentum=0.9\)"):
        fednova().wrap(Quadratic(momentum=0.9))


def test_it_appends_one_number_and_takes_it_off_again() -> None:
    part = nova()
    sent, _ = part.out(Update.of({"w": np.ones(2)}), None, Context(Rng.of(0), steps=4))
    assert list(sent) == ["w", TAU]
    assert sent["w"].tolist() == [0.25, 0.25]
    back, _ = part.back(sent, None, Context(Rng.of(0)))
    assert back["w"].tolist() == [1.0, 1.0]
    assert list(back) == ["w"]
