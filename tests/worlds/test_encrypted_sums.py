"""Encrypted sums in bad networks: whoever drops out at whichever step, the sum is that of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("tenseal")

import atoll as at
from atoll.learn.encrypted import EncryptedSum
from atoll.simulate.faults import Crash, World, constant
from tests.worlds.test_secure_sums import JOB, SITES, Beside, play


@dataclass(frozen=True)
class Seen(Beside, EncryptedSum):
    """An encrypted sum, compared."""

    def _encrypted(self, local, task, step, scale, client, reply, integers):
        self.seen("encrypted", local, task, scale, client, reply)
        return super()._encrypted(local, task, step, scale, client, reply, integers)

    async def collect(self, p, plan, task, rule, quorum):
        answer, read = await super().collect(p, plan, task, rule, quorum)
        self.compared(task, answer, self.plain)
        return answer, read


def encrypted(seed: int) -> list[tuple[int, int]]:
    return play(seed, Seen(plain=32 if seed % 2 else 16, least=2, members=12))


@pytest.mark.parametrize("block", range(3))
def test_the_sum_is_the_plain_one_whoever_drops_out(block: int) -> None:
    sums = [pair for seed in range(block * 10, block * 10 + 10) for pair in encrypted(seed)]
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
        def _encrypted(self, local, task, step, scale, client, reply, integers):
            tried.append(step.attempt)
            return super()._encrypted(local, task, step, scale, client, reply, integers)

    run = at.simulate(JOB.replace(rounds=1, exchange=Counted(members=10)), SITES, seed=3, world=lost)
    (record,) = [r for r in run.history if "clients" in r]
    assert (record["clients"], set(record["failed"])) == (6, {0, 1, 2, 3})
    assert set(tried) == {0}
