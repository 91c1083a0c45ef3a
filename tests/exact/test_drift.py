"""Two clients that disagree: where FedAvg ends is off by a known amount; corrected steps are not."""

from types import SimpleNamespace

import numpy as np
import pytest

from atoll.core.errors import ConfigError
from atoll.core.rng import Rng
from atoll.core.transform import Context
from atoll.core.update import Update
from atoll.job import Job, prepare
from atoll.learn.algorithm import fedavg
from atoll.learn.feddyn import feddyn, settle
from atoll.learn.scaffold import CONTROL, scaffold
from atoll.learn.select import sample
from atoll.run import simulate
from tests.exact.quadratic import Bowl, Quadratic, Sites, fixed_point, kept, optimum

BOWLS = Sites([Bowl([1.0, 4.0], [1.0, -2.0]), Bowl([3.0, 1.0], [-1.0, 2.0]), Bowl([2.0, 2.0], [0.5, 0.25])])
LEARNER = Quadratic(lr=0.1, steps=10)


def where(algorithm, rounds=300, **more):
    return simulate(Job(LEARNER, algorithm, rounds=rounds, every=rounds, **more), BOWLS).params


def test_fedavg_ends_at_its_biased_point_and_not_at_the_optimum() -> None:
    # after K steps client k has gone 1 - (1 - lr a_k)^K of its way to b_k
    moved = [1 - (1 - 0.1 * np.array(c.a)) ** 10 for c in BOWLS]
    end = where(fedavg("equal"))["w"]
    np.testing.assert_allclose(end, fixed_point(BOWLS, moved), atol=1e-9)
    assert np.abs(end - optimum(BOWLS)).max() > 0.1


@pytest.mark.parametrize("algorithm", [scaffold(), feddyn(alpha=0.5)], ids=str)
def test_corrected_steps_end_at_the_optimum(algorithm) -> None:
    np.testing.assert_allclose(where(algorithm)["w"], optimum(BOWLS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", [scaffold(), feddyn(alpha=0.5)], ids=str)
def test_and_with_two_of_three_clients_a_round(algorithm) -> None:
    end = where(algorithm, rounds=900, cohort=sample(count=2))["w"]
    np.testing.assert_allclose(end, optimum(BOWLS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("decay", "end"), [(1.0, -0.75), (0.5, -0.625)])
def test_scaffold_first_two_rounds_by_hand(decay, end, tmp_path) -> None:
    # One number, a = 1, lr = 0.5, K = 1 step, from w = 0; b = 1 and b = -3.
    # Round 1: c = c_k = 0; gradients -1, 3; y = 0.5, -1.5; mean change -0.5.
    #   c_k+ = (x - y) / (K lr) = -0.5 / 0.5 = -1 and 1.5 / 0.5 = 3; c = 2/2 * mean(-1, 3) = 1.
    # Round 2: w = -0.5; g = -1.5, 2.5; g - c_k + c = 0.5 both; y = -0.5 - 0.5 lr.
    #   c_k+ - c_k = -c + 0.5 = -0.5 both: c_k = -1.5, 2.5 and c = 0.5, whatever the rate.
    sites = Sites([Bowl([1.0], [1.0]), Bowl([1.0], [-3.0])])
    learner = Quadratic(lr=0.5, steps=1, size=1, decay=decay)
    one = simulate(Job(learner, scaffold(), rounds=1), sites)
    two, state = kept(Job(learner, scaffold(), rounds=2), sites, tmp_path)
    assert one.params["w"].tolist() == [-0.5]
    assert two.params["w"].tolist() == [end]
    assert [state.committed[k].learner.own["w"].tolist() for k in (0, 1)] == [[-1.5], [2.5]]
    assert state.progress.params[CONTROL + "w"].tolist() == [0.5]


def test_feddyn_first_two_rounds_by_hand(tmp_path) -> None:
    # One number, a = 1, lr = 0.5, one step, alpha = 0.5, N = 2 clients, b = 1 and b = -3.
    # Round 1: h_k = 0; changes 0.5, -1.5; h_k = -0.25, 0.75. Mean change -0.5:
    #   h = 0.5 * 0.5 = 0.25; w = -0.5 - 0.25 / 0.5 = -1.
    # Round 2: g = -2, 2; g - h_k = -1.75, 1.25; changes 0.875, -0.625; mean 0.125:
    #   h = 0.25 - 0.5 * 0.125 = 0.1875; w = -1 + 0.125 - 0.1875 / 0.5 = -1.25.
    sites = Sites([Bowl([1.0], [1.0]), Bowl([1.0], [-3.0])])
    learner = Quadratic(lr=0.5, steps=1, size=1)
    run, state = kept(Job(learner, feddyn(0.5), rounds=2), sites, tmp_path)
    assert run.params["w"].tolist() == [-1.25]
    assert [state.committed[k].learner.own["w"].tolist() for k in (0, 1)] == [[-0.6875], [1.0625]]


def test_feddyn_server_counts_those_who_did_not_take_part() -> None:
    # alpha = 0.5, 1 of 4 clients, mean change 8: h = -0.5 * 8 / 4 = -1; step = 8 + 1 / 0.5 = 10
    part = settle(0.5)
    delta = Update.of({"w": np.array([8.0])})
    step, h = part.back(delta, part.start(delta, "back"), Context(Rng.of(0), count=1, population=4))
    assert (step["w"].tolist(), h["w"].tolist()) == ([10.0], [-1.0])


def test_scaffold_with_a_decaying_rate_uses_the_rate_of_the_round() -> None:
    learner = Quadratic(lr=0.1, steps=10, decay=0.99)
    end = simulate(Job(learner, scaffold(), rounds=300, every=300), BOWLS).params["w"]
    np.testing.assert_allclose(end, optimum(BOWLS), rtol=0, atol=1e-6)


def test_the_controls_are_trained_and_sent_but_are_no_part_of_the_model() -> None:
    job = Job(LEARNER, scaffold(), rounds=2)
    run = simulate(job, BOWLS)
    assert list(run.params) == ["w"]
    assert list(prepare(job, BOWLS).init(np.random.default_rng(0))) == ["w", CONTROL + "w"]
    plain = simulate(job.replace(algorithm=fedavg()), BOWLS)
    assert run.traffic.up == 2 * plain.traffic.up


def test_the_server_control_is_the_mean_of_the_clients(tmp_path) -> None:
    # client 2 has no rows: it must count neither in the mean nor in |S|
    sites = Sites([*BOWLS[:2], Bowl([1.0, 1.0], [0.0, 0.0], rows=0, steps=0)])
    _, state = kept(Job(LEARNER, scaffold(), rounds=4), sites, tmp_path)
    server = state.progress.params.pick(lambda n: n.startswith(CONTROL)).buffer
    theirs = [state.committed[k].learner.own.buffer for k in range(3)]
    np.testing.assert_allclose(server, np.mean(theirs, axis=0), rtol=1e-9)


@pytest.mark.parametrize(
    "learner", [Quadratic(momentum=0.9), SimpleNamespace(lr=0.1, optimizer="adam")], ids=["momentum", "adam"]
)
def test_scaffold_refuses_steps_whose_size_it_does_not_know(learner) -> None:
    with pytest.raises(ConfigError, match="scaffold assumes plain SGD"):
        scaffold().wrap(learner)


def test_scaffold_refuses_a_learner_without_a_rate() -> None:
    with pytest.raises(ConfigError, match="no `lr`"):
        scaffold().wrap(object())


def test_feddyn_needs_alpha_above_0() -> None:
    with pytest.raises(ConfigError, match="alpha must be above 0"):
        feddyn(0)
