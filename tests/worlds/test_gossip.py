"""Gossip: all clients come to one model, the one that is best for all of them together."""

import numpy as np
import pytest

from atoll.core.errors import ConfigError, QuorumError
from atoll.core.message import Contribution
from atoll.core.rng import Rng
from atoll.job import Job, tree
from atoll.learn.gossip import gossip, graph, metropolis
from atoll.learn.select import sample
from atoll.run import simulate
from atoll.simulate.faults import Crash, World, constant
from tests.worlds.cases import SAME, SLOW, Drift, clients, last_records

GRAPHS = {"ring": gossip("ring"), "random": gossip("random", degree=4), "complete": gossip("complete")}


class Quadratic:
    """F_k(w) = |A_k (w - t_k)|² / 2, one gradient step a round with a rate that falls."""

    def init(self, rng):
        return {"w": np.zeros(2)}

    def fit(self, params, data, ctx):
        H, t = data
        return Contribution({"w": -0.5 / (1 + ctx.round / 10) * H @ (params["w"] - t)})

    def evaluate(self, params, data, ctx):
        return {}


def quadratics(n=10):
    rng = np.random.default_rng(1)
    H = [np.diag(rng.uniform(0.5, 1.5, 2)) for _ in range(n)]
    t = rng.normal(size=(n, 2))
    best = np.linalg.solve(sum(H), sum(h @ x for h, x in zip(H, t, strict=True)))
    return list(zip(H, t, strict=True)), best


@pytest.mark.parametrize("shape", GRAPHS)
def test_all_models_come_together_at_the_optimum_of_the_mean_objective(shape):
    data, best = quadratics()
    run = simulate(Job(Quadratic(), GRAPHS[shape], rounds=600, every=600), data, 2)
    np.testing.assert_allclose(run.params["w"], best, atol=2e-3)
    assert run.history[-1]["spread"] < 0.1
    shorter = simulate(Job(Quadratic(), GRAPHS[shape], rounds=60, every=60), data, 2)
    assert run.history[-1]["spread"] < 0.2 * shorter.history[-1]["spread"] + 1e-12


def test_averaging_alone_keeps_the_mean_and_ends_in_consensus():
    class Once(Quadratic):
        def fit(self, params, data, ctx):
            return Contribution({"w": data[1] * (ctx.round == 0)})

    data, _ = quadratics()
    run = simulate(Job(Once(), gossip("ring"), rounds=200, every=200), data, 0)
    np.testing.assert_allclose(run.params["w"], np.mean([t for _, t in data], axis=0), atol=1e-12)
    assert run.history[-1]["spread"] < 1e-6


@pytest.mark.parametrize("kind", ["ring", "random", "complete"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
def test_weights_are_symmetric_and_sum_to_one_on_a_connected_graph(kind, n):
    weights = metropolis(graph(kind, 4, range(n), Rng.of(n)))
    W = np.array([[weights[i].get(j, 0.0) for j in range(n)] for i in range(n)])
    W += np.diag(1 - W.sum(1))
    assert (W == W.T).all()
    assert (W >= 0).all()
    np.testing.assert_allclose(W.sum(0), 1)
    assert (np.linalg.matrix_power(W, 3 * n) > 0).all()


@pytest.mark.parametrize("trouble", SAME)
def test_whatever_the_net_does_every_model_is_the_same_bytes(trouble):
    job = Job(Drift(), gossip("random", degree=4), rounds=6, every=3)
    calm = simulate(job, clients(), 1)
    run = simulate(job, clients(), 1, world=SAME[trouble])
    assert run.params == calm.params
    assert last_records(run.history)[-1]["spread"] == calm.history[-1]["spread"]


@pytest.mark.parametrize("seed", range(6))
def test_a_coordinator_that_restarts_in_mid_round_finds_some_done_and_some_still_waiting(seed):
    job = Job(Drift(), gossip("ring"), rounds=6, every=3)
    crashes = tuple(Crash("coordinator", 0.1 + 1.3 * i, 0.4) for i in range(12))
    run = simulate(job, clients(), seed, world=World(**SLOW, delay=constant(0.05), crashes=crashes))
    assert run.params == simulate(job, clients(), seed).params


def test_a_dead_or_dropped_neighbour_blocks_nobody():
    job = Job(Drift(), gossip("ring"), rounds=12, deadline=20.0)
    world = World(
        **SLOW,
        delay=constant(0.1),
        dropout=0.2,
        crashes=(Crash("client2", 3.0, 30.0), Crash("client5", 9.0, 1.0)),
    )
    run = simulate(job, clients(), 3, world=world)
    assert run.history[-1]["round"] == 12
    assert all(r["clients"] + len(r["failed"]) == 8 for r in run.history[1:])
    failed = [why for r in run.history[1:] for why in r["failed"].values()]
    assert {"crashed", "dropped out"} <= set(failed)
    assert run.params.finite()


def test_a_client_that_cannot_train_still_averages():
    class Broken(Drift):
        def fit(self, params, data, ctx):
            if ctx.client == 3:
                raise ValueError("no")
            return super().fit(params, data, ctx)

    run = simulate(Job(Broken(), gossip("ring"), rounds=3), clients(), 3)
    assert [list(r["failed"]) for r in run.history[1:]] == [[3]] * 3
    assert run.history[-1]["clients"] == 7


def test_traffic_is_what_neighbours_send():
    run = simulate(Job(Drift(), gossip("ring"), rounds=1), clients(), 3)
    assert run.traffic.up == 8 * 2 * 18 * 4  # clients, neighbours, numbers, bytes


def test_a_cut_off_run_goes_on_bit_for_bit(tmp_path):
    class CutError(Exception):
        pass

    def watch(record):
        if record["round"] == 3:
            raise CutError

    job = Job(Drift(), gossip("ring"), rounds=5)
    whole = simulate(job, clients(), 1)
    with pytest.raises(CutError):
        simulate(job, clients(), 1, out=tmp_path / "run", watch=watch)
    assert simulate(job, clients(), 1, out=tmp_path / "run", resume=True).params == whole.params


@pytest.mark.parametrize("wrong", [{"topology": tree((2,))}, {"cohort": sample(0.5)}])
def test_cohorts_and_edges_are_refused(wrong):
    with pytest.raises(ConfigError, match="neither cohorts nor edges"):
        simulate(Job(Drift(), gossip(), rounds=1).replace(**wrong), clients())


@pytest.mark.parametrize("wrong", [{"graph": "star"}, {"degree": 3}, {"degree": 0}])
def test_impossible_graphs_are_refused(wrong):
    with pytest.raises(ConfigError):
        gossip(**wrong)


@pytest.mark.parametrize("shape", GRAPHS)
@pytest.mark.parametrize("seed", range(5))
def test_nobody_waits_for_a_neighbour_that_dropped_out(shape, seed):
    world = World(**SLOW, delay=constant(0.3), loss=0.2, dropout=0.4)
    run = simulate(Job(Drift(), GRAPHS[shape], rounds=8), clients(), seed, world=world)
    assert run.history[-1]["round"] == 8
    assert {why for r in run.history[1:] for why in r["failed"].values()} == {"dropped out"}


def test_training_that_fails_everywhere_ends_the_run():
    class Broken(Quadratic):
        def fit(self, params, data, ctx):
            raise ValueError("no")

    with pytest.raises(QuorumError, match=r"(?s)nobody contributed in 3 rounds.*ValueError: no"):
        simulate(Job(Broken(), gossip("ring"), rounds=9), quadratics()[0])
