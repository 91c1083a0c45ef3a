"""Faults by dice: who dies when and comes back, which links part and heal, what the net loses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from safetensors.numpy import load

import atoll as at
from atoll.control.config import parse
from tests.federation.world import World

DATA = at.partition(at.load_data("wine"), clients=4, by=at.iid(), seed=1, holdout=0.25)
TABLE = {"name": "wine", "rounds": 4, "data": {"name": "rows"}, "learner": {"name": "softmax", "lr": 0.1}}
TABLES = [
    TABLE,
    {**TABLE, "algorithm": {"name": "scaffold"}},
    {**TABLE, "algorithm": {"name": "fedadam"}, "cohort": {"name": "sample", "fraction": 0.5}},
]


def expected(table: dict, seed: int) -> dict[str, bytes]:
    """The leaves the same job has in simulation."""
    job = parse({**table, "data": {"name": "wine"}}).job
    return {name: leaf.tobytes() for name, leaf in at.simulate(job, DATA, seed=seed).params.items()}


def leaves(blob: bytes) -> dict[str, bytes]:
    return {name: leaf.tobytes() for name, leaf in load(blob).items()}


async def troubled(
    folder: Path, seed: int, *, table: dict, faults: int = 4
) -> tuple[World, dict[str, bytes]]:
    """A federation whose members die, part and come back by the seed; its model."""
    dice = np.random.default_rng([seed, 7])
    edges = int(dice.integers(0, 3))
    loss = float(dice.choice([0.0, 0.02, 0.1]))
    world = World(
        folder, DATA, edges=edges, seed=seed, latency=float(dice.choice([0.005, 0.05, 0.5])), loss=loss
    )
    world.start_all()
    await world.gathered()
    run = world.submit(table, seed)
    trouble = asyncio.ensure_future(_trouble(world, dice, faults))
    record = await world.finished(run, 3000)
    assert record["state"] == "done", record
    assert not trouble.done() or trouble.exception() is None, trouble.exception()
    trouble.cancel()
    check(world, run, table)
    return world, leaves(world.params(run))


async def _trouble(world: World, dice: np.random.Generator, faults: int) -> None:
    names = ["coordinator", "coordinator", *world.edges, *world.clients]
    for _ in range(faults):
        await asyncio.sleep(float(dice.exponential(world.net.latency * 20)))
        victim = str(dice.choice(names))
        if dice.random() < 0.7:
            world.kill(victim)
            await asyncio.sleep(float(dice.exponential(1.0)))
            world.start(victim)
        else:
            other = str(dice.choice([n for n in world.processes if n != victim]))
            world.net.part(victim, other)
            await asyncio.sleep(float(dice.exponential(3.0)))
            world.net.partitions.clear()


def check(world: World, run: str, table: dict) -> None:
    """What holds after every fault: each round once and in order, an unbroken log, no lost temp files."""
    history = world.store.history(run)
    assert [r["round"] for r in history] == list(range(table["rounds"] + 1)), history
    assert all(r["metrics"]["loss"] > 0 and "sites_failed" not in r for r in history), history
    verdict = world.store.verify()
    assert verdict.ok, verdict
    counted = [
        (e["body"]["scope"], e["body"]["request"], e["node"])
        for e in world.store.events(0, 10**6)
        if e["kind"] == "answered"
    ]
    assert len(counted) == len(set(counted)), "an answer was counted twice"
    versions = [m["version"] for m in world.store.models()]
    assert versions == sorted(set(versions))
