"""One identity has one live session, wherever a second one turns up: the older ends, an operator is told."""

import asyncio
import os
import shutil

import pytest

from atoll.transport.link import RETURN
from tests.federation.faults import DATA
from tests.federation.processes import JOB, Federation, Nursery
from tests.federation.world import World, run

TWIN = "twin-of-1"  # client-1's folder on another machine
GRACE = 15.0  # seconds a seat in these worlds outlives its connection
EDGES = {"coordinator": "", "edge-a": "coordinator", "edge-b": "coordinator"}
TIERS = {"coordinator": "", "edge-a": "coordinator", "edge-b": "edge-a"}
CLIENTS = [f"client-{k + 1}" for k in range(len(DATA))]


def members(above, home):
    """A world in which client-1 stands below `home`, the others below edge-a."""
    return {**above, **dict.fromkeys(CLIENTS, "edge-a"), "client-1": home}


def seated(world, server):
    """Sessions of client-1 that are connected there."""
    found = world.processes[server].node.host.service.sessions()
    return [one for one in found if one["name"] == "client-1" and one["connected"]]


def alerts(world):
    return [row for row in world.store.logs("") if "second session" in row["text"]]


async def copied(world, at):
    """Client-1's folder is copied, and started below `at`."""
    shutil.copytree(world.folder / "client-1", world.folder / TWIN)
    world.above[TWIN] = at
    world.start(TWIN)


@pytest.mark.parametrize(
    ("above", "home", "at"),
    [
        (EDGES, "edge-a", "coordinator"),
        (EDGES, "coordinator", "edge-a"),
        (EDGES, "edge-a", "edge-b"),
        (TIERS, "edge-b", "edge-a"),
        (TIERS, "edge-b", "coordinator"),
        (TIERS, "coordinator", "edge-b"),
    ],
)
def test_of_two_processes_with_one_identity_one_stays(tmp_path, above, home, at):
    async def main():
        world = World(tmp_path, DATA, above=members(above, home))
        world.start_all()
        await world.gathered()
        await world.until(lambda: len(seated(world, home)) == 1)
        await copied(world, at)
        await world.until(lambda: alerts(world))
        await asyncio.sleep(RETURN[0] - 30.0)
        assert len(alerts(world)) == 1, "the one that was there waits, and takes no turns"
        assert alerts(world)[0]["node"] == "client-1"
        assert [len(seated(world, server)) for server in EDGES if server == at] == [1], "the newer one stays"
        assert sum(len(seated(world, server)) for server in EDGES) == 1
        await asyncio.sleep(RETURN[1])
        assert len(alerts(world)) <= 3, "one turn in each window"
        assert not any(world.processes[name].task.done() for name in ("client-1", TWIN))

    run(main())


@pytest.mark.parametrize("server", ["edge-a", "coordinator"])
def test_at_one_parent_the_newer_stays_and_the_other_waits_until_it_leaves(tmp_path, server):
    async def main():
        world = World(tmp_path, DATA, above=members(EDGES, server))
        world.start_all()
        await world.gathered()
        await copied(world, server)
        await world.until(lambda: alerts(world))
        await asyncio.sleep(3 * RETURN[1])
        assert len(alerts(world)) == 1, "it asks now and then, and replaces nobody"
        assert seated(world, server)[0]["since"] > 3 * RETURN[1], "it is the one that came second"
        world.kill(TWIN)
        await asyncio.sleep(2 * RETURN[1])
        assert len(seated(world, server)) == 1, "the seat is free: it goes on"
        assert len(alerts(world)) == 1

    run(main())


@pytest.mark.parametrize(("above", "home"), [(EDGES, "edge-a"), (TIERS, "edge-b")])
def test_who_moves_and_comes_back_is_nobodys_copy(tmp_path, above, home):
    """Cut off from its parent it goes to another, dies there, comes back as another process, and so on."""

    async def main():
        world = World(tmp_path, DATA, above=members(above, home))
        world.start_all()
        await world.gathered()
        for _ in range(3):
            world.net.part("client-1", home)
            await world.until(lambda: any(seated(world, server) for server in EDGES if server != home))
            world.net.partitions.clear()
            world.kill("client-1")
            world.start("client-1")
            await world.until(lambda: len(seated(world, home)) == 1)
            await asyncio.sleep(20.0)
            assert sum(len(seated(world, server)) for server in EDGES) == 1
        assert not world.processes["client-1"].task.done()
        assert alerts(world) == []

    run(main())


@pytest.mark.parametrize(
    ("above", "home", "then"), [(EDGES, "edge-a", "coordinator"), (TIERS, "edge-b", "edge-a")]
)
def test_who_starts_again_while_its_dead_edge_still_has_a_seat_is_nobodys_copy(tmp_path, above, home, then):
    """Its edge died; who is above that still holds what the edge said, also of a process that is no more."""

    async def main():
        world = World(tmp_path, DATA, above=members(above, home))
        world.start_all()
        await world.gathered()
        loop = asyncio.get_running_loop()
        world.kill(home)
        ends = loop.time() + GRACE
        await world.until(lambda: seated(world, then))
        world.kill("client-1")
        await asyncio.sleep(0.1)
        assert not seated(world, then)
        world.start("client-1")
        await world.until(lambda: seated(world, then))
        assert loop.time() < ends, "or this shows nothing"
        await asyncio.sleep(20.0)
        assert len(seated(world, then)) == 1 and alerts(world) == []

    run(main())


def test_a_letter_about_a_move_that_comes_late_cuts_nobody(tmp_path):
    """It moved from edge-a and back, and edge-a hears of the first move only now."""

    async def main():
        world = World(tmp_path, DATA, above=members(EDGES, "edge-a"))
        world.start_all()
        await world.gathered()
        host = world.processes["edge-a"].node.host
        await world.until(lambda: len(seated(world, "edge-a")) == 1)
        host.moved_away("client-1", host.seats()["client-1"], "edge-b")
        host.moved_away("client-1")  # an earlier version names no session
        await asyncio.sleep(20.0)
        assert len(seated(world, "edge-a")) == 1 and alerts(world) == []

    run(main())


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors")
def test_two_processes_from_one_folder(tmp_path):
    with Nursery() as nursery, Federation(tmp_path, JOB, edges=0, nursery=nursery) as fed:
        fed.start_all()
        fed.until(lambda: fed.joined() >= {*fed.clients}, what="everybody to join")
        shutil.copytree(fed.place("client-1"), fed.place("client-9"))
        file = fed.place("client-9") / "client.toml"
        file.write_text(file.read_text().replace(str(fed.place("client-1")), str(fed.place("client-9"))))
        fed.set("client-9", predict="")
        fed.names.append("client-9")
        fed.start("client-9")

        def told():
            with fed.store() as store:
                return [row["node"] for row in store.logs("") if "second session" in row["text"]]

        fed.until(told, 20.0, what="the second to be told of")
        run = fed.submit()
        fed.finished(run)
        assert told() == ["client-1"], "no turns are taken"
        assert not fed.dead("client-1") and not fed.dead("client-9")
        assert "was its folder copied? It is asked again in" in fed.logs(1000)
