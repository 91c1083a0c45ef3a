"""Encrypted sums in bad networks: whoever drops out at whichever step, the sum is that of the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

import atoll as at
from atoll.core.errors import QuorumError
from atoll.learn.encrypted import EncryptedSum
from atoll.simulate.faults import Crash, World, constant
from tests.worlds.test_secure_sums import JOB, SITES, world


@dataclass(frozen=True)
class Seen(EncryptedSum):
    """An encrypted sum beside which the integers are added as they are, by round and client."""

    bare: dict[tuple[int, int], Any] = field(default_factory=dict, compare=False)
    sums: list[tuple[int, int]] = field(default_factory=list, compare=False)

    def _encrypted(self, local, task, step, scale, client, reply):
        rng = local.key.at("encrypted", client, task.round)
        self.bare[task.round, client] = scale.out(reply.update, reply.weight, rng)
        return super()._encrypted(local, task, step, scale, client, reply)

    async def collect(self, p, plan, task, rule, quorum):
        answer, read = await super().collect(p, plan, task, rule, quorum)
        if answer.clients:
            plain = sum(self.bare[task.round, c] for c in answer.clients) & np.uint64((1 << self.plain) - 1)
            assert (answer.partial.sums[0] == plain).all()
            self.sums.append((len(answer.clients), len(task.clients)))
        return answer, read


def play(seed: int) -> list[tuple[int, int]]:
    """The sizes of the sums of one world, each of which was compared with the plain sum."""
    exchange = Seen(32 if seed % 2 else 16, least=2, members=12)
    job = JOB.replace(exchange=exchange, topology=at.tree((3,)) if seed % 3 == 0 else at.flat())
    try:
        at.simulate(job, SITES, seed=seed, world=world(seed))
    except QuorumError:
        assert len(exchange.sums) < 2
    return exchange.sums


@pytest.mark.parametrize("block", range(3))
def test_the_sum_is_the_plain_one_whoever_drops_out(block: int) -> None:
    sums = [pair for seed in range(block * 10, block * 10 + 10) for pair in play(seed)]
    assert len(sums) > 15
    assert any(there < asked for there, asked in sums)
    assert all(there >= 2 for there, _ in sums)


@pytest.mark.parametrize("topology", [at.flat(), at.tree((2,)), at.tree((2, 2))])
def test_the_model_is_that_of_a_secure_sum_over_any_tree(topology) -> None:
    """The integers are the same, and so is what they sum to."""
    job = JOB.replace(topology=topology)
    made = [
        at.simulate(job.replace(exchange=exchange), SITES, seed=3).params.buffer.tobytes()
        for exchange in (at.encrypted_sum(members=10), at.secure_sum())
    ]
    assert made[0] == made[1]


def test_who_is_lost_in_training_costs_no_attempt() -> None:
    """Four of ten: more than a secure sum mends without beginning again."""
    lost = World(compute=constant(10.0), crashes=tuple(Crash(f"client{c}", 5.0, 1e9) for c in range(4)))
    tried = []

    @dataclass(frozen=True)
    class Counted(EncryptedSum):
        def _encrypted(self, local, task, step, scale, client, reply):
            tried.append(step.attempt)
            return super()._encrypted(local, task, step, scale, client, reply)

    run = at.simulate(JOB.replace(rounds=1, exchange=Counted(members=10)), SITES, seed=3, world=lost)
    (record,) = [r for r in run.history if "clients" in r]
    assert (record["clients"], set(record["failed"])) == (6, {0, 1, 2, 3})
    assert set(tried) == {0}
