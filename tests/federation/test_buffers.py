"""Secure sums of buffers through real journals, gates and sockets: whoever dies goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.federation.faults import DATA, TABLE, expected, leaves, troubled
from tests.federation.world import World, run

SECURE = {"name": "secure_sum", "largest": 4096.0}
ALL = {**TABLE, "algorithm": {"name": "fedbuff", "size": 3}, "exchange": SECURE}  # so no net changes a buffer
SOME = {**TABLE, "algorithm": {"name": "fedbuff", "size": 2}, "exchange": SECURE}


@pytest.mark.parametrize("edges", [0, 2])
def test_a_federation_gives_the_bytes_of_the_simulation(tmp_path: Path, edges: int) -> None:
    async def main():
        world = World(tmp_path, DATA, edges=edges)
        world.start_all()
        await world.gathered()
        run_id = world.submit(ALL, 5)
        record = await world.finished(run_id)
        assert record["state"] == "done", record
        return world.params(run_id)

    assert leaves(run(main())) == expected(ALL, 5)


@pytest.mark.parametrize("seed", range(8))
def test_members_die_and_part_and_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    assert run(troubled(tmp_path, seed, table=SOME)) == []
