"""Whole federations in virtual time."""

import asyncio

import pytest

from tests.federation.faults import DATA, DEEP, TABLE, expected, leaves, troubled, undisturbed
from tests.federation.world import Link, World, run

FOUND = (200, 1026, 1176, 2417, 3113, 5709)  # seeds that broke something once, beyond the first two hundred


@pytest.mark.parametrize("edges", [0, 2])
def test_a_federation_gives_the_bytes_of_the_simulation(tmp_path, edges):
    assert run(undisturbed(tmp_path, TABLE, 5, edges)) == expected(TABLE, 5)


@pytest.mark.parametrize("block", range(20))
def test_members_die_and_part_and_nothing_is_lost(tmp_path, block):
    """Ten worlds; `python -m bench faults --only worlds --worlds 10000` plays as many as are wanted."""
    seeds = range(10 * block, 10 * block + 10)
    assert {seed: wrong for seed in seeds if (wrong := run(troubled(tmp_path / str(seed), seed)))} == {}


@pytest.mark.parametrize("seed", range(6))
def test_the_same_upload_ten_times_at_once_and_to_others_counts_once(tmp_path, seed):
    assert run(troubled(tmp_path, seed, crowd=10)) == []


@pytest.mark.parametrize("seed", FOUND)
def test_what_broke_once_holds(tmp_path, seed):
    assert run(troubled(tmp_path, seed)) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_edges_train_rounds_of_their_own(tmp_path, asynchronous):
    algorithm = {"name": "hierarchical", "edge_rounds": 2, "asynchronous": asynchronous}

    async def main():
        world = World(tmp_path, DATA, edges=2)
        world.start_all()
        await world.gathered()
        run_id = world.submit({**TABLE, "algorithm": algorithm}, 5)
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        return world.store.history(run_id), leaves(world.params(run_id))

    history, found = run(main())
    assert history[-1]["train"]["edge_rounds"] == 2
    if not asynchronous:  # else the order in which edges come in is the net's
        tree = {"name": "tree", "fanout": [2]}
        assert found == expected({**TABLE, "algorithm": algorithm, "topology": tree}, 5)


def test_an_edge_that_is_cut_off_goes_on(tmp_path):
    algorithm = {"name": "hierarchical", "edge_rounds": 2, "offline": "continue", "extra": 6}

    async def main():
        world = World(tmp_path, DATA, edges=2, latency=0.2)
        world.start_all()
        await world.gathered()
        run_id = world.submit({**TABLE, "algorithm": algorithm}, 5)
        await world.until(lambda: len(world.store.history(run_id)) > 1)
        world.net.part("coordinator", "edge-a")
        await asyncio.sleep(4.0)
        world.net.partitions.clear()
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        return world.store.history(run_id)

    history = run(main())
    assert max(r["train"]["edge_rounds"] for r in history[1:]) > 2


def test_after_a_restart_clients_two_tiers_below_are_asked_by_the_edge_they_were_reached_through(tmp_path):
    async def main():
        world = World(tmp_path, DATA, above=DEEP)
        world.start_all()
        await world.gathered()
        for name in world.processes:
            world.kill(name)
        world.start("coordinator")
        await world.until(world.alive)
        fleet = world.processes["coordinator"].node.host.fleet
        ways = {name: seen.via for name, seen in fleet.clients.items()}
        assert ways == dict.fromkeys(world.clients, "edge-a") and not fleet.reachable()

    run(main())


def test_after_a_restart_everybody_is_seen_again(tmp_path):
    async def main():
        world = World(tmp_path, DATA, edges=2)
        world.start_all()
        await world.gathered()
        everybody = len(world.edges) + len(world.clients)
        await world.until(lambda: len(world.online()) == everybody)
        for name in world.processes:
            world.kill(name)
        world.start_all()
        await world.until(lambda: world.alive() and len(world.online()) == everybody)

    run(main())


@pytest.mark.parametrize("edges", [0, 2])
@pytest.mark.parametrize("algorithm", [{"up": "int8"}, {"up": {"name": "topk", "fraction": 0.1, "bits": 8}}])
def test_compact_updates_give_the_bytes_of_the_simulation_and_few_are_sent(
    tmp_path, monkeypatch, edges, algorithm
):
    """What clients upload is counted frame by frame, plain values, hashes and metrics included."""
    table = {**TABLE, "learner": {"name": "mlp", "hidden": [256], "lr": 0.1}}
    sent: dict[str, int] = {}

    def counted(link, upload, frames, start):
        async def each():
            async for frame in frames:
                sent[name] = sent.get(name, 0) + len(frame)
                yield frame

        name = link.mine.name
        return inner(link, upload, each(), start)

    inner = Link.upload
    monkeypatch.setattr(Link, "upload", counted)

    async def main(place, this):
        world = World(place, DATA, edges=edges)
        world.net.plain = True  # uploads are counted
        world.start_all()
        await world.gathered()
        run_id = world.submit(this, 5)
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        found = sum(size for name, size in sent.items() if name.startswith("client-"))
        sent.clear()
        return leaves(world.params(run_id)), found

    small = {**table, "algorithm": {"name": "small", **algorithm}}
    found, few = run(main(tmp_path / "small", small))
    assert found == expected(small, 5)
    _, many = run(main(tmp_path / "plain", table))
    assert 0 < few < 0.45 * many
