"""Clients whose batteries, links and machines have weather: who holds back is not asked, and does not work.

One number is one world: real coordinator, edges and clients in virtual time. What sensors say changes by
dice, edges and clients die and part meanwhile. Two laws, each looked at from outside of what keeps it:

- nobody is asked for anything once those who ask have heard that it holds back;
- nobody works against its policy for longer than it looks away, and rests as long as it should.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from atoll.control.engine.host import Host
from atoll.control.engine.power import Seen
from atoll.control.engine.workplace import Here
from atoll.control.settings import Power
from tests.federation.faults import DATA, SHAPES, TABLE
from tests.federation.world import PROCESS, World

EVERY = 0.5  # seconds between two looks
CALM = 40.0  # seconds of weather, then all is well
JOBS: tuple[Mapping[str, Any], ...] = (
    TABLE,
    {**TABLE, "cohort": {"name": "sample", "count": 2}},
    {**TABLE, "cohort": {"name": "power_of_choice", "count": 1, "candidates": 2}},
    {**TABLE, "algorithm": "scaffold"},
    {**TABLE, "algorithm": {"name": "fedbuff", "size": 2}},
    {**TABLE, "algorithm": {"name": "hierarchical", "edge_rounds": 2}},
    {**TABLE, "exchange": {"name": "secure_sum", "largest": 65536.0}},
)
LAZY = {**TABLE, "algorithm": {"name": "hierarchical", "edge_rounds": 2, "asynchronous": True, "size": 1}}
FINE = Seen(mains=True, battery=1.0, temperature=30.0, metered=False)


@dataclass
class Weather:
    """What one client's sensors say: `at[i]` is when `says[i]` begins to be so."""

    at: list[float]
    says: list[Seen]

    @classmethod
    def of(cls, dice: np.random.Generator) -> Weather:
        at, says, now = [0.0], [FINE], 0.0
        while (now := now + float(dice.exponential(6.0))) < CALM:
            at.append(now)
            says.append(
                Seen(
                    mains=bool(dice.random() < 0.5),
                    battery=float(dice.uniform(0.0, 1.0)),
                    temperature=float(dice.uniform(30.0, 90.0)),
                    metered=bool(dice.random() < 0.3),
                )
            )
        return cls([*at, CALM], [*says, FINE])

    def then(self, now: float) -> Seen:
        return self.says[int(np.searchsorted(self.at, now, "right")) - 1]

    def __call__(self) -> Seen:
        return self.then(asyncio.get_running_loop().time())

    def energy(self) -> dict[Path, float]:
        return {}

    def drain(self) -> float | None:
        return None


def allows(power: Power, seen: Seen) -> bool:
    """What the settings mean, said once more and plainly; of links that cost nothing may be used."""
    assert seen.battery is not None and seen.temperature is not None
    return (
        (seen.mains or not power.mains)
        and (seen.mains or seen.battery >= power.battery)
        and (power.temperature is None or seen.temperature <= power.temperature)
        and (power.metered_bytes is None or not seen.metered)
    )


