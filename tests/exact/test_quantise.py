"""Quantised and rotated updates: right in the mean, within their levels, the same bytes for the same key."""

import numpy as np
import pytest

from atoll.core.errors import ConfigError
from atoll.core.rng import Rng
from atoll.core.transform import Context, chain
from atoll.core.update import Update
from atoll.job import Job
from atoll.learn.compress import drawn, randomk, sign, topk
from atoll.learn.quantise import int2, int4, int8, levels
from atoll.learn.rotate import hadamard, rotate
from atoll.learn.server import mean
from atoll.privacy.dp import clip
from atoll.run import simulate
from atoll.wire.coded import Coded
from tests.exact.quadratic import Bowl, Quadratic, Sites, optimum

SITES = Sites([Bowl([1.0, 4.0], [1.0, -2.0], rows=3), Bowl([3.0, 1.0], [-1.0, 2.0], rows=7)])
DRAWS = 100_000


def ctx(key: int, round: int = 0) -> Context:
    return Context(Rng.of(key), round)


def sample(size: int, seed: int = 0, dtype: str = "f4") -> Update:
    return Update.of({"w": (np.random.default_rng(seed).normal(size=size) * 1e-3).astype(dtype)})


@pytest.mark.parametrize(("part", "bits"), [(int8(), 8), (int4(), 4), (int2(), 2)], ids=["8", "4", "2"])
def test_it_is_right_in_the_mean(part, bits) -> None:
    """Over 100,000 draws no entry's mean is off by as much as chance makes it once in 16,000 times."""
    v = Update.of({"w": np.array([1.0, -0.77, 0.5001, 0.3, 1e-3, -1e-4, 0.0, 0.06], np.float32)})
    wide = Update.of({"w": np.tile(v["w"], 1024 // 8 * 10)})
    sums, squares, rounds = np.zeros(8), np.zeros(8), DRAWS // 1280
    for k in range(rounds):
        sent = part.out(wide, None, ctx(k))[0]["w"].reshape(-1, 8).astype(np.float64)
        sums += sent.sum(axis=0)
        squares += np.square(sent).sum(axis=0)
    n = rounds * 1280
    spread = np.sqrt(np.maximum(squares / n - np.square(sums / n), 1e-20) / n)
    z = (sums / n - v["w"]) / np.maximum(spread, 1e-7)
    assert np.abs(z).max() < 4
    assert spread[1:4].min() > 0  # control: it is random


def test_control_rounding_to_the_nearest_is_not() -> None:
    x = np.full(1024, 0.3, np.float32)
    x[0] = 1.0
    assert abs(np.rint(x).mean() - x.mean()) > 0.29


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("part", "bits"), [(int8(), 8), (int4(), 4), (int2(), 2)], ids=["8", "4", "2"])
@pytest.mark.parametrize("size", [1, 3, 1023, 1024, 1025, 70_001])
def test_every_number_is_one_of_the_two_levels_next_to_it(part, bits, size, dtype) -> None:
    v = sample(size, dtype=dtype)
    sent, _ = part.out(v, None, ctx(1))
    assert isinstance(sent, Coded) and sent.buffer.dtype == v.buffer.dtype
    scale = np.repeat(sent.code.scales, 1024)[:size]
    assert (np.abs(sent.buffer - v.buffer) < scale * 1.001).all()
    q = sent.buffer / scale
    np.testing.assert_allclose(q, np.rint(q), atol=1e-5)
    assert np.abs(q).max() <= 2 ** (bits - 1) - 1 + 1e-5


def test_the_same_key_rounds_alike_and_another_does_not() -> None:
    v = sample(5000)
    once, again, other = (int8().out(v, None, ctx(k))[0].packed.tobytes() for k in (1, 1, 2))
    assert once == again != other


def test_odd_numbers_do_not_break_it() -> None:
    for odd in (np.nan, np.inf, -np.inf, 3e38):
        v = Update.of({"w": np.array([1.0, odd, 2.0], np.float32)})
        assert int8().out(v, None, ctx(0))[0] is v  # the aggregator must see it
    for zero in (0.0, 1e-45, 1e-38):
        v = Update.of({"w": np.array([zero, -zero], np.float32)})
        assert int8().out(v, None, ctx(0))[0].buffer.tolist() == [0.0, 0.0]
    assert int8().out(Update.of({}), None, ctx(0))[0].layout.size == 0
    assert levels(np.full(2, 2.0**112, np.float32), 8, Rng.of(0)) is not None


@pytest.mark.parametrize(
    "part",
    [int8(), int4(), int2(), rotate(), chain(rotate(), int4()), chain(topk(0.5), int8(), clip(9.0))],
    ids=str,
)
def test_training_through_it_reaches_the_optimum(part) -> None:
    job = Job(Quadratic(lr=0.01, steps=1), chain(mean(), part), rounds=1000, every=1000)
    found = simulate(job, SITES).params["w"]
    np.testing.assert_allclose(found, optimum(SITES, by_rows=True), atol=0.05)


def test_quantising_what_topk_sends_keeps_it_sparse() -> None:
    v = sample(50_000)
    sparse, _ = topk(0.05).out(v, v.zeros(), ctx(3))
    small, _ = int8().out(sparse, None, ctx(3))
    assert small.code.where is sparse.code.where and small.packed.nbytes < 0.6 * sparse.packed.nbytes
    bounded, _ = clip(1e-3).out(small, None, ctx(3))
    assert isinstance(bounded, Coded) and bounded.norm() <= 1e-3
    assert abs(bounded.packed.nbytes - small.packed.nbytes) < 64


def test_a_sampled_threshold_sends_about_as_many_and_the_largest() -> None:
    v = sample(400_000)
    sent, left = topk(0.05).out(v, v.zeros(), ctx(3))
    exact, _ = topk(0.05, exact=True).out(v, v.zeros(), ctx(3))
    k, kept = len(sent.code.what), np.abs(sent.code.what).min()
    assert len(exact.code.what) == 20_000 and 18_500 < k < 21_500 and k != 20_000
    assert (np.abs(left.buffer) < kept).sum() == 400_000
    np.testing.assert_array_equal(sent.buffer + left.buffer, v.buffer)
    assert topk(0.05).out(v, v.zeros(), ctx(3))[0].packed.tobytes() == sent.packed.tobytes()


def test_a_sampled_threshold_sends_something_and_no_zeros() -> None:
    for few in (1, 100):
        v = np.zeros(100_000, np.float32)
        v[:few] = 1.0
        sent, _ = topk(0.1).out(Update.of({"w": v}), Update.of({"w": 0 * v}), ctx(3))
        assert len(sent.code.what) == few
    sent, _ = topk(0.1).out(Update.of({"w": 0 * v}), Update.of({"w": 0 * v}), ctx(3))
    assert len(sent.code.what) == 1


def test_randomk_is_the_same_for_all_clients_of_a_round_and_reaches_everybody_in_time() -> None:
    v, part = sample(10_000), randomk(0.1, seed=4)
    one, other = (part.out(v, v.zeros(), ctx(k, 6))[0] for k in (1, 2))
    assert one.code.where == other.code.where == drawn(10_000, 0.1, 4, 6)
    assert one.packed.nbytes < 4.1 * 1000  # it names no place
    both = (one + other).buffer
    assert np.count_nonzero(both) <= 1000
    seen = np.zeros(10_000, bool)
    for r in range(120):
        places = drawn(10_000, 0.1, 4, r).places(10_000)
        assert len(places) == 1000 and (np.diff(places) > 0).all()
        seen[places] = True
    assert seen.all()


@pytest.mark.parametrize("make", [topk, randomk])
def test_wrong_values_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="fraction must be above 0 and at most 1"):
        make(1.5)
    with pytest.raises(ConfigError, match="bits must be 1, 2, 4 or 8"):
        make(0.5, bits=3)


def test_the_hadamard_transform_is_scipys() -> None:
    reference = pytest.importorskip("scipy.linalg").hadamard(256) / 16
    x = np.random.default_rng(0).normal(size=(3, 256))
    turned = x.copy()
    hadamard(turned)
    np.testing.assert_allclose(turned, x @ reference, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 1024, 40_000])
