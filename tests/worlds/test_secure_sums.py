"""Secure sums in bad networks: whoever drops out at whichever step, the sum is the plain one of the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pytest

import atoll as at
from atoll.core.edge import Task
from atoll.core.errors import CompositionError, QuorumError
from atoll.core.rng import Rng
from atoll.learn.exchange import Seat
from atoll.learn.integers import Scale
from atoll.learn.local import Local
from atoll.learn.ring import signed
from atoll.learn.secure import SecureSum, Step
from atoll.simulate.faults import Crash, World, lognormal
from tests.exact.quadratic import Bowl, Quadratic, Sites

SITES = Sites([Bowl([1.0, 4.0, 2.0], [k / 3, -k, 2.0], rows=3 + k) for k in range(10)])
JOB = at.Job(Quadratic(size=3), at.fedavg(), rounds=2, sites=False, deadline=60.0, max_weight=12)


@dataclass(frozen=True)
class Beside:
    """An exchange beside which the integers are added as they are, by round and client: `bits` of them."""

    bare: dict[tuple[int, int], Any] = field(default_factory=dict, compare=False)
    sums: list[tuple[int, int]] = field(default_factory=list, compare=False)

    def seen(self, name, local, task, scale, client, reply):
        rng = local.key.at(name, client, task.round)
        self.bare[task.round, client] = scale.out(reply.update, reply.weight, rng)

    def compared(self, task, answer, bits):
        if answer.clients:
            plain = sum(self.bare[task.round, c] for c in answer.clients) & np.uint64((1 << bits) - 1)
            assert (answer.partial.sums[0] == plain).all()
            self.sums.append((len(answer.clients), len(task.clients)))


@dataclass(frozen=True)
class Seen(Beside, SecureSum):
    """A secure sum, compared."""

    def _masked(self, local, task, step, scale, client, reply, integers):
        self.seen("secure", local, task, scale, client, reply)
        return super()._masked(local, task, step, scale, client, reply, integers)

    async def collect(self, p, plan, task, rule, quorum):
        answer, read = await super().collect(p, plan, task, rule, quorum)
        self.compared(task, answer, self.bits or 32)
        return answer, read


def world(seed: int) -> World:
    """About a third of ten clients is lost in the six steps of a round, now and then a whole edge."""
    rng = np.random.default_rng(seed)
    crashes = tuple(
        Crash(f"client{c}", float(rng.exponential(20)), 1e9) for c in range(int(rng.integers(0, 4)))
    )
    return World(
        compute=lognormal(0.0, 0.5),
        delay=lognormal(-2.0, 1.0),
        dropout=float(rng.uniform(0, 0.06)),
        loss=float(rng.uniform(0, 0.2)),
        repeat=0.1,
        crashes=crashes,
    )


def play(seed: int, exchange: Any = None) -> list[tuple[int, int]]:
    """The sizes of the sums of one world, each of which was compared with the plain sum."""
    exchange = exchange or Seen(bits=32 if seed % 2 else 16, least=4)
    job = JOB.replace(exchange=exchange, topology=at.tree((3,)) if seed % 3 == 0 else at.flat())
    try:
        at.simulate(job, SITES, seed=seed, world=world(seed))
    except QuorumError:
        assert len(exchange.sums) < 2
    return exchange.sums


@pytest.mark.parametrize("block", range(4))
def test_the_sum_is_the_plain_one_whoever_drops_out(block: int) -> None:
    sums = [pair for seed in range(block * 20, block * 20 + 20) for pair in play(seed)]
    assert len(sums) > 30
    assert all(there >= 4 for there, _ in sums)
    assert any(there < all_ for there, all_ in sums), "some worlds lose somebody"


def test_masks_change_nothing_but_what_is_seen() -> None:
    plain = at.simulate(JOB, SITES, seed=3)
    one = at.simulate(JOB.replace(exchange=at.secure_sum()), SITES, seed=3)
    assert one.params == at.simulate(JOB.replace(exchange=at.secure_sum()), SITES, seed=3).params
    edges = JOB.replace(exchange=at.secure_sum(), topology=at.tree((2, 2)))
    assert at.simulate(edges, SITES, seed=3).params == one.params
    np.testing.assert_allclose(one.params.buffer, plain.params.buffer, atol=1e-6)
    assert all(record.get("train", {}) == {} for record in one.history)


def test_too_few_left_is_an_attempt_and_then_a_failure() -> None:
    job = JOB.replace(exchange=at.secure_sum(least=8, attempts=2))
    gone = World(crashes=tuple(Crash(f"client{c}", 0.0, 1e9) for c in range(4)), delay=lognormal(-3.0, 0.1))
    with pytest.raises(QuorumError, match="6 of 10 clients sent keys: 8 must"):
        at.simulate(job, SITES, world=gone)


def test_numbers_beyond_the_largest_are_one_clients_failure() -> None:
    far = Sites([*SITES, Bowl([1.0, 1.0, 1.0], [1e6, 0.0, 0.0], rows=3)])
    run = at.simulate(JOB.replace(exchange=at.secure_sum()), far)
    assert [list(r["failed"]) for r in run.history if "failed" in r] == [[10], [10]]
    assert "secure_sum(largest=...) is too small" in run.history[1]["failed"][10]


@pytest.mark.parametrize(
    ("algorithm", "why"),
    [
        (at.Gather(lambda u: np.median(u, axis=0)), "use Buckets"),
        (at.hierarchical(asynchronous=True), "rounds of its own"),
        (at.fedasync(), r"a sum is of 2 at least: use fedbuff\(size=10\)"),
        (at.chain(at.mean(), at.ring(32)), "leave ring"),
    ],
)
def test_what_needs_to_see_more_than_a_sum_is_refused(algorithm: Any, why: str) -> None:
    with pytest.raises(CompositionError, match=why):
        at.Job(Quadratic(size=3), algorithm, exchange=at.secure_sum(), sites=False)


@pytest.mark.parametrize("bits", [8, 16, 24, 32, 64])
def test_weights_and_numbers_survive_the_ring(bits: int) -> None:
    rng = np.random.default_rng(bits)
    scale = Scale(bits, 2.0, 12, 30.0)
    updates = [
        at.Update.of({"w": rng.uniform(-2, 2, 500), "b": rng.uniform(-0.1, 0.1, 3)}) for _ in range(12)
    ]
    weights = rng.integers(0, 31, 12).astype(float)
    key = Rng.of(bits)
    parts = [scale.out(u, w, key.at(i)) for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
    total = scale.back(sum(parts) & np.uint64((1 << bits) - 1), updates[0].layout, 12)
    assert total.weight == pytest.approx(weights.sum(), rel=1e-8)
    right = sum(u.buffer * w for u, w in zip(updates, weights, strict=True))
    off = (total.update.buffer - right) / 30 * scale.unit  # in units of the ring
    assert np.abs(off).max() < 12 + 24 * scale.unit * 2.0**-33
    if bits < 64:
        assert abs(off.mean()) < 4 * np.sqrt(12 / 12 / len(off)) + 0.01, "rounding has no bias"
    assert abs(signed(parts[0], bits)).max() * 12 < 2 ** (bits - 1)


def test_a_ring_without_room_is_refused() -> None:
    with pytest.raises(at.ConfigError, match="do not fit 8 bits"):
        Scale(8, 64.0, 100, 1.0)
    with pytest.raises(at.ConfigError, match="least must be at least 2"):
        at.secure_sum(least=1)
    with pytest.raises(at.ConfigError, match="bits must be"):
        at.secure_sum(bits=4)
    with pytest.raises(at.ConfigError, match="largest"):
        at.secure_sum(largest=0.0)
    with pytest.raises(at.ConfigError, match="attempts"):
        at.secure_sum(attempts=0)


def test_a_seat_keeps_before_it_answers() -> None:
    kept: list[bytes] = []
    seat = Seat(np.random.default_rng(0).bytes, save=kept.append)
    exchange = SecureSum()
    local = Local(Quadratic(size=3), JOB.trained, {0: SITES[0]}, {}, Rng.of(0), seat=seat)
    task = Task(0, Rng.of(1), (0,), (-1,), at.Update.of({"w": np.zeros(3)}), want="note")

    def say(step: str, attempt: int) -> Any:
        note = msgspec.msgpack.encode(Step(step, 0, attempt, 1.0, 2, {0: ([0], b"")}))
        return exchange.reply(local, replace(task, note=note))

    first = say("keys", 0)
    assert len(kept) == 1
    assert say("keys", 0) == first, "the same keys for the same attempt"
    assert len(kept) == 1
    assert say("keys", 1) != first
    assert "is over" in say("keys", 0).failed[0]
    assert "begun no such attempt" in say("shares", 2).failed[0]
    assert "mask" in say("mask", 1).failed[0], "a note is no vector"


PRIVATE = at.Job(Quadratic(size=3), rounds=2, sites=False, deadline=60.0, cohort=at.everyone())
CREW = 7  # of ten who must stay


def wide(n: int, size: int) -> Sites:
    return Sites([Bowl(np.ones(size), np.full(size, k / 10), rows=1) for k in range(n)])


@pytest.mark.parametrize(("bits", "colluders"), [(32, 0), (32, 3), (16, 0)])
def test_the_noise_of_those_who_must_stay_is_enough(bits: int, colluders: int) -> None:
    """Everybody stays: then it is more by as much. Nothing else moves the model."""
    size, sites = 4000, wide(10, 4000)
    exchange = at.secure_sum(bits, least=6, colluders=colluders)
    job = PRIVATE.replace(learner=Quadratic(size=size), rounds=1)
    noisy = job.private(epsilon=20.0, delta=1e-3, clip=4.0, sigma=2.0, exchange=exchange)
    bare = at.Algorithm("bare", at.chain(at.mean(over=10), at.clip(4.0)), weigh="equal")
    found = (
        at.simulate(noisy, sites, seed=1).params.buffer
        - at.simulate(job.replace(algorithm=bare), sites, seed=1).params.buffer
    )
    wanted = 2.0 * 4.0 * np.sqrt(10 / (CREW - colluders)) / 10
    assert found.std() == pytest.approx(wanted, rel=0.05)
    assert abs(found.mean()) < 5 * wanted / np.sqrt(size)


def test_survivors_of_a_bad_world_have_noise_enough() -> None:
    """With three of ten lost the noise on the sum is what the promise was solved for, and no less."""
    gone = World(dropout=0.05, delay=lognormal(-2.0, 0.5))
    job = PRIVATE.replace(learner=Quadratic(size=2000), rounds=12)
    noisy = job.private(epsilon=200.0, delta=1e-3, clip=1e-3, sigma=3.0, exchange=at.secure_sum(least=4))
    run = at.simulate(noisy, wide(10, 2000), seed=5, world=gone)
    stayed = [r["clients"] for r in run.history if r.get("clients")]
    assert min(stayed) < 10
    steps = np.sqrt(sum(n / (2 * 10 // 3 + 1) for n in stayed)) * 3.0 * 1e-3 / 10
    assert run.params.buffer.std() > 0.9 * steps * np.sqrt(CREW / 10)


def test_a_promise_says_who_adds_its_noise() -> None:
    central = PRIVATE.private(epsilon=5.0, delta=1e-3, clip=1.0)
    spread = PRIVATE.private(epsilon=5.0, delta=1e-3, clip=1.0, exchange=at.secure_sum())
    assert (central.privacy.noise, spread.privacy.noise) == ("central", "distributed")
    assert spread.privacy.sigma > central.privacy.sigma, "by its own bound, never as a continuous Gaussian"
    for job, exchange in ((central, at.secure_sum()), (spread, at.plain_sum())):
        with pytest.raises(at.ConfigError, match="the promise was solved for"):
            job.replace(exchange=exchange)
    with pytest.raises(at.PrivacyError, match="claims epsilon 5"):
        PRIVATE.private(epsilon=5.0, delta=1e-3, clip=1.0, sigma=0.1, exchange=at.secure_sum())
    with pytest.raises(at.ConfigError, match="colluders must be"):
        at.secure_sum(least=3, colluders=3)


def test_a_sum_with_noise_is_opened_once_in_a_round() -> None:
    job = PRIVATE.private(epsilon=5.0, delta=1e-3, clip=1.0, exchange=at.secure_sum())
    local = Local(
        Quadratic(size=3), job.trained, {0: SITES[0]}, {}, Rng.of(0), seat=Seat(Rng.of(1).generator().bytes)
    )
    task = Task(0, Rng.of(1), (0,), (-1,), at.Update.of({"w": np.zeros(3)}), want="note")

    def keys(round: int, attempt: int) -> Any:
        note = msgspec.msgpack.encode(Step("keys", round, attempt, 1.0, 2, {0: ([0], b"")}))
        return job.exchange.reply(local, replace(task, round=round, note=note))

    assert not keys(0, 0).failed
    local.seat.secrets[0] = replace(local.seat.secrets[0], opened=True)
    assert "would cost privacy again" in keys(0, 1).failed[0]
    assert not keys(1, 0).failed
    bare = Local(Quadratic(size=3), JOB.trained, {0: SITES[0]}, {}, Rng.of(0), seat=local.seat)
    local.seat.secrets[0] = replace(local.seat.secrets[0], opened=True)
    note = msgspec.msgpack.encode(Step("keys", 1, 1, 1.0, 2, {0: ([0], b"")}))
    assert not at.secure_sum().reply(bare, replace(task, round=1, note=note)).failed, "without noise it may"


def test_a_grid_too_coarse_for_the_noise_is_one_clear_reason() -> None:
    job = PRIVATE.private(epsilon=500.0, delta=1e-3, clip=1.0, sigma=0.2, exchange=at.secure_sum(8))
    with pytest.raises(QuorumError, match="take more bits"):
        at.simulate(job, SITES, seed=1)


BUCKETS = at.robust(at.trimmed_mean(1), buckets=4)


@pytest.mark.parametrize("topology", [at.flat(), at.tree((2, 2))])
def test_sums_in_buckets_are_those_in_the_open(monkeypatch: pytest.MonkeyPatch, topology: Any) -> None:
    """The rule sees the same means, to a unit of the scale; buckets are as drawn, not as the seed tells."""
    deal, places = at.Buckets.dealt, []

    def listen(self: at.Buckets, cohort: Any, key: Rng) -> dict[int, int]:
        place = deal(self, cohort, key)
        places.extend([place] if place not in places else [])
        return place

    monkeypatch.setattr(at.Buckets, "dealt", listen)
    job = JOB.replace(algorithm=BUCKETS, topology=topology, rounds=1)
    run = at.simulate(job.replace(exchange=at.secure_sum()), SITES, seed=3)
    assert [r["clients"] for r in run.history if "clients" in r] == [10]
    told, drawn = places
    at.simulate(job, SITES, seed=3)
    assert places == [told, drawn], "in the open they follow from the seed"
    monkeypatch.setattr(at.Buckets, "dealt", lambda self, cohort, key: drawn)
    plain = at.simulate(job, SITES, seed=3)
    np.testing.assert_allclose(run.params.buffer, plain.params.buffer, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_a_bucket_that_loses_too_many_is_left_out_alone(seed: int) -> None:
    job = JOB.replace(algorithm=BUCKETS, exchange=at.secure_sum(), rounds=3)
    run = at.simulate(job, SITES, seed=seed, world=World(dropout=0.03, delay=lognormal(-2.0, 1.0)))
    for record in run.history[1:]:
        assert record["clients"] + len(record["failed"]) == 10
        assert record["clients"] >= 3 * 2 or record["clients"] == 0
    assert np.isfinite(run.params.buffer).all()


def test_every_bucket_has_all_noise() -> None:
    """The rule's answer is a mean of few, and its noise that of a bucket: no mate need be trusted."""
    size, sites = 3000, wide(12, 3000)
    rule = at.Buckets(4, at.average())
    job = PRIVATE.replace(learner=Quadratic(size=size), rounds=1, algorithm=rule)
    few = at.secure_sum(least=3, colluders=1)
    noisy = job.private(epsilon=20.0, delta=1e-3, clip=4.0, sigma=2.0, exchange=few)
    assert (
        noisy.epsilon().epsilon
        == PRIVATE.replace(rounds=1)
        .private(epsilon=20.0, delta=1e-3, clip=4.0, sigma=2.0, exchange=at.secure_sum())
        .epsilon()
        .epsilon
    ), "each client is in one bucket"
    bare = at.Algorithm("bare", at.chain(at.mean(over=12), at.clip(4.0)), weigh="equal")
    found = (
        at.simulate(noisy, sites, seed=1).params.buffer
        - at.simulate(job.replace(algorithm=bare), sites, seed=1).params.buffer
    )
    each = 2.0 * 4.0 * np.sqrt(3 / (3 - 1)) / 3  # of the mean of a bucket of three, of whom one may collude
    assert found.std() == pytest.approx(each / np.sqrt(4), rel=0.05)


def test_a_client_is_in_one_group_of_an_attempt() -> None:
    """Moved to another bucket in between it does not go on; in none it says so."""
    local = Local(Quadratic(size=3), JOB.trained, {0: SITES[0]}, {}, Rng.of(0))
    task = Task(0, Rng.of(1), (0,), (-1,), at.Update.of({"w": np.zeros(3)}), want="note")

    def say(step: str, groups: Any) -> Any:
        note = msgspec.msgpack.encode(Step(step, 0, 0, 1.0, 2, groups))
        return SecureSum().reply(local, replace(task, note=note)).failed

    assert not say("keys", {2: ([0, 5], b"")})
    assert "begun no such attempt" in say("shares", {3: ([0, 5], b"")})[0]
    assert "none of its groups" in say("shares", {2: ([4, 5], b"")})[0]
