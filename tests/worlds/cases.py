"""What the tests of worlds share: clients whose every contribution can be counted, and worlds that
go wrong in each way, or in all ways at once, as a seed says.
"""

from __future__ import annotations

import numpy as np

from atoll.core.message import Contribution
from atoll.simulate.faults import Crash, Partition, World, exponential, lognormal, uniform

CLIENTS = 8


class Rows(list):
    """A list of clients that has test rows too, so that sites evaluate."""

    def __init__(self, clients):
        super().__init__(clients)
        self.tests = list(clients)


class Tally:
    """Counts how often each client's contribution came into the model, on both sides.

    A client keeps how many of its contributions were used, and refuses to go on where that is not
    what the model says.
    """

    def init(self, rng):
        return {"times": np.zeros(CLIENTS, np.float32)}

    def fit(self, params, data, ctx):
        used = ctx.state or 0
        assert used == params["times"][ctx.client], (
            f"keeps {used}, the model has {params['times'][ctx.client]}"
        )
        return Contribution({"times": np.eye(CLIENTS, dtype=np.float32)[ctx.client]}, 1.0, state=used + 1)

    def evaluate(self, params, data, ctx):
        used = ctx.state or 0
        return {"behind": float(params["times"][ctx.client] - used)}


class Drift:
    """A step that depends on client, round, state and every bit of the model: any slip shows."""

    def init(self, rng):
        return {"w": rng.normal(size=(5, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}

    def fit(self, params, data, ctx):
        noise = ctx.rng.normal(size=(5, 3))
        own = 0.0 if ctx.state is None else ctx.state
        step = {
            "w": 0.1 * np.tanh(noise * params["w"] + data[0] + own),
            "b": 0.01 * params["w"].sum(0) - 0.1 * params["b"],
        }
        weight = 1.0 + ctx.client % 3
        return Contribution(
            {n: a.astype(np.float32) for n, a in step.items()},
            weight,
            {"loss": float(noise.sum())},
            state=float(noise[0, 0]),
        )

    def evaluate(self, params, data, ctx):
        return {"loss": float(np.square(params["w"]).mean()), "own": ctx.state or 0.0}


def clients():
    return Rows([np.linspace(i, i + 1, 4) for i in range(CLIENTS)])


SLOW = {"compute": lognormal(0.0, 1.0), "jitter": 0.1}
WIDE = uniform(0.0, 2.0)  # packets overtake each other
HALF = frozenset({"coordinator", "client0", "client1", "client2"})

# In these worlds everybody answers in the end, so the model is that of the undisturbed run.
SAME = {
    "slow": World(**SLOW),
    "reordered": World(**SLOW, delay=WIDE),
    "lossy": World(**SLOW, delay=WIDE, loss=0.3, resend=2.5),
    "repeated": World(**SLOW, delay=WIDE, repeat=0.5),
    "lossy and repeated": World(**SLOW, delay=exponential(0.5), loss=0.3, repeat=0.3),
    "cut in two": World(
        **SLOW, delay=WIDE, partitions=(Partition(HALF, 1.0, 9.0), Partition(HALF, 12.0, 20.0))
    ),
    "coordinator restarts": World(
        **SLOW,
        delay=WIDE,
        loss=0.1,
        crashes=tuple(Crash("coordinator", at, 0.7) for at in (0.0, 1.5, 3.1, 3.5, 10.0, 22.2, 22.3)),
    ),
}


def chaos(seed, names):
    """A world where everything may go wrong at once, its kinds and times drawn from the seed."""
    rng = np.random.default_rng(seed)
    crashes = tuple(
        Crash(str(rng.choice(names)), float(rng.uniform(0, 40)), float(rng.exponential(2.0)))
        for _ in range(rng.integers(6))
    )
    cuts = tuple(
        Partition(
            frozenset(map(str, rng.choice(names, 3, replace=False))),
            start,
            start + float(rng.exponential(3.0)),
        )
        for start in map(float, rng.uniform(0, 40, rng.integers(3)))
    )
    shares = {name: float(rng.choice([0.0, 0.1, 0.3])) for name in ("loss", "repeat", "dropout")}
    return World(
        **SLOW, delay=WIDE, crashes=crashes, partitions=cuts, resend=float(rng.uniform(0.3, 3.0)), **shares
    )


def last_records(history):
    """One record a round: a restart takes back those after its checkpoint and writes them again."""
    return list({record["round"]: record for record in history}.values())
