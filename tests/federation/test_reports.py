"""A signed report of every run that has begun, however it ended: what it spent of its promise, at most."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.control.config import parse
from atoll.control.desk import desk
from atoll.privacy.report import open_report
from tests.federation.faults import DATA, TABLE
from tests.federation.world import World, pki, run

PROMISE = {"epsilon": 8.0, "delta": 1e-3, "clip": 1.0}
PRIVATE: dict[str, Any] = {**TABLE, "rounds": 40, "algorithm": "fedavg", "privacy": PROMISE}


def reported(world: World, run_id: str) -> list[dict[str, Any]]:
    root = (pki() / "authority" / "root.pem").read_bytes()
    events = [e for e in world.store.events(0, limit=10**6) if e["run"] == run_id]
    assert world.store.verify().ok
    return [open_report(e["body"]["signed"], root) for e in events if e["kind"] == "run.report"]


async def begun(world: World, run_id: str, rounds: int) -> None:
    await world.until(lambda: len(world.store.history(run_id)) > rounds)


def cost(rounds: int) -> float:
    job = parse(PRIVATE).job
    assert job.privacy is not None
    return job.privacy.cost(job.cohort, rounds).epsilon


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_was_stopped_says_what_it_spent(tmp_path, killed):
    async def main():
        world = World(tmp_path, DATA)
        world.start_all()
        await world.gathered()
        run_id = world.submit(PRIVATE, 5)
        await begun(world, run_id, 3)
        desk.stop(world.store, run_id, "ann")
        if killed:
            world.kill("coordinator")
            world.start("coordinator")
        record = await world.finished(run_id)
        return record, len(world.store.history(run_id)) - 1, reported(world, run_id)

    record, ran, told = run(main())
    assert record["state"] == "stopped"
    (told,) = told
    promise = told["promise"]
    assert told["state"] == "stopped" and told["rounds"] == ran < 40
    assert promise["epsilon"] == pytest.approx(8.0, rel=1e-3) and promise["rounds"] == 40
    assert ran <= promise["rounds begun"] <= ran + 1
    assert promise["epsilon spent at most"] == pytest.approx(cost(promise["rounds begun"]))
    assert promise["epsilon spent at most"] < 8.0


def test_a_run_that_failed_says_what_it_spent(tmp_path):
    async def main():
        world = World(tmp_path, DATA)
        world.start_all()
        await world.gathered()
        run_id = world.submit({**PRIVATE, "deadline": 5.0, "wait": 5.0}, 5)
        await begun(world, run_id, 2)
        for name in world.clients:
            world.kill(name)
        record = await world.finished(run_id)
        return record, len(world.store.history(run_id)) - 1, reported(world, run_id)

    record, ran, told = run(main())
    assert record["state"] == "failed", record
    (told,) = told
    assert told["state"] == "failed" and told["rounds"] == ran
    assert told["promise"]["rounds begun"] == ran + 1  # the last was begun, and nobody came
    assert told["promise"]["epsilon spent at most"] == pytest.approx(cost(ran + 1))


def test_a_run_that_nobody_was_asked_in_has_none(tmp_path):
    async def main():
        world = World(tmp_path, DATA)
        world.start_all()
        await world.gathered()
        first, second = world.submit(PRIVATE, 5), world.submit(PRIVATE, 6)
        desk.stop(world.store, second, "ann")
        await begun(world, first, 0)
        desk.stop(world.store, first, "ann")
        await world.finished(first)
        assert world.store.run(second)["state"] == "stopped"
        return reported(world, second)

    assert run(main()) == []
