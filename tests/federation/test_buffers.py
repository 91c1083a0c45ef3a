"""Secure sums of buffers through real journals, gates and sockets: whoever dies goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation import invariants
from tests.federation.faults import TABLE, Scene, expected, troubled, undisturbed
from tests.federation.processes import JOB, Federation, Nursery
from tests.federation.test_processes import gathered
from tests.federation.world import run

SECURE = {"name": "secure_sum", "largest": 4096.0}
ALL = {**TABLE, "algorithm": {"name": "fedbuff", "size": 3}, "exchange": SECURE}  # so no net changes a buffer
SOME = {**TABLE, "algorithm": {"name": "fedbuff", "size": 2}, "exchange": SECURE}
processes = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)


def others(wrong: list[str]) -> list[str]:
    """Who was out of reach is asked again, and the record says so: that is no other sum."""
    return [text for text in wrong if not text.startswith("I1: somebody was left out: ['out of reach")]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.mark.parametrize("edges", [0, 2])
def test_a_federation_gives_the_bytes_of_the_simulation(tmp_path: Path, edges: int) -> None:
    assert run(undisturbed(tmp_path, ALL, 5, edges)) == expected(ALL, 5)


@pytest.mark.parametrize("seed", range(4))
def test_members_die_and_part_and_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    assert run(troubled(tmp_path, seed, table=SOME)) == []


@pytest.mark.parametrize("seed", range(8, 12))
def test_whoever_dies_a_buffer_of_all_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(Scene, "byte_law", True)
    wrong = run(troubled(tmp_path, seed, table=ALL))
    assert others(wrong) == []


@processes
def test_over_sockets_one_of_each_role_dies_in_the_midst(tmp_path: Path, nursery: Nursery) -> None:
    """A client dies with its update on disk, another with its vector: neither trains or masks anew."""
    job = {**JOB, "algorithm": {"name": "fedbuff", "size": 3}, "exchange": SECURE}
    with Federation(tmp_path, job, nursery=nursery, transport="grpc") as fed:
        places = {
            "coordinator": "drive.counted.after:6:kill",
            "edge-a": "drive.counted.after:4:kill",
            "client-1": "uplink.kept.after:1:kill",
            "client-2": "uplink.kept.after:5:kill",
        }
        for name in fed.names:
            fed.start(name, failpoints=places.get(name, ""))
        gathered(fed)
        run_id = fed.submit()
        fed.outlived(places)
        fed.finished(run_id)
        fed.stop(*fed.names)
        with fed.store() as store:
            wrong = invariants.broken(store, run_id, expected=fed.expected(5, job), rounds=2)
        assert others(wrong) == []
