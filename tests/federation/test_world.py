"""Whole federations in virtual time."""

import pytest

import atoll as at
from atoll.control.config import parse
from tests.federation.world import World, run

DATA = at.partition(at.load_data("wine"), clients=4, by=at.iid(), seed=1, holdout=0.25)
TABLE = {"name": "wine", "rounds": 3, "data": {"name": "rows"}, "learner": {"name": "softmax", "lr": 0.1}}


def expected(table, seed):
    job = parse({**table, "data": {"name": "wine"}}).job
    return at.simulate(job, DATA, seed=seed).params


@pytest.mark.parametrize("edges", [0, 2])
def test_a_federation_gives_the_bytes_of_the_simulation(tmp_path, edges):
    async def main():
        world = World(tmp_path, DATA, edges=edges)
        world.start_all()
        await world.gathered()
        run_id = world.submit(TABLE, 5)
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        return world.params(run_id)

    found = run(main())
    from safetensors.numpy import load

    params = load(found)
    want = expected(TABLE, 5)
    assert {n: v.tobytes() for n, v in params.items()} == {n: v.tobytes() for n, v in want.items()}
