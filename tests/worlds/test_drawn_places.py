"""Behind randomk() a secure sum is of the drawn places alone: the same sums, of few numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.attack.watch import summed
from atoll.core.errors import QuorumError
from atoll.core.rng import Rng
from atoll.core.transform import Transform, only, transform
from atoll.learn import attempts
from atoll.learn.compress import drawn, places_of
from atoll.learn.integers import WEIGHT, Scale
from atoll.learn.ring import signed
from atoll.learn.secure import SecureSum
from atoll.privacy import dp
from tests.exact.quadratic import Bowl, Quadratic, Sites
from tests.worlds.test_secure_sums import BUCKETS, Beside, world

SIZE, FRACTION, SEED = 600, 0.1, 4
K = ceil(FRACTION * 2 * SIZE)
RANDOMK = at.randomk(FRACTION, seed=SEED)


def sites(clients: int = 10) -> Sites:
    rng = np.random.default_rng(2)
    return Sites([Bowl(np.ones(2 * SIZE), rng.normal(size=2 * SIZE), rows=3 + k) for k in range(clients)])


SITES = sites()
JOB = at.Job(
    Quadratic(size=SIZE, names=("v", "w")),
    at.chain(at.mean(), RANDOMK),
    rounds=3,
    sites=False,
    deadline=60.0,
    max_weight=12,
)


def moved(run: at.Run, before: at.Run) -> set[int]:
    return set(np.flatnonzero(run.params.buffer != before.params.buffer).tolist())


def everywhere(patch: pytest.MonkeyPatch) -> None:
    """As if nobody knew the places."""
    patch.setattr(attempts, "drawn", lambda algorithm, size, round: None)


# -- which chains say so ---------------------------------------------------------------------


def _fills() -> Transform:
    return transform("fills()", lambda update, state, ctx: (update.map(lambda v: v + 1), state))


@pytest.mark.parametrize(
    ("parts", "known"),
    [
        ([RANDOMK], True),
        ([RANDOMK, at.mean()], True),
        ([at.adam(), at.mean(), RANDOMK, at.clip(1.0)], True),
        ([at.mean(), at.momentum(0.9), at.topk(0.5), RANDOMK], True),
        ([at.mean(over=9), RANDOMK, at.clip(1.0), at.gaussian(1.0)], True),
        ([at.mean(), at.randomk(0.9), RANDOMK], True),
        ([at.mean(), RANDOMK, at.randomk(0.9, seed=SEED)], False),
        ([at.mean(), RANDOMK, at.topk(0.5)], False),
        ([at.mean(), RANDOMK, at.momentum(0.9)], False),
        ([at.mean(), RANDOMK, at.rotate()], False),
        ([at.mean(), RANDOMK, at.int8()], False),
        ([at.mean(), RANDOMK, _fills()], False),
        ([at.mean(), RANDOMK, replace(_fills(), sets_bound=1.0)], False),
        ([at.mean(), only("v", RANDOMK)], False),
        ([at.mean(), at.topk(0.1)], False),
    ],
    ids=lambda given: ", ".join(map(str, given)) if isinstance(given, list) else None,
)
def test_places_are_known_where_nothing_behind_them_fills_others(parts: list[Transform], known: bool) -> None:
    found = places_of(at.chain(*parts), 100, 3)
    assert (found == drawn(100, FRACTION, SEED, 3)) is known


def test_noise_of_ones_own_fills_all_places() -> None:
    job = JOB.replace(algorithm=at.small(up=RANDOMK), cohort=at.everyone())
    job = job.private(epsilon=50.0, delta=1e-3, clip=1.0, noise="local")
    assert places_of(job.trained.chain, 100, 3) is None


def test_each_leaf_sends_what_is_drawn_of_it() -> None:
    update = at.Update.of({"a": np.arange(50.0), "b": np.arange(3.0), "c": np.ones((40, 10))})
    where = drawn(453, 0.02, SEED, 1)
    scale = Scale(32, 100.0, 4, 1.0, drawn=where)
    leaves = scale.layout(update.layout).leaves
    assert leaves == (("a", (1,)), ("c", (9,)), (WEIGHT, (scale.digits,)))
    total = scale.back(scale.out(update, 1.0, Rng.of(0)), update.layout, 1)
    here = where.places(453)
    assert total.weight == 1.0
    np.testing.assert_array_equal(total.update.buffer[here], update.buffer[here])
    assert np.count_nonzero(np.delete(total.update.buffer, here)) == 0


# -- in worlds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen(Beside, SecureSum):
    """A secure sum whose answers are compared with the bare integers, and measured."""

    widths: list[int] = field(default_factory=list, compare=False)

    def _masked(self, local, task, step, scale, client, reply, integers):
        self.seen("secure", local, task, scale, client, reply)
        made = super()._masked(local, task, step, scale, client, reply, integers)
        assert scale.drawn == drawn(2 * SIZE, FRACTION, SEED, task.round)
        assert task.points.layout == made.update.layout
        self.widths.append(len(made.update.buffer) - scale.digits)
        return made

    async def collect(self, p, plan, task, rule, quorum):
        answer, read = await super().collect(p, plan, task, rule, quorum)
        self.compared(task, answer, self.bits)
        if answer.clients:
            total, scale = read.finish(answer.partial).update.buffer, read.scale
            here = drawn(2 * SIZE, FRACTION, SEED, task.round).places(2 * SIZE)
            whole = signed(answer.partial.sums[0], self.bits)[:K]
            assert (total[here] == whole * (scale.heaviest / scale.unit)).all()
            assert not np.delete(total, here).any()
        return answer, read


@pytest.mark.parametrize("block", range(2))
def test_the_sum_is_of_the_drawn_places_whoever_drops_out(block: int) -> None:
    sums: list[tuple[int, int]] = []
    for seed in range(block * 12, block * 12 + 12):
        exchange = Seen(bits=32 if seed % 2 else 16, least=4)
        job = JOB.replace(exchange=exchange, topology=at.tree((3,)) if seed % 3 == 0 else at.flat())
        try:
            at.simulate(job, SITES, seed=seed, world=world(seed))
        except QuorumError:
            assert len(exchange.sums) < 3
        assert set(exchange.widths) <= {K}
        sums += exchange.sums
    assert len(sums) > 20
    assert any(there < all_ for there, all_ in sums), "some worlds lose somebody"


@pytest.mark.parametrize("topology", [at.flat(), at.tree((2,))], ids=["flat", "edges"])
def test_the_model_is_that_of_all_places_for_a_tenth_of_the_bytes(
    topology: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JOB.replace(topology=topology, exchange=at.secure_sum())
    found = at.simulate(job, SITES, seed=3)
    plain = at.simulate(job.replace(exchange=at.plain_sum()), SITES, seed=3)
    np.testing.assert_allclose(found.params.buffer, plain.params.buffer, atol=1e-5)
    everywhere(monkeypatch)
    whole = at.simulate(job, SITES, seed=3)
    assert found.params == whole.params
    saved = [a["up"] - b["up"] for a, b in zip(whole.history[1:], found.history[1:], strict=True)]
    assert saved == [10 * 4 * (2 * SIZE - K)] * 3


def test_one_round_moves_the_drawn_places_and_the_next_moves_others() -> None:
    one, two = (at.simulate(JOB.replace(rounds=n, exchange=at.secure_sum()), SITES, seed=3) for n in (1, 2))
    start = at.Update.of(JOB.learner.init(np.random.default_rng(0)))
    first, second = (set(drawn(2 * SIZE, FRACTION, SEED, n).places(2 * SIZE).tolist()) for n in (0, 1))
    assert set(np.flatnonzero(one.params.buffer != start.buffer).tolist()) == first
    assert moved(two, one) == second
    assert first != second


@pytest.mark.parametrize("topology", [at.flat(), at.tree((2, 2))], ids=["flat", "edges"])
def test_buckets_sum_the_drawn_places(topology: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule over the buckets' means sees the same as of all places."""
    job = JOB.replace(
        algorithm=at.small(BUCKETS, up=RANDOMK), exchange=at.secure_sum(), topology=topology, rounds=2
    )
    found = at.simulate(job, SITES, seed=3)
    assert [r["clients"] for r in found.history[1:]] == [10, 10]
    everywhere(monkeypatch)
    whole = at.simulate(job, SITES, seed=3)
    assert found.params == whole.params
    saved = [a["up"] - b["up"] for a, b in zip(whole.history[1:], found.history[1:], strict=True)]
    assert saved == [10 * 4 * (2 * SIZE - K)] * 2