def test_a_rotation_keeps_the_length_and_spreads_what_stands_out(size) -> None:
    part, v = rotate(), Update.of({"w": np.eye(1, size, size // 2)[0], "b": np.ones(3)})
    sent, _ = part.out(v, None, ctx(0))
    assert sent.norm() == pytest.approx(v.norm())
    assert np.abs(sent["w"]).max() <= max(2.0 ** -((size.bit_length() - 1) // 2), 1 / 32) * 1.5 or size < 4
    back, _ = part.back(sent, None, ctx(0))
    np.testing.assert_allclose(back.buffer, v.buffer, atol=1e-12)


def test_another_seed_rotates_another_way() -> None:
    v = sample(500)
    assert rotate(seed=1).out(v, None, ctx(0))[0] != rotate().out(v, None, ctx(1))[0]
    assert rotate().out(v, None, ctx(0))[0] == rotate().out(v, None, ctx(1))[0]  # all clients alike


def test_rotated_first_four_bits_lose_less_where_numbers_differ_much() -> None:
    v = sample(20_000)
    v = v.map(lambda x: x * np.where(np.arange(x.size) % 100, np.float32(1), np.float32(50)))
    errors = []
    for part in (int4(), chain(rotate(), int4())):
        state = part.start(v, "out")
        sent, _ = part.out(v, state, ctx(1))
        back, _ = part.back(Update(sent.layout, sent.buffer), state, ctx(1))
        errors.append((back - v).norm() / v.norm())
    assert errors[1] < errors[0] / 2


def test_sign_has_a_scale_for_each_block() -> None:
    v = Update.of({"w": np.concatenate([np.full(1024, 3.0), np.full(10, -0.5)]).astype("f4")})
    sent, left = sign().out(v, v.zeros(), ctx(0))
    assert sent == v and left == v.zeros()
    assert sent.packed.nbytes < 240
