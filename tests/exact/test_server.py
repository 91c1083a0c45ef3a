"""Server optimisers against steps worked out by hand, FedSGD, and the worked example of S03."""

from types import SimpleNamespace

import numpy as np
import pytest

from atoll.core.message import Contribution
from atoll.core.rng import Rng
from atoll.core.transform import Context
from atoll.core.update import Update
from atoll.job import Job
from atoll.learn.algorithm import fedavg, fedavgm, fedsgd
from atoll.learn.server import adagrad, adam, sgd, yogi
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites

CTX = Context(Rng.of(0))

# D = 0.3, then D = -0.1; lr = 0.1, b1 = 0.9, b2 = 0.99, tau = 0.001, v starts at tau² = 1e-6.
STEPS = {
    # v = .000001 + .09 = .090001, sqrt .3000016667: .1 * .3 / .3010016667
    # v = .090001 + .01 = .100001, sqrt .3162293472: .1 * -.1 / .3172293472
    "adagrad": (adagrad(lr=0.1), (0.09966722222067902, -0.03152293471517151)),
    # m = .03; v = .99e-6 + .01 * .09 = .00090099, sqrt .0300164954: .1 * .03 / .0310164954
    # m = .9 * .03 - .01 = .017; v = .99 * .00090099 + .0001 = .0009919801, sqrt .0314957156
    "adam": (adam(lr=0.1), (0.096722726246938, 0.05231458884875676)),
    # v = 1e-6 - .01 * .09 * sign(1e-6 - .09) = .000901, sqrt .0300166620
    # v = .000901 - .01 * .01 * sign(.000901 - .01) = .001001, sqrt .0316385840
    "yogi": (yogi(lr=0.1), (0.0967222067986909, 0.05208559286649167)),
    # v = .3; v = .9 * .3 - .1 = .17; times lr
    "avgm": (sgd(lr=0.1, momentum=0.9), (0.03, 0.017)),
}


@pytest.mark.parametrize("name", STEPS)
def test_two_steps_by_hand(name) -> None:
    optimiser, expected = STEPS[name]
    state = optimiser.init(Update.of({"w": np.zeros(1)}))
    for d, step in zip((0.3, -0.1), expected, strict=True):
        got, state = optimiser.back(Update.of({"w": np.array([d])}), state, CTX)
        np.testing.assert_allclose(got["w"], [step], rtol=1e-12)


def test_avgm_without_momentum_is_fedavg() -> None:
    sites = Sites([Bowl([1.0, 4.0], [1.0, -2.0], rows=3), Bowl([3.0, 1.0], [-1.0, 2.0], rows=7)])
    runs = [simulate(Job(Quadratic(), a, rounds=4), sites) for a in (fedavgm(1.0, 0.0), fedavg())]
    assert runs[0].params == runs[1].params


def test_full_batch_fedsgd_is_a_pooled_gradient_step() -> None:
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(60, 4)), rng.normal(size=60)
    sites = [SimpleNamespace(x=X[i:j], y=y[i:j]) for i, j in ((0, 7), (7, 30), (30, 60))]
    end = simulate(Job(LeastSquares(), fedsgd(lr=0.05), rounds=3), Rows(sites)).params["w"]
    w = np.zeros(4)
    for _ in range(3):
        w -= 0.05 * X.T @ (X @ w - y) / 60
    np.testing.assert_allclose(end, w, rtol=0, atol=1e-12)


def test_opposite_gradients_leave_the_model_where_it_is() -> None:
    # the worked example of S03: gradients [1, 2] and [-1, -2], lr 0.1, from [0, 0]
    class Given:
        def init(self, rng):
            return {"w": np.zeros(2)}

        def fit(self, params, gradient, ctx):
            return Contribution({"w": -0.1 * np.array(gradient)})

        def evaluate(self, params, data, ctx):
            return {}

    end = simulate(Job(Given(), rounds=1), [[1.0, 2.0], [-1.0, -2.0]]).params["w"]
    assert end.tolist() == [0.0, 0.0]


class Rows(list):
    """Clients with rows."""


class LeastSquares:
    """1/(2n) ||X w - y||² by full-batch steps; a value with the fields that fedsgd sets."""

    def __new__(cls):
        from dataclasses import make_dataclass

        fields = [("lr", float, 0.3), ("epochs", int, 5), ("batch_size", int, 8)]
        fields += [("momentum", float, 0.9), ("decay", float, 0.5)]
        return make_dataclass("LeastSquares", fields, bases=(_Fit,), frozen=True)()


class _Fit:
    def init(self, rng):
        return {"w": np.zeros(4)}

    def fit(self, params, data, ctx):
        assert (self.epochs, self.batch_size, self.momentum, self.decay) == (1, None, 0.0, 1.0)
        w = params["w"]
        return Contribution({"w": -self.lr * data.x.T @ (data.x @ w - data.y) / len(data.y)}, len(data.y))

    def evaluate(self, params, data, ctx):
        return {}