def test_a_buffer_of_many_rounds_sums_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    job = JOB.replace(
        algorithm=at.small(at.fedbuff(size=4, concurrency=6), up=RANDOMK),
        exchange=at.secure_sum(),
        max_weight=1,
    )
    found = at.simulate(job, SITES, seed=3)
    assert attempts.drawn(job.trained, 2 * SIZE, 0) is None
    assert places_of(job.trained.chain, 2 * SIZE, 0) is not None
    ages = [r["ages"] for r in found.history[1:]]
    assert any(len(age) > 1 for age in ages), "their places differ"
    assert len(moved(found, at.simulate(job.replace(rounds=1), SITES, seed=3))) > K
    plain = at.simulate(job.replace(exchange=at.plain_sum()), SITES, seed=3)
    np.testing.assert_allclose(found.params.buffer, plain.params.buffer, atol=1e-5)


# -- under a promise of privacy --------------------------------------------------------------


@pytest.mark.parametrize("colluders", [0, 3])
def test_noise_is_at_the_drawn_places_alone(colluders: int) -> None:
    """As much on each as on all places; the clip covers what travels."""
    size = 20_000
    same = Sites([Bowl(np.ones(size), np.full(size, k / 10), rows=1) for k in range(10)])
    job = at.Job(
        Quadratic(size=size), at.small(up=RANDOMK), rounds=1, sites=False, deadline=60.0, cohort=at.everyone()
    )
    exchange = at.secure_sum(least=6, colluders=colluders)
    noisy = job.private(epsilon=20.0, delta=1e-3, clip=4.0, sigma=2.0, exchange=exchange)
    assert noisy.privacy.noise == "distributed"
    parts = at.chain(at.mean(over=10), RANDOMK, at.clip(4.0))
    bare = job.replace(algorithm=at.Algorithm("bare", parts, weigh="equal"))
    run = at.simulate(noisy, same, seed=1)
    off = run.params.buffer - at.simulate(bare, same, seed=1).params.buffer
    here = drawn(size, FRACTION, SEED, 0).places(size)
    assert not np.delete(run.params.buffer, here).any()
    wanted = 2.0 * 4.0 * np.sqrt(10 / (7 - colluders)) / 10
    assert off[here].std() == pytest.approx(wanted, rel=0.08)
    assert abs(off[here].mean()) < 5 * wanted / np.sqrt(len(here))
    assert run.history[1]["up"] < 10 * (4 * len(here) + 8000)


