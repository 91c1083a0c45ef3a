"""Runs that wait for clients which hold back by their own policy, in virtual time: seen, and not for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atoll.control.desk import desk
from atoll.control.engine.power import Seen
from atoll.control.settings import Power
from tests.engine.says import Says
from tests.federation.faults import DATA, TABLE
from tests.federation.world import World, run

LOW, FULL = Seen(mains=False, battery=0.1), Seen(mains=False, battery=0.9)
WHOLE = {**TABLE, "cohort": {"name": "sample", "fraction": 1.0}}  # without it a round needs but one
NOON = 1.8e9  # when virtual time begins
BUFFER = {"name": "fedbuff", "size": 2, "concurrency": 2}


def held(folder: Path, edges: int) -> World:
    """A federation of which all clients but the first have a low battery."""
    world = World(folder, DATA, edges=edges)
    for name in world.clients[1:]:
        world.power[name] = Power(battery=0.5, every=0.5)
        world.sensors[name] = Says(LOW)
    world.start_all()
    return world


@pytest.mark.parametrize(("edges", "algorithm"), [(0, "fedavg"), (2, "fedavg"), (0, BUFFER)])
def test_a_run_that_waits_says_for_whom_and_ends_after_what_its_job_allows(
    tmp_path: Path, edges: int, algorithm: Any
) -> None:
    async def main() -> None:
        world = held(tmp_path, edges)
        await world.gathered()
        table = {**WHOLE, "algorithm": algorithm, "wait": 30.0}
        if algorithm == BUFFER:
            world.sensors[world.clients[0]] = Says(LOW)
        run_id = world.submit(table, 5)
        coordinator = world.processes["coordinator"].node
        await world.until(lambda: coordinator.waiting(run_id))
        count = len(world.clients) - 1
        told = coordinator.about(run_id)["waiting"]
        assert (told["held"], told["of"], told["rules"]) == (count, count + 1, {"battery": count})
        began = asyncio.get_running_loop().time()
        assert 0 <= NOON + began - told["since"] < 2
        rows = desk.nodes(world.store, coordinator.live(), NOON + began)
        holds = {row["name"]: row["holds"] for row in rows if row["role"] == "client"}
        assert holds.pop(world.clients[0]) is None
        assert {(h["rule"], h["until"]) for h in holds.values()} == {("battery", None)}
        assert all(NOON <= h["since"] <= NOON + began for h in holds.values())
        record = await world.finished(run_id)
        assert record["state"] == "failed"
        why = f"{count} of {count + 1} hold back (battery {count})"
        assert f"for 30 seconds, as long as the job waits: {why}" in record["reason"]
        assert 28 < asyncio.get_running_loop().time() - began < 35
        assert coordinator.waiting(run_id) == {}

    run(main())


def test_once_they_let_go_it_goes_on_after_however_long(tmp_path: Path) -> None:
    """Without a limit of the job; a node says anew since when."""

    async def main() -> None:
        world = held(tmp_path, 0)
        await world.gathered()
        run_id = world.submit(WHOLE, 5)
        coordinator = world.processes["coordinator"].node
        await world.until(lambda: coordinator.waiting(run_id))
        await asyncio.sleep(100.0)
        assert coordinator.waiting(run_id)["waiting"]["held"] == len(world.clients) - 1
        for name in world.clients[1:]:
            world.sensors[name].seen = FULL
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        assert all(row["holds"] is None for row in desk.nodes(world.store, coordinator.live(), NOON))
        world.sensors[world.clients[1]].seen = LOW
        await asyncio.sleep(2.0)
        rows = {row["name"]: row["holds"] for row in desk.nodes(world.store, coordinator.live(), NOON)}
        assert rows[world.clients[1]]["since"] > NOON + 100.0

    run(main())

    run(main())


def test_a_run_that_no_client_comes_for_ends_too(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, DATA)
        world.start("coordinator")
        await world.until(world.alive)
        run_id = world.submit({**WHOLE, "wait": 50.0}, 5)
        coordinator = world.processes["coordinator"].node
        await world.until(lambda: coordinator.waiting(run_id))
        assert coordinator.about(run_id)["waiting"]["of"] == 0
        record = await world.finished(run_id)
        assert record["state"] == "failed"
        assert "no client that offers data called 'rows' came in 50 seconds" in record["reason"]

    run(main())
