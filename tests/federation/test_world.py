"""Whole federations in virtual time."""

import pytest

from tests.federation.faults import DATA, TABLE, TABLES, expected, leaves, troubled
from tests.federation.world import World, run


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

    assert leaves(run(main())) == expected(TABLE, 5)


@pytest.mark.parametrize("seed", range(20))
def test_members_die_and_part_and_the_model_is_the_same(tmp_path, seed):
    table = TABLES[seed % len(TABLES)]
    _, found = run(troubled(tmp_path, seed, table=table))
    assert found == expected(table, seed)