def test_a_private_run_still_learns() -> None:
    data = at.partition(at.load_data("digits"), clients=10, seed=1, holdout=0.2)
    job = at.Job(at.softmax(lr=0.5), at.small(up=at.randomk(0.25)), rounds=8, cohort=at.everyone())
    noisy = job.private(epsilon=40.0, delta=1e-2, clip=4.0, exchange=at.secure_sum())
    assert at.simulate(noisy, data, seed=1).metrics["accuracy"] > 0.6


def test_a_clip_that_follows_sends_all_places() -> None:
    """Its parts pass by a leaf of its own."""
    job = JOB.replace(algorithm=at.small(up=RANDOMK), cohort=at.everyone(), exchange=at.secure_sum())
    job = job.private(epsilon=50.0, delta=1e-3, clip=1.0, adapt=0.5)
    assert attempts.drawn(job.trained, 2 * SIZE + 1, 0) is None


def test_bits_follow_the_drawn_number() -> None:
    """Fewer numbers are rounded, so that sixteen bits do for more clients; the report says by how many."""
    algorithm = at.Algorithm("clipped", at.chain(at.mean(), RANDOMK, at.clip(1.0)), weigh="equal")
    plain = at.Algorithm("plain", at.chain(at.mean(), at.clip(1.0)), weigh="equal")
    exchange = SecureSum()
    size = 200_000
    assert exchange.integers(algorithm, 10, size) == exchange.integers(plain, 10, 20_000)
    assert exchange.scale(algorithm, 10, 1.0, size, 0).bits == 16
    assert exchange.scale(plain, 10, 1.0, size, 0).bits == 32
    assert dp.longest(algorithm.chain) == 1.0


def test_what_attacks_see_of_a_sum_is_as_little() -> None:
    """Theirs are a run's own integers, with noise where there is noise."""
    job = JOB.replace(algorithm=at.small(up=RANDOMK), cohort=at.everyone())
    job = job.private(epsilon=50.0, delta=1e-3, clip=1.0, exchange=at.secure_sum())
    update = at.Update.of({"w": np.ones(2 * SIZE) / SIZE})
    made = {c: at.Contribution(update, 1.0) for c in range(4)}
    total = summed(job.trained, made, Rng.of(1)).update.buffer
    assert set(np.flatnonzero(total).tolist()) == set(
        drawn(2 * SIZE, FRACTION, SEED, 0).places(2 * SIZE).tolist()
    )


# -- encrypted -------------------------------------------------------------------------------


def test_an_encrypted_sum_is_of_the_drawn_places() -> None:
    pytest.importorskip("tenseal")
    size = 30_000
    wide = Sites([Bowl(np.ones(size), np.full(size, (k - 3) / 10), rows=2 + k) for k in range(5)])
    job = JOB.replace(learner=Quadratic(size=size), rounds=2, topology=at.tree((2,)))
    made = [
        at.simulate(job.replace(exchange=exchange), wide, seed=3)
        for exchange in (at.encrypted_sum(members=10), at.secure_sum())
    ]
    assert made[0].params == made[1].params
    whole = at.simulate(
        job.replace(exchange=at.encrypted_sum(members=10), algorithm=at.fedavg(), rounds=1), wide, seed=3
    )
    few, all_ = made[0].history[1]["up"], whole.history[1]["up"]
    assert few < 0.2 * all_
