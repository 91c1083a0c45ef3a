"""What compression keeps back is exactly what the server lacks, whatever happens to messages on the way."""

from collections import defaultdict
from contextlib import suppress

import numpy as np
import pytest

from atoll.core.errors import QuorumError
from atoll.core.message import Contribution
from atoll.core.transform import chain
from atoll.job import Job
from atoll.learn.compress import randomk, sign, topk
from atoll.learn.local import Local
from atoll.learn.server import mean
from atoll.run import simulate
from tests.worlds.cases import CLIENTS, chaos, clients
from tests.worlds.test_rounds import EDGES, TREES

WIDE = 6
PARTS = {
    "topk": topk(0.2),
    "topk in 8 bits": topk(0.2, bits=8),
    "topk in 1 bit": topk(0.3, bits=1),
    "randomk": randomk(0.3, bits=4),
    "sign": sign(),
}


class Steps:
    """Every client moves a row of its own at random, and keeps the sum of its moves that were used."""

    def init(self, rng):
        return {"moves": np.zeros((CLIENTS, WIDE))}

    def fit(self, params, data, ctx):
        move = np.zeros((CLIENTS, WIDE))
        move[ctx.client] = ctx.rng.normal(size=WIDE)
        return Contribution({"moves": move}, 1.0, state=move + (0 if ctx.state is None else ctx.state))

    def evaluate(self, params, data, ctx):
        return {"loss": 0.0}


class Watched(Local):
    """Writes down, whenever a model is evaluated, what each client believes that it has put into it."""

    def __post_init__(self):
        super().__post_init__()
        self.seen = defaultdict(dict)

    def _evaluate(self, task):
        model = self.seen[task.params["moves"].tobytes()]
        for client, used in zip(task.clients, task.used, strict=True):
            held = self._held(client, used)
            model[client] = 0.0 if held.learner is None else held.learner - held.chain[1]["moves"]
        return super()._evaluate(task)


class Careless(Watched):
    """A client that takes every contribution for used."""

    def _held(self, client, used=-1):
        return super()._held(client, self.staged.get(client, (used,))[0])


def gaps(part, seed, shape, monkeypatch, local=Watched):
    """By how much models differ from what all their clients believe to be in them."""
    made = []
    monkeypatch.setattr(
        "atoll.run.Local", lambda *args, **more: made.append(local(*args, **more)) or made[-1]
    )
    names = ["coordinator", *(f"client{i}" for i in range(CLIENTS)), *EDGES[shape]]
    job = Job(Steps(), chain(mean(over=1), part), rounds=8, topology=TREES[shape], deadline=15.0)
    with suppress(QuorumError):  # it ended early: what was seen until then counts
        run = simulate(job, clients(), seed, world=chaos(seed, names))
        assert not [why for r in run.history for why in r.get("failed", {}).values() if "Error" in why]
    whole = {m: believed for m, believed in made[0].seen.items() if len(believed) == CLIENTS}
    return [
        np.abs(sum(believed.values()) - np.frombuffer(m).reshape(CLIENTS, WIDE)).max()
        for m, believed in whole.items()
    ]


@pytest.mark.parametrize("shape", TREES)
@pytest.mark.parametrize("name", PARTS)
def test_in_chaos_the_model_is_what_was_made_less_what_is_kept(name, shape, monkeypatch):
    found = [gap for seed in range(8) for gap in gaps(PARTS[name], seed, shape, monkeypatch)]
    assert len(found) > 20
    assert max(found) < 1e-9


def test_control_a_client_that_takes_everything_for_used_goes_wrong(monkeypatch):
    assert max(gap for seed in range(8) for gap in gaps(topk(0.2), seed, "flat", monkeypatch, Careless)) > 0.1