@dataclass
class Seer:
    """What happened: `heard[process, client]`: whether it held back by the last word that came there; `work`:
    begin and end by client and life; `wrong`: what must not be.
    """

    world: World
    weather: dict[str, Weather]
    heard: dict[tuple[int, str], str] = field(default_factory=dict)
    asked: set[tuple[int, str, str]] = field(default_factory=set)
    work: dict[str, list[tuple[Any, float, float]]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    notices: int = 0
    state: str = ""

    def hears(self, host: Any, name: str, about: Any) -> None:
        power = about.get("power") if isinstance(about, Mapping) else None
        held = str(power.get("held", "")) if isinstance(power, Mapping) else ""
        self.notices += bool(held)
        self.heard[id(host), name] = held

    def asks(self, host: Any, peer: str, head: Mapping[str, Any]) -> None:
        ask = str(head["ask"])
        held = self.heard.get((id(host), peer), "")
        if held.startswith("it rests") and head["task"]["want"] == "note":  # a step of a sum it is in
            return
        if held and (id(host), peer, ask) not in self.asked:  # else it is at it, and said so
            self.wrong.append(f"{peer} was asked for {ask}, and holds back: {held}")
        self.asked.add((id(host), peer, ask))

    def works(self, name: str, process: Any, began: float, ended: float) -> None:
        power, weather = self.world.power[name], self.weather[name]
        against = 0.0
        for start, end in pairwise([began, *(t for t in weather.at if began < t < ended), ended]):
            against = 0.0 if allows(power, weather.then(start)) else against + end - start
            if against > EVERY + 0.01:
                self.wrong.append(f"{name} worked {against:.2f} s against its policy")
        for other, before, after in self.work.get(name, [])[-1:]:
            rest = (after - before) * (1 / power.duty - 1)
            if other is process and began < after + rest - 0.01:
                self.wrong.append(f"{name} began at {began:.2f}, {after + rest - began:.2f} s too early")
        self.work.setdefault(name, []).append((process, began, ended))


async def weathered(folder: Path, seed: int, *, faults: bool = True) -> tuple[list[str], Seer]:
    """A run in the weather of this seed; what broke, and what was seen."""
    dice = np.random.default_rng([seed, 11])
    shape = SHAPES[int(dice.integers(len(SHAPES)))]
    world = World(folder, DATA, above=shape, seed=seed, latency=float(dice.choice([0.005, 0.05])))
    world.patience = {"patience": 30.0, "edge_patience": 10.0}
    seer = Seer(world, {name: Weather.of(dice) for name in world.clients})
    world.sensors = dict(seer.weather)
    for name in world.clients:
        world.power[name] = Power(
            mains=bool(dice.random() < 0.3),
            battery=float(dice.choice([0.0, 0.3])),
            temperature=[None, 70.0][int(dice.integers(2))],
            metered_bytes=[None, 0][int(dice.integers(2))],
            duty=float(dice.choice([1.0, 0.5])),
            every=EVERY,
        )
    world.workplace = _slow(seer, np.random.default_rng([seed, 12]))
    with _watched(seer):
        world.start_all()
        await world.gathered()
        table = JOBS[seed % len(JOBS)]
        if table is JOBS[5] and seed // len(JOBS) % 2:
            table = LAZY
        run = world.submit({**table, "rounds": 4}, seed % 3)
        trouble = asyncio.ensure_future(_trouble(world, dice) if faults else asyncio.sleep(0))
        record = await world.finished(run, 3000)
        if trouble.done() and trouble.exception() is not None:
            raise trouble.exception()  # type: ignore[misc]
        trouble.cancel()
    seer.state = record["state"]
    weary = table is JOBS[6] and "contributed" in record["reason"]  # what a hidden round lost is lost
    if record["state"] != "done" and not weary:
        seer.wrong.append(f"the run {record['state']}: {record['reason']}")
    return seer.wrong, seer


async def _trouble(world: World, dice: np.random.Generator) -> None:
    """Edges die and come back, links part and heal: clients go to another parent and home again."""
    for _ in range(int(dice.integers(0, 5))):
        await asyncio.sleep(float(dice.exponential(4.0)))
        victim = str(dice.choice([*world.edges, *world.clients, "coordinator"]))
        if dice.random() < 0.5:
            world.kill(victim)
            await asyncio.sleep(float(dice.exponential(1.0)))
            world.start(victim)
        else:
            world.net.part(victim, str(dice.choice([n for n in world.processes if n != victim])))
            await asyncio.sleep(float(dice.exponential(3.0)))
            world.net.partitions.clear()
    await asyncio.sleep(1e6)


def _slow(seer: Seer, dice: np.random.Generator) -> Any:
    """A workplace whose work takes time."""

    class Slow(Here):
        async def answer(self, head: Any, model: Any, to: Any, **more: Any) -> None:
            process, clock = PROCESS.get(), asyncio.get_running_loop().time
            assert process is not None
            began = clock()
            if head["task"]["want"] == "note":
                await super().answer(head, model, to, **more)
                return
            try:
                await asyncio.sleep(float(dice.exponential(2.0)))
                await super().answer(head, model, to, **more)
            finally:
                seer.works(process.name, process, began, clock())

    return Slow


def _watched(seer: Seer) -> Any:
    """Every word that comes to a host and every ask that leaves one is seen."""
    letter, present, send = Host.letter, Host.present, Host._send

    async def lettered(self: Any, name: str, kind: str, head: Mapping[str, Any]) -> None:
        if kind == "power":
            seer.hears(self, name, {"power": head})
        if kind == "below" and self.fleet.children.get(name) == "edge":
            for client, about in head.get("clients", {}).items():
                seer.hears(self, client, about)
        await letter(self, name, kind, head)

    async def came(self: Any, name: str) -> None:
        about = self._admitted.get(name, {})
        seer.asked |= {(id(self), name, ask) for ask in about.get("busy", ())}
        if self.roles[name] == "client":
            seer.hears(self, name, about)
        for client, its in about.get("below", {}).items():
            seer.hears(self, client, its)
        await present(self, name)

    def sent(self: Any, name: str, kind: str, head: Mapping[str, Any], along: str = "") -> None:
        if kind == "ask":
            seer.asks(self, name, head)
        send(self, name, kind, head, along)

    return patch.multiple(Host, letter=lettered, present=came, _send=sent)
