"""Clients that move between edges while rounds run, by seeds: each counts once.

python -m tests.worlds.moves [SEEDS]      so many of them; `make nightly` plays ten thousand
"""

from __future__ import annotations

import sys

import numpy as np

from atoll.core.rng import Rng
from atoll.core.transform import chain
from atoll.learn import rounds
from atoll.learn.algorithm import as_algorithm, fedavg
from atoll.learn.local import Local
from atoll.learn.select import Everyone
from atoll.learn.server import mean
from atoll.simulate.faults import Crash, World
from atoll.simulate.world import Simulation
from tests.worlds.cases import CLIENTS, SLOW, WIDE, Drift, Tally, clients

ALGORITHM = fedavg()
FIRST = {"edge a": list(range(4)), "edge b": list(range(4, CLIENTS))}


class Places(dict):
    """Who stands where; not a plain dict, so that everybody looks again."""


def federation(world, moves, *, learner=None, algorithm=ALGORITHM, rehome=0.0, seed=3, raw=True, total=6):
    """Run rounds over two edges whose clients move: `moves` are (time, client, from, to)."""
    learner = learner or Drift()
    notes = []
    sim = Simulation(world, Rng.of(seed), on_note=lambda peer, record: notes.append(record))
    local = Local(
        learner, algorithm, dict(enumerate(clients())), dict(enumerate(clients())), Rng.of(seed), raw=raw
    )
    top = Places({edge: list(who) for edge, who in FIRST.items()})
    below = {edge: Places({f"client{c}": [c] for c in who}) for edge, who in FIRST.items()}
    for c in range(CLIENTS):
        sim.add(f"client{c}", answers=rounds.client(local), device=True)
    for edge in FIRST:
        make = (algorithm.protocol and algorithm.protocol.edge) or rounds.edge
        sim.add(edge, answers=make(below[edge], algorithm))

    async def mover(p):
        for when, client, old, new in sorted(moves):
            await p.sleep(max(when - p.now, 0.0))
            if old is not None:
                top[old].remove(client)
                del below[old][f"client{client}"]
            if new is not None:
                top[new].append(client)
                below[new][f"client{client}"] = [client]

    plan = rounds.Plan(learner, algorithm, top, total, Everyone(), roster=range(CLIENTS), rehome=rehome)
    one = algorithm.protocol.coordinator if algorithm.protocol else rounds.coordinator
    sim.add("mover", main=mover)
    sim.add("coordinator", main=lambda p: one(p, plan))
    return sim.run("coordinator"), notes


def wandering(seed):
    """Vehicles that go from edge to edge at any time, also while they train or answer; edges die meanwhile.

    What broke: the learner itself checks that what it keeps is what the model says.
    """
    luck = np.random.default_rng(seed)
    where = {c: edge for edge, who in FIRST.items() for c in who}
    moves, when = [], 0.0
    for _ in range(12):
        when += float(luck.exponential(1.0))
        c = int(luck.integers(CLIENTS))
        new = "edge b" if where[c] == "edge a" else "edge a"
        moves.append((when, c, where[c], new))
        where[c] = new
    crashes = tuple(
        Crash(edge, float(luck.uniform(0, 12)), float(luck.exponential(1.0))) for edge in ("edge a", "edge b")
    )
    world = World(**SLOW, delay=WIDE, loss=0.1, crashes=crashes)
    done, notes = federation(
        world, moves, learner=Tally(), algorithm=as_algorithm(chain(mean(over=1))), total=8, seed=seed
    )
    wrong = [why for r in notes for why in r.get("failed", {}).values() if "Error" in why]
    counted = sum(record["clients"] for record in notes if record["round"])
    if done.params["times"].sum() != counted:
        wrong.append(f"{counted} counted, {done.params['times'].sum():g} in the model")
    if (most := done.params["times"].max()) > done.round:
        wrong.append(f"one counted {most:g} times in {done.round} rounds")
    if any(site["behind"] != 0 for r in notes for site in r.get("sites", {}).values()):
        wrong.append("a client keeps another count than the model")
    return wrong


def main(words):
    """Play them and say what is wrong."""
    seeds = int(words[0]) if words else 200
    found = {seed: wrong for seed in range(seeds) if (wrong := wandering(seed))}
    sys.stdout.write(f"{seeds} worlds of moving clients, {len(found)} wrong: {found}\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
