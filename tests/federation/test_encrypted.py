"""An encrypted sum through real processes: its steps, its ciphertexts and its pages pass every gate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation.processes import JOB, Federation, Nursery
from tests.federation.test_processes import gathered, sightings, whole

pytest.importorskip("tenseal")

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
SECURE = {
    **JOB,
    "learner": {"name": "mlp", "hidden": [520, 520], "lr": 0.01},  # two pages
    "algorithm": "fedavg",
    "exchange": {"name": "secure_sum", "largest": 4096.0},
}
ENCRYPTED = {**SECURE, "exchange": {"name": "encrypted_sum", "largest": 4096.0, "members": 16}}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def test_an_encrypted_sum_whatever_dies(tmp_path: Path, nursery: Nursery) -> None:
    """Its coordinator, an edge and a client are killed on the way: the model is a secure sum's."""
    with Federation(tmp_path, ENCRYPTED, nursery=nursery) as fed:
        places = {
            "coordinator": "drive.counted.after:4:kill",
            "edge-a": "drive.counted.after:3:kill",
            "client-2": "uplink.kept.after:2:kill",
        }
        for name in fed.names:
            fed.start(name, failpoints=places.get(name, ""))
        gathered(fed)
        run = fed.submit(seed=5)
        alive = set(places)
        while alive:
            died = fed.until(lambda names=alive: [n for n in names if fed.dead(n)], what=f"{alive} to die")
            for name in died:
                fed.start(name)
            alive = alive - set(died)
        fed.finished(run)
        whole(fed, run)
        masked = fed.submit(job=SECURE, seed=5)
        fed.finished(masked)
        kept = [path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.secrets")]
        fed.stop(*fed.names)
        models = [fed.leaves(r) for r in (run, masked)]
    assert models[0] == models[1], "the same integers, and so the same sums"
    assert kept == [0o600] * 3, kept


def test_who_searches_the_servers_finds_no_update(tmp_path: Path, nursery: Nursery) -> None:
    """As in test_processes.py, where the same search finds updates that are summed in the open."""
    assert sightings(tmp_path, nursery, "encrypted_sum", rounds=4) == 0
