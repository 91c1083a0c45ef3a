"""FedProx: mu 0 is FedAvg bit for bit; the term adds mu (w - w_t) to the gradient, not mu/2."""

import numpy as np
import pytest

from atoll.core.errors import ConfigError
from atoll.job import Job
from atoll.learn.algorithm import fedavg
from atoll.learn.fedprox import Proximal, fedprox
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites

SITES = Sites([Bowl([1.0, 4.0], [1.0, -2.0], rows=3), Bowl([3.0, 1.0], [-1.0, 2.0], rows=7)])


def test_mu_0_is_fedavg_bit_for_bit() -> None:
    plain = simulate(Job(Quadratic(), fedavg(), rounds=5), SITES, seed=3)
    assert simulate(Job(Quadratic(), fedprox(mu=0), rounds=5), SITES, seed=3).params == plain.params
    pulled = simulate(Job(Proximal(Quadratic(), 0.0), fedavg(), rounds=5), SITES, seed=3)
    assert pulled.params == plain.params


def test_two_steps_by_hand() -> None:
    # F(w) = 1/2 (w - 1)², lr 0.1, mu 2, from 0: w = 0.1; gradient -0.9 + 2 * 0.1 = -0.7; w = 0.17
    sites = Sites([Bowl([1.0], [1.0])])
    end = simulate(Job(Quadratic(lr=0.1, steps=2, size=1), fedprox(mu=2.0), rounds=1), sites).params
    np.testing.assert_allclose(end["w"], [0.17], rtol=0, atol=1e-15)


def test_a_large_mu_holds_clients_where_they_start() -> None:
    # at the fixed point of local steps a (w - b) + mu (w - w_t) = 0: the way gone is a / (a + mu)
    sites = Sites([Bowl([1.0], [1.0])])
    learner = Quadratic(lr=1e-4, steps=3000, size=1)
    end = simulate(Job(learner, fedprox(mu=99.0), rounds=1), sites).params
    np.testing.assert_allclose(end["w"], [1 / 100], rtol=1e-9)


def test_a_negative_mu_is_refused() -> None:
    with pytest.raises(ConfigError, match="mu must be at least 0"):
        fedprox(mu=-1.0)
