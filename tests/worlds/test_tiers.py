"""Edges that train rounds of their own, cut off, crashed and asked again: nothing is lost or counted twice.

Every client's update is 1, so an edge's model rises by its rounds, and the cloud's by what its records say.
"""

import numpy as np
import pytest

from atoll.core.aggregate import points
from atoll.core.edge import Task
from atoll.core.errors import QuorumError
from atoll.core.message import Contribution
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.job import Job, tree
from atoll.learn import rounds
from atoll.learn.hierarchical import hierarchical
from atoll.learn.local import Local
from atoll.run import simulate
from atoll.simulate.faults import Crash, Partition, World, constant, lognormal
from atoll.simulate.world import Simulation
from tests.worlds.cases import CLIENTS, SLOW, WIDE, chaos, clients, last_records
from tests.worlds.test_moves import FIRST, federation

EDGE = [c for c in range(CLIENTS) if c % 2 == 0]  # those below ".0" of two edges
CUT = frozenset({".0", *(f"client{c}" for c in EDGE)})


class Ones:
    """Every update is 1."""

    def init(self, rng):
        return {"w": np.zeros(3)}

    def fit(self, params, data, ctx):
        return Contribution({"w": np.ones(3)}, weight=1 + ctx.client)

    def evaluate(self, params, data, ctx):
        return {}


def steps(record, size):
    """What the cloud's model rose by: its edges' rounds, weighed by their age where one is taken."""
    if not record["clients"]:
        return 0.0
    mean = record["train"]["edge_rounds"]
    return mean if size is None else mean / np.sqrt(1 + record["staleness"])


def rose(params, history, size=None):
    """Whether the model is the sum of what the records say."""
    said = sum(steps(record, size) for record in last_records(history)[1:])
    np.testing.assert_allclose(params["w"], said, rtol=1e-9)


def tiers(world, seed=0, rounds=6, shape=(2,), deadline=None, **values):
    algorithm = hierarchical(**values)
    job = Job(Ones(), algorithm, rounds=rounds, topology=tree(shape), deadline=deadline, sites=False)
    return simulate(job, clients(), seed, world=world)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("shape", [(2,), (2, 2)])
@pytest.mark.parametrize("seed", range(12))
def test_in_chaos_the_model_is_the_sum_of_the_records(seed, shape, size):
    names = ["coordinator", ".0", ".1", *(f"client{i}" for i in range(CLIENTS))]
    values = {"edge_rounds": 2, "offline": "continue", "extra": 3}
    if size is not None:
        values |= {"asynchronous": True, "size": size}
    try:
        run = tiers(chaos(seed, names), seed, shape=shape, deadline=30.0, **values)
    except QuorumError:
        return
    rose(run.params, run.history, size)
    assert [r["round"] for r in last_records(run.history)] == list(range(7))


@pytest.mark.parametrize("seed", range(12))
def test_clients_that_move_between_edges_count_once(seed):
    luck = np.random.default_rng(seed)
    moves, when = [], 0.0
    where = {c: edge for edge, who in FIRST.items() for c in who}
    for _ in range(8):
        when += float(luck.exponential(1.5))
        c = int(luck.integers(CLIENTS))
        new = "edge b" if where[c] == "edge a" else "edge a"
        moves.append((when, c, where[c], new))
        where[c] = new
    world = World(**SLOW, delay=WIDE, crashes=(Crash("edge a", float(luck.uniform(0, 9)), 1.0),))
    done, notes = federation(world, moves, learner=Ones(), algorithm=hierarchical(edge_rounds=2), seed=seed)
    rose(done.params, notes)


def slow(*cuts, **more):
    return World(compute=lognormal(0.0, 0.1), delay=constant(0.01), partitions=cuts, **more)


def test_cut_off_an_edge_pauses_or_goes_on_and_delivers_the_newest():
    """Between 1.5 and 20 s nothing passes; a round of an edge takes about 1.2 s."""
    cut = Partition(CUT, 1.5, 20.0)
    paused = tiers(slow(cut), rounds=1, edge_rounds=2)
    assert paused.history[1]["train"]["edge_rounds"] == 2.0
    gone_on = tiers(slow(cut), rounds=1, edge_rounds=2, offline="continue", extra=50)
    rows = sum(1 + c for c in EDGE), sum(1 + c for c in range(CLIENTS))
    more = (gone_on.history[1]["train"]["edge_rounds"] - 2.0) * rows[1] / rows[0]
    assert 10 < more < 20
    assert more == pytest.approx(round(more))
    bounded = tiers(slow(cut), rounds=1, edge_rounds=2, offline="continue", extra=4)
    assert (bounded.history[1]["train"]["edge_rounds"] - 2.0) * rows[1] / rows[0] == pytest.approx(4)
    for run in (paused, gone_on, bounded):
        rose(run.params, run.history)
        assert run.history[1]["clients"] == CLIENTS
        assert run.seconds > 20.0  # a synchronous cloud waited for it


