"""A liar among real members: set aside in its run, quarantined after it, told why, reinstated by an admin."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.control.config import parse
from atoll.control.engine.agent import QUARANTINED
from atoll.control.store import Store
from tests.federation.invariants import leaves
from tests.federation.world import World, run

DATA = at.partition(at.load_data("wine"), clients=5, by=at.iid(), seed=1, holdout=0.25)
LIAR, NAME = 2, "client-3"
TABLE: dict[str, Any] = {
    "name": "wine",
    "rounds": 5,
    "data": {"name": "rows"},
    "learner": {"name": "two_faced", "liar": LIAR},
    "algorithm": {"name": "robust", "set_aside": True},
}
HONEST = {**TABLE, "rounds": 1, "learner": {"name": "two_faced", "liar": -1}, "algorithm": "fedavg"}


class TwoFaced:
    """Least squares by single steps; one client sends its step with the other sign."""

    def __init__(self, liar: int) -> None:
        self.liar = liar

    def init(self, rng: Any) -> Any:
        return {"w": np.zeros((13, 3), np.float32)}

    def fit(self, params: Any, data: Any, ctx: Any) -> at.Contribution:
        x = data.x / 1000.0
        step = x.T @ (np.eye(3)[data.y] - x @ params["w"]) / len(x)
        return at.Contribution({"w": np.float32(-step if ctx.client == self.liar else step)}, len(x))

    def evaluate(self, params: Any, data: Any, ctx: Any) -> Any:
        return {"loss": float(np.square(np.eye(3)[data.y] - data.x / 1000.0 @ params["w"]).mean())}


@at.part("learner")
def two_faced(liar: int = -1) -> TwoFaced:
    """Least squares; the client of this number lies."""
    return TwoFaced(liar)


def simulated(table: Any, seed: int = 5) -> at.Run:
    return at.simulate(parse({**table, "data": {"name": "wine"}}).job, DATA, seed)


async def lived(world: World, table: Any, state: str = "done") -> str:
    run_id = world.submit(table, 5)
    record = await world.finished(run_id)
    assert record["state"] == state, record
    return run_id


def quarantined(store: Store) -> set[str]:
    return {node["name"] for node in store.nodes() if node["quarantined"]}


def asides(store: Store, run_id: str) -> list[Any]:
    return [r["aside"] for r in store.history(run_id)[1:]]


@pytest.mark.parametrize("edges", [0, 2])
def test_a_liar_is_set_aside_as_in_the_simulation_and_then_by_every_run(tmp_path, edges):
    alone = simulated(TABLE)
    assert [r["aside"] for r in alone.history[1:]] == [[], [], [], [LIAR], [LIAR]]

    async def main():
        world = World(tmp_path, DATA, edges=edges)
        world.start_all()
        await world.gathered()
        first = await lived(world, TABLE)
        assert leaves(world.params(first)) == {n: a.tobytes() for n, a in alone.params.items()}
        assert asides(world.store, first) == [r["aside"] for r in alone.history[1:]]
        assert quarantined(world.store) == {NAME}
        (told,) = [row["text"] for row in world.store.logs(first) if row["node"] == NAME]
        assert "over 3 rounds its updates pointed elsewhere" in told
        assert f"atoll node reinstate {NAME}" in told
        note = tmp_path / NAME / QUARANTINED
        await world.until(lambda: note.exists() and note.read_text() == told)
        scores = {n["name"]: n["score"] for n in world.store.nodes() if n["role"] == "client"}
        assert all((score >= 0.67) == (name == NAME) for name, score in scores.items())

        second = await lived(world, HONEST)
        assert world.store.history(second)[1]["cohort"] == 4
        assert NAME in world.online(), "it stays connected"

        world.store.reinstate(NAME, "ann")
        await world.until(lambda: not note.exists())
        third = await lived(world, HONEST)
        assert world.store.history(third)[1]["cohort"] == 5
        assert quarantined(world.store) == set() and world.store.verify().ok
        kinds = [(e["kind"], e["node"], e["actor"]) for e in world.store.events(limit=10**6)]
        assert ("node.quarantined", NAME, "") in kinds and ("node.reinstated", NAME, "ann") in kinds

    run(main())


PLACES = [
    *(("drive.folded.after", n) for n in (11, 33)),
    *(("drive.saved.before", n) for n in (3, 4)),
    *(("drive.saved.after", n) for n in (1, 3, 4)),
    ("coordinator.trained", 1),
    ("coordinator.judged.before", 1),
    ("store.judged.before_commit", 1),
    ("store.judged.after_commit", 1),
    ("coordinator.judged.after", 1),
]


@pytest.mark.parametrize(("place", "hit"), PLACES)
def test_a_coordinator_that_dies_knows_who_lies_when_it_is_back(tmp_path, place, hit):
    """The record is in its checkpoint and is counted again from the journal: the model has the same bits."""
    alone = simulated(TABLE)

    async def main():
        world = World(tmp_path, DATA)
        world.start_all()
        await world.gathered()
        run_id = world.submit(TABLE, 5)
        world.crash(place, hit)
        await world.until(lambda: world.processes["coordinator"].dead)
        world.start("coordinator")
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        assert asides(world.store, run_id) == [r["aside"] for r in alone.history[1:]]
        assert leaves(world.params(run_id)) == {n: a.tobytes() for n, a in alone.params.items()}
        assert quarantined(world.store) == {NAME}
        told = [row for row in world.store.logs(run_id) if row["node"] == NAME and row["level"] == "warning"]
        assert len(told) == 1
        assert sum(e["kind"] == "node.quarantined" for e in world.store.events(limit=10**6)) == 1
        assert world.store.verify().ok

    run(main())


def test_naming_alone_quarantines_nobody_and_is_remembered_by_the_next_run(tmp_path):
    named = {**TABLE, "rounds": 4, "algorithm": "robust"}

    async def main():
        world = World(tmp_path, DATA)
        world.start_all()
        await world.gathered()
        first = await lived(world, named)
        assert world.store.history(first)[-1]["suspects"] == [LIAR]
        assert asides(world.store, first) == [[], [], [], []]
        assert quarantined(world.store) == set()
        second = await lived(world, TABLE)
        assert asides(world.store, second) == [[LIAR]] * 5, "it was known from the beginning"
        assert quarantined(world.store) == {NAME}

    run(main())


def test_a_run_that_is_stopped_leaves_what_it_has_shown(tmp_path):
    async def main():
        world = World(tmp_path, DATA)
        world.start_all()
        await world.gathered()
        run_id = world.submit({**TABLE, "rounds": 1000}, 5)
        await world.until(lambda: len(world.store.history(run_id)) > 5)
        world.store.move(run_id, "stopping", frm=("running",), reason="enough", actor="ann")
        record = await world.finished(run_id)
        assert record["state"] == "stopped"
        assert quarantined(world.store) == {NAME}

    run(main())


def test_who_is_reinstated_while_a_run_is_at_work_is_not_quarantined_by_it(tmp_path):
    async def main():
        world = World(tmp_path, DATA, latency=0.2)
        world.start_all()
        await world.gathered()
        first = await lived(world, {**TABLE, "algorithm": "robust", "rounds": 4})
        assert world.store.records()[NAME]["score"] > 0.67
        second = world.submit(TABLE, 5)
        await world.until(lambda: len(world.store.history(second)) > 2)
        assert world.store.reinstate(NAME, "ann")
        await world.finished(second)
        assert first != second
        assert asides(world.store, second)[-1] == [LIAR], "this run had begun with what it knew"
        assert quarantined(world.store) == set()

    run(main())


@pytest.mark.parametrize("who", ["coordinator", "edge-a"])
def test_a_server_that_is_started_again_does_not_call_it_reinstated(tmp_path, who, caplog):
    async def main():
        world = World(tmp_path, DATA, edges=1)
        world.start_all()
        await world.gathered()
        world.store.judged("r1", {NAME: ({"rounds": 3, "twin": 1.0}, 1.0, 0)}, [NAME])
        note = tmp_path / NAME / QUARANTINED
        await world.until(note.exists)
        for _ in range(3):
            world.kill(who)
            await asyncio.sleep(1.0)
            world.start(who)
            await world.gathered()
            await asyncio.sleep(5.0)
            assert note.exists()

    run(main())
    said = [
        r.getMessage()
        for r in caplog.records
        if NAME in r.getMessage() or "reinstated this" in r.getMessage()
    ]
    assert len([text for text in said if "is quarantined since" in text]) == 1
    assert not any("reinstated this member" in text for text in said)


def test_a_member_that_was_away_hears_of_it_when_it_is_back(tmp_path):
    async def main():
        world = World(tmp_path, DATA, edges=1)
        world.start_all()
        await world.gathered()
        world.store.judged("r1", {NAME: ({"rounds": 3, "twin": 1.0}, 1.0, 0)}, [NAME])
        note = tmp_path / NAME / QUARANTINED
        await world.until(note.exists)
        assert "another client's, or were not let in" in note.read_text()
        world.kill(NAME)
        await asyncio.sleep(1.0)
        world.store.reinstate(NAME, "ann")
        await asyncio.sleep(5.0)
        world.start(NAME)
        await world.until(lambda: not note.exists())

    run(main())
