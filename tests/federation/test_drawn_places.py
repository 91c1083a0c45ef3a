"""Secure sums of drawn places through real journals, gates and sockets: every member draws the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.federation.faults import TABLE, expected, troubled, undisturbed
from tests.federation.processes import JOB, Federation, Nursery
from tests.federation.test_processes import gathered, whole
from tests.federation.world import run

RANDOMK = {"name": "small", "up": {"name": "randomk", "fraction": 0.2}}
FEW = {**TABLE, "algorithm": RANDOMK, "exchange": {"name": "secure_sum", "largest": 4096.0}}


@pytest.mark.parametrize("edges", [0, 2])
def test_a_federation_gives_the_bytes_of_the_simulation(tmp_path: Path, edges: int) -> None:
    assert run(undisturbed(tmp_path, FEW, 5, edges)) == expected(FEW, 5)


@pytest.mark.parametrize("seed", range(4))
def test_members_die_and_part_and_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    assert run(troubled(tmp_path, seed, table=FEW)) == []


@pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
def test_over_sockets_one_of_each_role_dies(tmp_path: Path) -> None:
    job = {**JOB, "algorithm": RANDOMK, "exchange": FEW["exchange"]}
    with Nursery() as nursery, Federation(tmp_path, job, nursery=nursery) as fed:
        places = {
            "coordinator": "drive.counted.after:4:kill",
            "edge-a": "drive.counted.after:3:kill",
            "client-2": "uplink.kept.after:2:kill",
        }
        for name in fed.names:
            fed.start(name, failpoints=places.get(name, ""))
        gathered(fed)
        run_id = fed.submit()
        fed.outlived(places)
        fed.finished(run_id)
        fed.stop(*fed.names)
        whole(fed, run_id)
