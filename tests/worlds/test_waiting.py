"""Buffers of which only the sum is seen: the plain ones' models and sums, and no update in two of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest

import atoll as at
from atoll.core.aggregate import Points
from atoll.core.edge import Task
from atoll.core.errors import QuorumError
from atoll.core.rng import Rng
from atoll.learn.exchange import Seat
from atoll.learn.local import Local
from atoll.learn.secure import SecureSum, Step
from atoll.learn.waiting import NOTHING
from atoll.simulate.faults import Crash, World, constant, lognormal
from atoll.wire.body import answer_message
from atoll.wire.codec import encode
from tests.exact.quadratic import Bowl, Quadratic, Sites
from tests.worlds.test_buffered import Ones
from tests.worlds.test_secure_sums import Beside, world

SITES = Sites([Bowl([1.0, 4.0, 2.0], [k / 3, -k, 2.0], rows=3 + k) for k in range(10)])
FEDBUFF = at.fedbuff(size=4, concurrency=8)
JOB = at.Job(Quadratic(size=3), FEDBUFF, rounds=6, sites=False, deadline=60.0)
SECURE = JOB.replace(exchange=at.secure_sum())


@dataclass(frozen=True)
class Watched(Beside, SecureSum):
    """A secure sum, compared; `spent`: the updates in it, by client and the version it was learnt from."""

    spent: list[tuple[int, int]] = field(default_factory=list, compare=False)
    versions: dict[tuple[int, int], int] = field(default_factory=dict, compare=False)

    def _masked(self, local, task, step, scale, client, reply, integers):
        self.seen("secure", local, task, scale, client, reply)
        self.versions[task.round, client] = local.waiting[client].version
        return super()._masked(local, task, step, scale, client, reply, integers)

    def attempt(self, p, plan, task, *more):
        made = super().attempt(p, plan, task, *more)
        inner = made.sum

        async def compared(quorum):
            answer = await inner(quorum)
            self.compared(task, answer, self.bits)
            self.spent.extend((c, self.versions[task.round, c]) for c in answer.clients)
            return answer

        made.sum = compared
        return made


@pytest.mark.parametrize("block", range(4))
def test_each_buffers_sum_is_the_plain_one_whoever_drops_out(block: int) -> None:
    sums: list[tuple[int, int]] = []
    old = 0
    for seed in range(block * 12, block * 12 + 12):
        exchange = Watched(bits=32 if seed % 2 else 16, least=3)
        job = JOB.replace(exchange=exchange, topology=at.tree((3,)) if seed % 3 == 0 else at.flat())
        try:
            run = at.simulate(job, SITES, seed=seed, world=world(seed))
            old += sum(sum(record["ages"][1:]) for record in run.history[1:])
        except QuorumError:
            assert len(exchange.sums) < JOB.rounds
        sums += exchange.sums
        assert len(set(exchange.spent)) == len(exchange.spent), "an update is in one sum"
    assert len(sums) > 50
    assert old > 50, "some updates are old"
    assert all(there >= 3 for there, _ in sums)
    assert any(there < all_ for there, all_ in sums), "some sums lose somebody"


@pytest.mark.parametrize("exchange", [at.secure_sum(), at.secure_sum(64)], ids=["32", "64"])
@pytest.mark.parametrize("staleness", ["polynomial", "hinge", "constant"])
def test_masks_change_nothing_but_what_is_seen(exchange: Any, staleness: Any) -> None:
    job = JOB.replace(algorithm=at.fedbuff(size=3, concurrency=9, staleness=staleness, after=1))
    plain, secure = (at.simulate(j, SITES, seed=3) for j in (job, job.replace(exchange=exchange)))
    assert [r["ages"] for r in secure.history[1:]] == [r["ages"] for r in plain.history[1:]]
    assert max(len(r["ages"]) for r in plain.history[1:]) > 2
    np.testing.assert_allclose(secure.params.buffer, plain.params.buffer, atol=1e-6)
    edges = job.replace(exchange=exchange, topology=at.tree((2, 2)))
    assert at.simulate(edges, SITES, seed=3).params == secure.params
    assert all(record.get("train", {}) == {} for record in secure.history)
    assert secure.traffic.down == plain.traffic.down, "steps of a sum bring no model"


def test_a_stale_update_weighs_what_the_paper_says() -> None:
    """As in test_buffered.py, where the same ages are worked out by hand."""
    job = at.Job(Ones(), at.fedbuff(size=2, concurrency=4), rounds=7, exchange=at.secure_sum())
    run = at.simulate(job, [1] * 8)
    assert [r["ages"] for r in run.history[1:]] == [[2], [0, 2], *[[0, 1, 1]] * 5]
    assert run.params["w"][0] == pytest.approx(1 + 2**-0.5 + 5 * (2**-0.5 + 3**-0.5) / 2, abs=1e-6)


def test_who_is_ready_stays_so_when_too_few_are_left() -> None:
    """Half a buffer dies as its sum begins: the other half is not trained again."""
    fits: list[int] = []

    class Counting(Quadratic):
        def fit(self, params, data, ctx):
            fits.append(ctx.client)
            return super().fit(params, data, ctx)

    job = SECURE.replace(learner=Counting(size=3), algorithm=at.fedbuff(size=4, concurrency=4), rounds=1)
    job = job.replace(exchange=at.secure_sum(least=4))
    even = World(compute=constant(1.0), delay=constant(0.1))
    run = at.simulate(job, SITES, seed=5, world=even)
    ready, seconds = fits[:4], run.seconds
    assert 1.2 < seconds < 2.4, "trained once, and five steps"
    fits.clear()
    dead = tuple(Crash(f"client{c}", 1.25, 1e9) for c in ready[:2])
    run = at.simulate(job, SITES, seed=5, world=replace(even, crashes=dead))
    assert fits[:4] == ready
    assert set(ready).isdisjoint(fits[4:])
    assert run.history[1]["clients"] == 4
    assert run.history[1]["failed"] == dict.fromkeys(ready[:2], "crashed")


def test_too_few_again_and_again_end_the_run() -> None:
    class Large(Quadratic):
        def fit(self, params, data, ctx):
            return super().fit(params, data, ctx) if ctx.client else at.Contribution({"w": np.full(3, 1e9)})

    job = SECURE.replace(learner=Large(size=3), rounds=3)
    run = at.simulate(job.replace(exchange=at.secure_sum(least=3)), SITES, seed=1)
    assert "largest=...) is too small" in str([r.get("failed") for r in run.history])
    all_ten = job.replace(exchange=at.secure_sum(least=10), algorithm=at.fedbuff(size=10))
    with pytest.raises(
        QuorumError, match="9 sums of buffers in a row were given up, the last one because 9 of"
    ):
        at.simulate(all_ten, SITES, seed=1)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_cut_off_run_goes_on_bit_for_bit(tmp_path: Any, cut: int) -> None:
    class CutError(Exception):
        pass

    def watch(record: Any) -> None:
        if record["round"] == cut + 1:
            raise CutError

    whole = at.simulate(SECURE, SITES, 1)
    with pytest.raises(CutError):
        at.simulate(SECURE, SITES, 1, out=tmp_path / "run", watch=watch)
    again = at.simulate(SECURE, SITES, 1, out=tmp_path / "run", resume=True)
    assert again.params == whole.params


@pytest.mark.parametrize("at_", [2.0, 2.3, 3.0, 4.1])
def test_a_coordinator_that_falls_goes_on(at_: float) -> None:
    """Without a journal it knows nothing of attempts since its checkpoint: members refuse what is over."""
    falls = World(
        compute=lognormal(0.0, 0.3), delay=lognormal(-3.0, 0.5), crashes=(Crash("coordinator", at_, 1.0),)
    )
    exchange = Watched(least=3)
    run = at.simulate(JOB.replace(exchange=exchange), SITES, seed=2, world=falls)
    assert run.history[-1]["round"] == JOB.rounds
    assert run.params.finite()


# -- what a client says and keeps --------------------------------------------------------------


def sitting(data: Any, seat: Seat | None = None) -> tuple[Local, Task]:
    """A client by itself, as a device has it, and what it is asked first."""
    local = Local(Quadratic(size=3), SECURE.trained, {0: data}, {}, Rng.of(0), raw=True)
    local.seat = seat or Seat(np.random.default_rng(0).bytes)
    params = at.Update.of({"w": np.zeros(3)})
    points = Points(NOTHING, (), 1.0, 4, wide=False)
    return local, Task(0, Rng.of(1), (0,), (-1,), params, points, tuple(range(4)))


def test_that_it_is_ready_is_all_a_client_says() -> None:
    """The same bytes whatever it learnt from however many rows."""
    said = set()
    for data in (SITES[0], SITES[9], Bowl([1.0, 1.0, 1.0], [1e6, 0.0, 0.0], rows=1)):
        local, task = sitting(data)
        said.add(b"".join(encode(answer_message(local.answer(task), run="r", request=1))))
        assert local.waiting[0].update.buffer.any()
    assert len(said) == 1


def note(step: str, attempt: int = 0, round: int = 0, text: bytes = b"") -> bytes:
    return msgspec.msgpack.encode(Step(step, round, attempt, 1.0, 4, {0: ([0, 1, 2], text)}))


def test_without_an_update_that_waits_a_client_takes_no_part() -> None:
    local, task = sitting(SITES[0])
    keys = replace(task, want="note", note=note("keys"))
    assert "waits to be summed" in local.answer(keys).failed[0]
    local.answer(task)
    assert not local.answer(keys).failed
    later = replace(task, round=0, note=note("mask"), notes={0: b""})
    local.waiting[0] = local.waiting[0]._replace(version=1)
    assert "waits to be summed" in local.answer(later).failed[0], "it is of a model that this step is before"