def test_between_tiers_the_cloud_need_not_wait():
    """The other edge goes on; the one that comes back late is taken, with its age."""
    cut = Partition(CUT, 0.5, 15.0)
    values = {"edge_rounds": 2, "asynchronous": True, "size": 1, "offline": "continue", "extra": 50}
    run = tiers(slow(cut), rounds=10, **values)
    late = [record for record in run.history[1:] if record["staleness"] > 2]
    assert len(late) == 1
    assert late[0]["train"]["edge_rounds"] > 8
    assert len([r for r in run.history[1:] if r["staleness"] == 0]) >= 4
    rose(run.params, run.history, 1)


def test_a_cloud_with_a_deadline_goes_on_without_an_edge_and_takes_it_back():
    cut = Partition(CUT, 1.0, 12.0)
    run = tiers(slow(cut), rounds=5, edge_rounds=2, deadline=5.0)
    assert [r["clients"] for r in run.history[1:]] == [4, 4, 8, 8, 8]
    assert run.history[1]["failed"] == dict.fromkeys(EDGE, "deadline")
    rose(run.params, run.history)


def test_asked_again_an_edge_gives_what_it_has_or_the_newest():
    """A driver asks again while it could not deliver: a round more if the edge is still cut off."""
    algorithm = hierarchical(edge_rounds=2, offline="continue", extra=2)
    local = Local(Ones(), algorithm, dict(enumerate(clients())), {}, Rng.of(1))
    like = Update.of(Ones().init(None))
    task = Task(3, Rng.of(1), (0, 1), (-1, -1), like, points(like, 2), (0, 1))
    away = iter([False, True, False, True, True, False, True])  # for each time the edge looks
    made = algorithm.protocol.edge({"client0": [0], "client1": [1]}, algorithm, lambda now: not next(away))
    sim = Simulation(World(), Rng.of(1))
    sim.add("client0", answers=rounds.client(local))
    sim.add("client1", answers=rounds.client(local))
    sim.add("edge", answers=made)

    async def main(p):
        found = []
        for _ in range(4):
            answers = await p.ask({"edge": task}, fold=lambda so_far, peer, body: body)
            (reply,) = [one for _, one in answers.folded.replies]
            found.append((float(reply.update["w"][0]), reply.weight, answers.folded.clients))
        return found

    sim.add("main", main=main)
    # 2 rounds, back online; one more when asked while away; one more again; then there is no extra left
    assert sim.run("main") == [(2.0, 3.0, (0, 1)), (3.0, 3.0, (0, 1)), (4.0, 3.0, (0, 1)), (4.0, 3.0, (0, 1))]


def test_an_edge_whose_clients_all_fail_says_so():
    class Broken(Ones):
        def fit(self, params, data, ctx):
            if ctx.client in EDGE:
                raise ValueError("no such column")
            return super().fit(params, data, ctx)

    run = simulate(Job(Broken(), hierarchical(), rounds=1, topology=tree((2,))), clients(), 0)
    assert run.history[1]["clients"] == 4
    assert all("no such column" in run.history[1]["failed"][c] for c in EDGE)
    Broken.fit = lambda self, params, data, ctx: int("no such column")
    job = Job(Broken(), hierarchical(), rounds=1, topology=tree((2,)))
    with pytest.raises(QuorumError, match="no such column"):
        simulate(job, clients(), 0)


def test_training_that_diverges_is_refused_at_the_edge():
    class Wild(Ones):
        def fit(self, params, data, ctx):
            w = np.float32(1e30) if ctx.client in EDGE else np.float32(1.0)
            return Contribution({"w": np.full(3, w, np.float32)}, weight=1.0)

    run = simulate(Job(Wild(), hierarchical(), rounds=1, topology=tree((2,))), clients(), 0)
    assert run.history[1]["clients"] == 4
    assert set(run.history[1]["failed"]) == set(EDGE)
