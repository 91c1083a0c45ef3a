"""q-FedAvg: q = 0 is FedAvg, one round by hand, and a larger q lifts the worst client."""

import numpy as np
import pytest

from atoll.core.errors import ConfigError, MisuseError
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.job import Job
from atoll.learn.algorithm import fedavg
from atoll.learn.qfedavg import qfedavg
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites

CROWD = Sites([Bowl([1.0], [1.0]), Bowl([1.0], [1.2]), Bowl([1.0], [0.8]), Bowl([1.0], [-2.0])])
LEARNER = Quadratic(lr=0.1, steps=3, size=1)


def test_q_0_is_fedavg_with_equal_weights() -> None:
    fair = simulate(Job(LEARNER, qfedavg(q=0, lr=0.1), rounds=8), CROWD).params["w"]
    plain = simulate(Job(LEARNER, fedavg("equal"), rounds=8), CROWD).params["w"]
    np.testing.assert_allclose(fair, plain, rtol=1e-13)


def test_one_round_by_hand() -> None:
    # a = 1, b = 2 and -1, one step of 0.5 from 0, q = 1, L = 2.
    # F = 2 and 0.5; w - w_k = -1 and 0.5; L (w - w_k) = -2 and 1.
    # Δ = F L (w - w_k) = -4 and 0.5; h = ||L (w - w_k)||² + L F = 4 + 4 = 8 and 1 + 1 = 2.
    # w = 0 - (-4 + 0.5) / (8 + 2) = 0.35
    sites = Sites([Bowl([1.0], [2.0]), Bowl([1.0], [-1.0])])
    end = simulate(Job(Quadratic(lr=0.5, steps=1, size=1), qfedavg(q=1, lr=0.5), rounds=1), sites)
    np.testing.assert_allclose(end.params["w"], [0.35], rtol=1e-14)
    assert list(end.params) == ["w"]


def test_a_larger_q_lifts_the_worst_client() -> None:
    worst, spread = [], []
    for q in (0, 1, 4):
        run = simulate(Job(LEARNER, qfedavg(q=q, lr=0.1), rounds=150, every=150), CROWD)
        losses = [site["loss"] for site in run.sites.values()]
        worst.append(max(losses))
        spread.append(np.std(losses))
    assert worst[0] > 1.3 * worst[1] > 1.3 * 1.1 * worst[2]
    assert spread == sorted(spread, reverse=True)
    # 1 - (-2) = 3 apart: no model does better than about 1/2 1.5² for both sides
    assert worst[2] > 0.5 * 1.5**2


def test_a_client_already_at_its_optimum_only_votes_for_staying() -> None:
    sites = Sites([Bowl([1.0], [0.0]), Bowl([1.0], [1.0])])
    run = simulate(Job(LEARNER, qfedavg(q=2, lr=0.1), rounds=3), sites)
    assert 0 < run.params["w"][0] < 1


@pytest.mark.parametrize(
    ("found", "match"), [({}, "weighs clients by `loss`"), ({"loss": -1.0}, "at least 0")]
)
def test_losses_it_cannot_use_are_refused(found, match) -> None:
    class Odd(Quadratic):
        def evaluate(self, params, data, ctx):
            return found

    with pytest.raises(MisuseError, match=match):
        qfedavg().wrap(Odd(size=1)).fit(Update.of({"w": np.zeros(1)}), CROWD[0], FitContext(Rng.of(0)))


def test_q_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="q must be at least 0"):
        qfedavg(q=-1)
