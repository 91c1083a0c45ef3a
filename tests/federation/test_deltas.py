"""What a model has changed by travels in its place, to members that hold the one before."""

import pytest

from atoll.transport.deltas import Deltas
from tests.federation.faults import DATA, TABLE, expected, leaves
from tests.federation.world import World, run

WIDE = {"name": "mlp", "hidden": [256], "lr": 0.1}
THIN = {"name": "small", "up": {"name": "topk", "fraction": 0.1}, "down": {"name": "thin", "fraction": 0.02}}


def played(folder, table, edges):
    """The params, and the bytes that went to members."""

    async def main():
        world = World(folder, DATA, edges=edges)
        world.start_all()
        await world.gathered()
        run_id = world.submit(table, 5)
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        hosts = [world.processes[name].node.host for name in ("coordinator", *world.edges)]
        down = sum(said["down"] for host in hosts for said in host.asks.live.values())
        return leaves(world.params(run_id)), down

    return run(main())


@pytest.mark.parametrize("edges", [0, 2])
def test_thin_steps_are_sent_as_deltas_and_give_the_same_model(tmp_path, edges, monkeypatch):
    table = {**TABLE, "learner": WIDE, "algorithm": THIN, "rounds": 6}
    params, down = played(tmp_path / "deltas", table, edges)
    assert params == expected(table, 5)
    with monkeypatch.context() as patched:

        async def whole(*_):
            return None

        patched.setattr(Deltas, "path", whole)
        same, more = played(tmp_path / "whole", table, edges)
    assert same == params
    assert down < 0.5 * more


def test_models_that_move_everywhere_are_sent_whole(tmp_path, monkeypatch):
    """Packing what is no smaller would cost more than it saves."""

    async def asked(*_):
        raise AssertionError("a delta was made")

    monkeypatch.setattr(Deltas, "path", asked)
    table = {**TABLE, "learner": WIDE, "rounds": 3}
    assert played(tmp_path, table, 0)[0] == expected(table, 5)
