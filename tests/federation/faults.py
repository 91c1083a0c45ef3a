"""Faults by dice: who dies when and comes back, which links part and heal, what the net loses or repeats.

One number is one world: its members and tiers, the job they are given, and all that befalls them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import atoll as at
from atoll.control.config import parse
from atoll.wire import failpoint
from tests.federation import invariants
from tests.federation.invariants import leaves
from tests.federation.world import World

DATA = at.partition(at.load_data("wine"), clients=3, by=at.iid(), seed=1, holdout=0.25)
HUB, A, B = "coordinator", "edge-a", "edge-b"
FLAT = {HUB: "", "client-1": HUB, "client-2": HUB, "client-3": HUB}
ONE = {HUB: "", A: HUB, "client-1": A, "client-2": A, "client-3": A}
TWO = {HUB: "", A: HUB, B: HUB, "client-1": A, "client-2": A, "client-3": B}
DEEP = {HUB: "", A: HUB, B: A, "client-1": B, "client-2": B, "client-3": A}
SHAPES = (FLAT, ONE, TWO, DEEP)
TABLE: Mapping[str, Any] = {
    "name": "wine",
    "rounds": 3,
    "data": {"name": "rows"},
    "learner": {"name": "softmax", "lr": 0.1},
}
HALF = {"name": "sample", "fraction": 0.5}
TABLES: tuple[Mapping[str, Any], ...] = (
    TABLE,
    {**TABLE, "algorithm": "scaffold"},
    {**TABLE, "algorithm": "fedadam", "cohort": HALF},
    {**TABLE, "algorithm": {"name": "ditto", "lam": 0.1}},
    {**TABLE, "algorithm": {"name": "feddyn", "alpha": 0.1}, "cohort": HALF},
    {**TABLE, "algorithm": "fedavgm"},
    {**TABLE, "algorithm": "fednova"},
    {**TABLE, "algorithm": "cyclic"},
    {**TABLE, "algorithm": {"name": "fedbuff", "size": 2}},
    {**TABLE, "algorithm": "fedasync"},
)
ORDERED = ("fedbuff", "fedasync")  # the order in which answers come counts, and the net decides it
PATIENT = (1000.0, 1000.0)  # seconds a client, an edge may be away: nobody here is for as long
STILL = 300.0  # virtual seconds, many times what a troubled run takes
# What no world reaches: it takes no readings in, and is founded before it is played.
PLACES = sorted(name for name in failpoint.NAMES if not name.startswith(("sense.", "private.", "simulate.")))


@dataclass(frozen=True)
class Scene:
    """What one number stands for."""

    seed: int
    table: Mapping[str, Any]
    above: Mapping[str, str]
    latency: float
    loss: float
    twice: float
    patience: tuple[float, float]
    faults: int
    crowd: int = 0

    @property
    def byte_law(self) -> bool:
        """Whether the model must have the bits of the simulation."""
        algorithm = self.table.get("algorithm", "fedavg")
        name = algorithm if isinstance(algorithm, str) else algorithm["name"]
        return name not in ORDERED


def scene(seed: int) -> Scene:
    dice = np.random.default_rng([seed, 7])
    return Scene(
        seed,
        TABLES[seed % len(TABLES)],
        SHAPES[int(dice.integers(len(SHAPES)))],
        latency=float(dice.choice([0.005, 0.05, 0.5])),
        loss=float(dice.choice([0.0, 0.02, 0.1])),
        twice=float(dice.choice([0.0, 0.2])),
        patience=PATIENT if dice.random() < 0.7 else (20.0, 6.0),
        faults=int(dice.integers(2, 6)),
    )


@cache
def _expected(number: int, seed: int) -> dict[str, bytes]:
    job = parse({**TABLES[number], "data": {"name": "wine"}}).job
    return {name: leaf.tobytes() for name, leaf in at.simulate(job, DATA, seed=seed).params.items()}


def expected(table: Mapping[str, Any], seed: int) -> dict[str, bytes]:
    """The leaves the same job has in simulation."""
    if table in TABLES:
        return _expected(TABLES.index(table), seed)
    job = parse({**table, "data": {"name": "wine"}}).job
    return {name: leaf.tobytes() for name, leaf in at.simulate(job, DATA, seed=seed).params.items()}


async def undisturbed(folder: Path, table: Mapping[str, Any], seed: int, edges: int) -> dict[str, bytes]:
    """The bytes of the model of a federation in which nothing happens."""
    world = World(folder, DATA, edges=edges)
    world.start_all()
    await world.gathered()
    run_id = world.submit(table, seed)
    record = await world.finished(run_id)
    assert record["state"] == "done", record
    return leaves(world.params(run_id))


async def troubled(folder: Path, seed: int, **more: Any) -> list[str]:
    """A federation whose members die, part and come back by the seed; the invariants that broke."""
    this = replace(scene(seed), **more)
    dice = np.random.default_rng([seed, 8])
    world = World(
        folder, DATA, above=this.above, seed=seed, latency=this.latency, loss=this.loss, twice=this.twice
    )
    world.net.crowd = this.crowd
    world.patience = {"patience": this.patience[0], "edge_patience": this.patience[1]}
    world.start_all()
    await world.gathered()
    run = world.submit(dict(this.table), seed % 3)
    trouble = asyncio.ensure_future(_trouble(world, dice, this.faults))
    loop = asyncio.get_running_loop()
    began = loop.time()
    record = await world.finished(run, 5000)
    took = loop.time() - began
    if trouble.done() and trouble.exception() is not None:
        raise trouble.exception()
    trouble.cancel()
    if record["state"] != "done":
        return [f"the run {record['state']}: {record['reason']}"]
    world.store.blobs.sweep()
    wanted = expected(this.table, seed % 3) if this.byte_law else None
    rounds = int(this.table["rounds"]) if this.byte_law else None
    wrong = [f"it stood still: {took:.0f} s"] if took > STILL else []
    wrong += invariants.broken(world.store, run, expected=wanted, rounds=rounds, whole=this.byte_law)
    for edge in world.edges:
        if world.alive(edge):
            store = world.processes[edge].node.store
            wrong += [
                f"{edge}: {text}"
                for text in (*invariants.chain(store), *invariants.aggregates(store, withdrawn=True))
            ]
    return wrong


async def _trouble(world: World, dice: np.random.Generator, faults: int) -> None:
    names = [HUB, HUB, *world.edges, *world.clients]
    for _ in range(faults):
        await asyncio.sleep(float(dice.exponential(world.net.latency * 20)))
        victim = str(dice.choice(names))
        kind = dice.random()
        if kind < 0.4:
            world.kill(victim)
            await asyncio.sleep(float(dice.exponential(1.0)))
            world.start(victim)
        elif kind < 0.7:
            world.crash(str(dice.choice(PLACES)), int(dice.integers(1, 4)))
            await asyncio.sleep(float(dice.exponential(2.0)))
            _revive(world)
        else:
            other = str(dice.choice([n for n in world.processes if n != victim]))
            world.net.part(victim, other)
            await asyncio.sleep(float(dice.exponential(3.0)))
            world.net.partitions.clear()
    while True:  # what was armed may still go off
        await asyncio.sleep(1.0)
        _revive(world)


def _revive(world: World) -> None:
    for name, process in list(world.processes.items()):
        if process.dead:
            world.start(name)


__all__ = ["DATA", "SHAPES", "TABLE", "TABLES", "expected", "leaves", "scene", "troubled"]
