"""Clients that move to another edge while a round runs: each counts once, and the model is that of
the undisturbed run.
"""

from __future__ import annotations

import numpy as np
import pytest

from atoll.core.aggregate import Reply, Sum, points
from atoll.core.edge import Answer, Task, relay
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.job import Job
from atoll.learn.buffered import fedbuff
from atoll.run import simulate
from atoll.simulate.faults import Crash, World
from atoll.simulate.world import Simulation
from tests.worlds.cases import SLOW, WIDE, Drift, Tally, clients
from tests.worlds.moves import FIRST, federation, wandering


def crash(at, **more):
    return World(**SLOW, crashes=(Crash("edge a", at, 1e6),), **more)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("at", [0.3, 1.0, 2.7, 5.1])
@pytest.mark.parametrize("trouble", [{}, {"delay": WIDE, "loss": 0.2, "resend": 2.0}], ids=["calm", "rough"])
def test_an_edge_dies_and_its_clients_go_on_under_the_other(at, trouble, raw):
    """They turn up within two seconds; nothing of the round is lost."""
    calm = simulate(Job(Drift(), rounds=6), clients(), 3)
    moves = [(at, c, "edge a", None) for c in FIRST["edge a"]]
    moves += [(at + 0.5 * (1 + c), c, None, "edge b") for c in FIRST["edge a"]]
    done, notes = federation(crash(at, **trouble), moves, rehome=8.0, raw=raw)
    assert done.params == calm.params
    assert not any(record.get("failed") for record in notes)
    assert notes[-1]["sites"] == calm.sites


@pytest.mark.parametrize("seed", range(20))
def test_clients_who_move_at_any_time_count_once(seed):
    assert wandering(seed) == []


def test_without_a_place_to_go_a_client_is_named_as_missing():
    moves = [(0.99, c, "edge a", None) for c in FIRST["edge a"]]
    _, notes = federation(crash(1.0), moves)
    last = notes[-1]
    assert last["clients"] == 4
    assert last["failed"] == dict.fromkeys(FIRST["edge a"], "nobody answered for it")


def test_a_buffer_finds_clients_where_they_stand_now():
    whole = fedbuff(size=3, concurrency=4, staleness="constant", lr=3.0)
    moves = [(1.0, c, "edge a", None) for c in FIRST["edge a"]]
    moves += [(3.0, c, None, "edge b") for c in FIRST["edge a"]]
    done, notes = federation(crash(1.0), moves, learner=Tally(), algorithm=whole, total=12)
    assert done.params["times"].sum() == sum(record["clients"] for record in notes if record["round"])
    assert max(done.used[c] for c in FIRST["edge a"] if c in done.used) > 6


def test_an_edge_may_not_answer_for_others():
    """A client that two children claim counts once; a child that claims more is set aside."""

    async def twice(p, asked):
        return Answer((1,), replies=((1, Reply(like)), (1, Reply(like))))

    async def unnamed(p, asked):
        return Answer((), replies=((1, Reply(like)),))

    like = Update.of({"w": np.ones(4, np.float32)})
    task = Task(0, Rng.of(1), (0, 1), (-1, -1), like, points(like, 2), (0, 1))
    rule = Sum().at(task.points, task.cohort, task.key)

    def claims(*who):
        async def answer(p, asked):
            return Answer(who, replies=tuple((c, Reply(like.scale(1 + c))) for c in who))

        return answer

    async def main(p):
        return await relay(p, task, {"a": [0], "b": [0, 1]}, rule)

    for b, counted, failed in (
        (claims(1), {0, 1}, set()),
        (claims(0, 1), {0}, {1}),
        (twice, {0}, {1}),
        (unnamed, {0}, {1}),
    ):
        sim = Simulation(World(), Rng.of(0))
        sim.add("a", answers=claims(0))
        sim.add("b", answers=b)
        sim.add("main", main=main)
        answer = sim.run("main")
        assert (set(answer.clients), set(answer.failed)) == (counted, failed)
        assert rule.finish(answer.partial).count == len(counted)
        assert all("b answers" in why for why in answer.failed.values())
