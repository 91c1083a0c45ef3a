"""Buffers of which only the sum is seen: the plain ones' models and sums, and no update in two of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import atoll as at
from atoll.control.engine.repeats import Repeats
from atoll.core.aggregate import Points
from atoll.core.edge import Task
from atoll.core.errors import CompositionError, ConfigError, QuorumError
from atoll.core.rng import Rng
from atoll.learn.exchange import Seat
from atoll.learn.local import Local
from atoll.learn.secure import SecureSum, Step
from atoll.learn.waiting import NOTHING
from atoll.privacy import secure_sum as ss
from atoll.privacy.roster import Label
from atoll.privacy.vault import Vault
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
            self.compared(task, answer, self.bits or 32)
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


def test_too_old_updates_are_dropped_as_in_the_open() -> None:
    job = JOB.replace(algorithm=at.fedbuff(size=2, concurrency=8, max_staleness=1))
    plain, secure = (at.simulate(j, SITES, seed=3) for j in (job, job.replace(exchange=at.secure_sum())))
    dropped = [[r["dropped"] for r in run.history[1:]] for run in (plain, secure)]
    assert dropped[0] == dropped[1]
    assert sum(dropped[0]) > 0
    np.testing.assert_allclose(secure.params.buffer, plain.params.buffer, atol=1e-6)


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


def sitting(client: int, data: Any, vouch: Any = None) -> tuple[Local, Task]:
    """A client by itself, as a device has it, and what it is asked first."""
    local = Local(Quadratic(size=3), SECURE.trained, {client: data}, {}, Rng.of(0), raw=True)
    local.seat = Seat(np.random.default_rng(client).bytes, vouch=vouch)
    params = at.Update.of({"w": np.zeros(3)})
    points = Points(NOTHING, (), 1.0, 4, wide=False)
    return local, Task(0, Rng.of(1), (client,), (-1,), params, points, tuple(range(4)))


def test_that_it_is_ready_is_all_a_client_says() -> None:
    """The same bytes whatever it learnt from however many rows."""
    said = set()
    for data in (SITES[0], SITES[9], Bowl([1.0, 1.0, 1.0], [1e6, 0.0, 0.0], rows=1)):
        local, task = sitting(0, data)
        said.add(b"".join(encode(answer_message(local.answer(task), run="r", request=1))))
        assert local.waiting[0].update.buffer.any()
    assert len(said) == 1


class Table:
    """The steps of attempts, asked of some clients by hand."""

    def __init__(self, *seats: tuple[Local, Task]) -> None:
        self.seats = {task.clients[0]: (local, task) for local, task in seats}

    def train(self, *clients: int) -> None:
        for c in clients:
            local, task = self.seats[c]
            assert local.answer(task).clients == (c,)

    def ask(
        self, step: str, clients: Any, label: Label, text: bytes = b"", mail: Any = None
    ) -> dict[int, Any]:
        note = msgspec.msgpack.encode(
            Step(step, label.round, label.attempt, 1.0, 4, {0: (list(clients), text)})
        )
        found = {}
        for c in clients:
            local, task = self.seats[c]
            want = "note" if mail is None else "fit"
            this = replace(task, round=label.round, want=want, note=note, notes={c: mail[c]} if mail else {})
            found[c] = local.answer(this)
        return found

    def masked(self, clients: Any, label: Label) -> dict[int, Any]:
        """Their vectors, once they have shared their secrets."""
        keys = {c: a.partial[c] for c, a in self.ask("keys", clients, label).items()}
        roster = ss.roster_out(ss.roster_of(label, keys))
        shares = {c: a.partial[c] for c, a in self.ask("shares", clients, label, roster).items()}
        return self.ask("mask", clients, label, mail=ss.routed(shares))

    def vouched(self, clients: Any, label: Label) -> dict[int, Any]:
        return self.ask("sign", clients, label, ss.survivors_out(clients))


def label(round: int, attempt: int) -> Label:
    return Label("", "", round, attempt, 0)


def test_an_update_that_was_vouched_for_is_in_no_other_sum() -> None:
    table = Table(*(sitting(c, SITES[c]) for c in range(4)))
    assert "waits to be summed" in table.ask("keys", [0], label(0, 0))[0].failed[0], "it has not trained"
    table.train(0, 1, 2, 3)
    first = table.masked([0, 1, 2], label(0, 0))
    again = table.masked([0, 1, 3], label(0, 1))
    assert not first[0].failed
    assert not again[0].failed, "an attempt that nobody vouched for is followed by another"
    both = [a.replies[0][1].update.buffer for a in (first[0], again[0])]
    assert (both[0] != both[1]).all(), "under masks of its own"
    assert not any(a.failed for a in table.vouched([0, 1, 3], label(0, 1)).values())
    assert [c for c, (local, _) in table.seats.items() if local.waiting] == [2]
    assert "waits to be summed" in table.ask("keys", [0], label(1, 0))[0].failed[0]
    table.train(0)
    assert not table.ask("keys", [0], label(1, 0))[0].failed, "until it has trained again"


def test_an_update_is_known_by_its_name_at_any_age(tmp_path: Path) -> None:
    """A client whose memory of what waits came back from a backup does not vouch for it twice."""
    seats = [sitting(c, SITES[c], Repeats(tmp_path / str(c), Vault(bytes(32))).vouch) for c in range(4)]
    table = Table(*seats)
    table.train(0, 1, 2, 3)
    kept = dict(seats[0][0].waiting)
    table.masked([0, 1, 2], label(0, 0))
    assert not table.vouched([0, 1, 2], label(0, 0))[0].failed
    seats[0][0].waiting.update(kept)
    table.train(1, 2)
    old = table.masked([0, 1, 3], label(3, 0))[0]
    assert not old.failed
    assert "was in a sum with other members before" in table.vouched([0, 1, 3], label(3, 0))[0].failed[0]


def test_a_client_works_out_its_age_and_believes_no_step_before_its_model() -> None:
    table = Table(*(sitting(c, SITES[c]) for c in range(3)))
    table.train(0, 1, 2)
    local, task = table.seats[0]
    local.waiting[0] = local.waiting[0]._replace(version=2)
    assert "waits to be summed" in table.masked([0, 1, 2], label(1, 0))[0].failed[0]
    told = []

    @dataclass(frozen=True)
    class Telling(SecureSum):
        def outgoing(self, local, task, answer, integers=None):
            told.extend(reply.weight for _, reply in answer.replies)
            return answer

    local.algorithm = replace(local.algorithm, exchange=Telling())
    for step in (2, 3, 5):
        local.answer(replace(task, round=step, note=b"mask"))
    assert told == [1.0, 2**-0.5, 4**-0.5]


# -- under a promise of privacy ----------------------------------------------------------------


PROMISE: Any = {"epsilon": 20.0, "delta": 1e-3, "clip": 4.0, "sigma": 2.0, "exchange": at.secure_sum(least=3)}


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_buffer_has_noise_of_its_own(rounds: int) -> None:
    """Sized for its members: of four three must stay. Nothing else moves the model."""
    size = 4000
    sites = Sites([Bowl(np.ones(size), np.full(size, k / 10), rows=1) for k in range(10)])
    job = at.Job(Quadratic(size=size, lr=1e-9), at.fedbuff(size=4), rounds=rounds, sites=False)
    run = at.simulate(job.private(**{**PROMISE, "epsilon": 40.0}), sites, seed=1)
    wanted = 2.0 * 4.0 * np.sqrt(4 / 3) / 4 * np.sqrt(rounds)
    assert run.params.buffer.std() == pytest.approx(wanted, rel=0.05)
    assert all(record.get("train", {}) == {} for record in run.history)


def test_a_promise_counts_every_step_as_one_of_all_clients() -> None:
    job = JOB.private(**{**PROMISE, "sigma": None})
    whole = JOB.replace(algorithm=at.fedavg()).private(**{**PROMISE, "sigma": None})
    assert job.epsilon() == whole.epsilon()
    assert job.epsilon().release.sampling == "all"


@pytest.mark.parametrize(
    ("values", "promise", "why"),
    [
        ({"cohort": at.sample(0.5)}, {"population": 10}, r"\$\.cohort.*nobody draws who is in a buffer"),
        ({"cohort": at.poisson(0.5)}, {}, r"\$\.cohort.*nobody draws who is in a buffer"),
        ({}, {"adapt": 0.5}, r"\$\.privacy\.adapt.*several models"),
        ({}, {"exchange": at.plain_sum()}, "rounds of its own, whose sums nobody accounts"),
        ({}, {"exchange": at.plain_sum(), "noise": "local"}, "rounds of its own, whose sums nobody accounts"),
        (
            {},
            {"unit": "example", "rate": 0.1, "population": 100, "delta": 1e-4},
            "rounds of its own, whose sums nobody accounts",
        ),
    ],
)
def test_what_nobody_accounts_is_refused(values: Any, promise: Any, why: str) -> None:
    with pytest.raises((ConfigError, CompositionError), match=why):
        JOB.replace(**values).private(**{**PROMISE, "sigma": None, **promise}).trained  # noqa: B018


@pytest.mark.parametrize(
    ("algorithm", "exchange", "why"),
    [
        (at.fedbuff(size=3), at.secure_sum(least=4), r"a sum is of 4 at least: use fedbuff\(size=10\)"),
        (at.fedasync(), at.secure_sum(), r"a sum is of 2 at least: use fedbuff\(size=10\)"),
        (at.hierarchical(asynchronous=True), at.secure_sum(), r"rounds of its own.*or fedbuff\(\)"),
        (
            replace(at.fedbuff(size=4), rule=at.Buckets(2, at.median())),
            at.secure_sum(),
            "use an algorithm of synchronous rounds",
        ),
    ],
)
def test_buffers_that_no_sum_hides_are_refused(algorithm: Any, exchange: Any, why: str) -> None:
    with pytest.raises(CompositionError, match=why):
        at.Job(Quadratic(size=3), algorithm, exchange=exchange).trained  # noqa: B018
