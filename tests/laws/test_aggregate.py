"""Laws of core/aggregate.py: sums are exact, the same in any order and any tree, and gated."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.aggregate import Points, Reply, Sum, fold, points
from atoll.core.errors import MisuseError, ProtocolError
from atoll.core.rng import Rng
from atoll.core.update import Rows, Update
from atoll.learn.kernel import spread
from atoll.learn.robust import Buckets, Gather

LIKE = Update.of({"w": np.ones((2, 3)), "b": np.full(2, 0.1)})
KEY = Rng.of(0)


def median(U):
    return np.median(U, axis=0)


def replies(seed: int, n: int, like: Update = LIKE, scale: float = 1.0) -> list[tuple[int, Reply]]:
    made = []
    for k in range(n):
        rng = Rng.of(seed).at(k).generator()
        update = like.map(lambda v: (scale * rng.normal(size=v.shape)).astype(v.dtype))  # noqa: B023
        made.append((k, Reply(update, float(rng.integers(1, 1000)), {"loss": float(rng.random())})))
    return made


def thirds(size: int, work) -> None:
    """Three parts at the same time, the last one first."""
    parts = [slice(size * k // 3, size * (k + 1) // 3) for k in (2, 1, 0)]
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(work, part) for part in parts]
    for one in done:
        one.result()


SUMS = [Sum(), Sum(spread=thirds), Sum(spread=lambda size, work: spread(size, work, 1))]


def same(a, b) -> bool:
    return a.update == b.update and (a.weight, a.count, a.metrics) == (b.weight, b.count, b.metrics)


@given(st.integers(0, 999), st.integers(1, 9), st.randoms(use_true_random=False), st.booleans())
def test_any_order_and_any_tree_give_the_same_bytes(seed, n, random, wide) -> None:
    like = LIKE if wide else LIKE.astype(np.float32)
    for make in (Sum(), Gather(median), Buckets(3, median)):
        ours = make.at(points(like, n), range(n), KEY)
        made = replies(seed, n, like)
        flat = ours.finish(fold(ours, made))
        shuffled = random.sample(made, n)
        assert same(ours.finish(fold(ours, shuffled)), flat)
        lifted = [ours.lift(*one) for one in shuffled]
        while len(lifted) > 1:
            a, b = (lifted.pop(random.randrange(len(lifted))) for _ in range(2))
            lifted.append(ours.merge(a, b))
        assert same(ours.finish(lifted[0]), flat)


@given(st.integers(0, 999), st.integers(3, 6))
def test_merge_is_associative_and_commutative(seed, n) -> None:
    ours = Sum().at(points(LIKE, n), range(n), KEY)
    a, b, c = (ours.lift(*one) for one in replies(seed, 3))

    def plain(p):
        return p.sums.tolist(), p.weight, p.count, p.metrics

    assert plain(ours.merge(ours.merge(a, b), c)) == plain(ours.merge(a, ours.merge(b, c)))
    assert plain(ours.merge(a, b)) == plain(ours.merge(b, a))


@given(st.integers(0, 999), st.integers(1, 20), st.floats(1e-6, 1e3))
def test_float64_sums_are_exact_to_1e_12(seed, n, scale) -> None:
    made = replies(seed, n, scale=scale)
    ours = Sum().at(points(LIKE, n), range(n), KEY)
    total = ours.finish(fold(ours, made))
    weight = sum(r.weight for _, r in made)
    assert total.weight == weight
    for at in range(LIKE.layout.size):
        exact = sum(Fraction(r.weight) * Fraction(float(r.update.buffer[at])) for _, r in made)
        assert abs(total.update.buffer[at] - float(exact)) <= 1e-12 * weight


@given(st.integers(0, 999), st.integers(1, 20))
def test_float32_sums_are_as_good_as_float32(seed, n) -> None:
    like = LIKE.astype(np.float32)
    made = replies(seed, n, like)
    ours = Sum().at(points(like, n), range(n), KEY)
    total = ours.finish(fold(ours, made))
    exact = sum(r.weight * r.update.buffer.astype(np.float64) for _, r in made)
    np.testing.assert_allclose(
        total.update.buffer / total.weight, exact / total.weight, rtol=0, atol=2.0**-24
    )


@given(st.integers(1, 64), st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=9))
def test_sums_in_a_ring_are_exact(bits, numbers) -> None:
    mask = (1 << bits) - 1
    layout = Update.of({"w": np.zeros(1)}).layout
    ours = Sum().at(points(Update(layout, np.zeros(1)), len(numbers)), range(len(numbers)), KEY)
    made = [
        (k, Reply(Update(layout, np.array([z & mask], np.uint64), bits=bits))) for k, z in enumerate(numbers)
    ]
    merged = reduce(ours.merge, [ours.lift(*one) for one in made])
    for partial in (fold(ours, made), merged):
        total = ours.finish(partial)
        assert total.update.bits == bits
        assert int(total.update.buffer[0]) == sum(numbers) & mask


@given(
    st.lists(st.dictionaries(st.integers(0, 20), st.integers(-99, 99), max_size=5), min_size=1, max_size=5)
)
def test_sparse_rows_sum_as_their_dense_table(tables) -> None:
    p = points(LIKE, 5)
    p = Points(p.layout, p.exponents, p.max_weight, p.cohort, p.wide, {"t": 30})
    ours = Sum().at(p, range(5), KEY)
    dense, made = np.zeros((21, 1)), []
    for k, table in enumerate(tables):
        ids = np.array(sorted(table), np.int64)
        values = np.array([[table[i]] for i in ids], np.float64).reshape(len(ids), 1)
        made.append((k, Reply(Update(LIKE.layout, LIKE.buffer, rows={"t": Rows(ids, values)}), 2.0)))
        dense[ids] += 2 * values
    for partial in (fold(ours, made), reduce(ours.merge, [ours.lift(*one) for one in reversed(made)])):
        rows = ours.finish(partial).update.rows["t"]
        full = np.zeros((21, 1))
        full[rows.ids] = rows.values
        assert np.array_equal(full, dense)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_or_out_of_range_is_refused_and_named(bad, dtype) -> None:
    like = LIKE.astype(dtype)
    ours = Sum().at(points(like, 3), range(3), KEY)
    buffer = like.buffer.copy()
    buffer[6] = bad  # the first of leaf b
    made = [*replies(1, 2, like), (7, Reply(Update(like.layout, buffer)))]
    with pytest.raises(ProtocolError, match="client 7's update of leaf 'b' is not finite or beyond"):
        ours.lift_all(made)


def test_the_largest_number_that_is_allowed_cannot_overflow_the_sum() -> None:
    p = points(LIKE.astype(np.float32), 4, max_weight=8.0, bounds={"w": 2.0, "b": 2.0})
    ours = Sum().at(p, range(4), KEY)
    most = LIKE.astype(np.float32).map(lambda v: np.full_like(v, 2.0))
    total = ours.finish(fold(ours, [(k, Reply(most, 8.0)) for k in range(4)]))
    assert total.update.buffer.tolist() == [64.0] * 8
    with pytest.raises(ProtocolError, match="beyond this round's range"):
        ours.lift(0, Reply(most.scale(2.1), 8.0))


def test_a_leaf_near_zero_keeps_room_to_move() -> None:
    # a control variate or a centred bias may cancel to 1e-300 and move by 1 in the next round
    for tiny in (1e-300, 1e-17, 0.0):
        for like in (Update.of({"w": np.ones(2), "c": np.full(2, tiny)}), Update.of({"c": np.full(2, tiny)})):
            ours = Sum().at(points(like, 3), range(3), KEY)
            total = ours.finish(ours.lift(0, Reply(like.map(np.ones_like))))
            assert total.update.buffer.tolist() == [1.0] * like.layout.size


def test_weights() -> None:
    ours = Sum().at(points(LIKE, 3, max_weight=10.0), range(3), KEY)
    total = ours.finish(fold(ours, [(0, Reply(LIKE, 99.0)), (1, Reply(LIKE, 0.0))]))
    assert total.weight == 10.0  # capped
    assert total.count == 1  # weight 0 contributes nothing
    np.testing.assert_allclose(total.update["w"], 10.0)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(MisuseError, match="finite and at least 0"):
            ours.lift(0, Reply(LIKE, wrong))
    with pytest.raises(MisuseError, match=r"take Sum\(\).at"):
        Sum().lift(0, Reply(LIKE))


def test_other_models_are_refused() -> None:
    other = LIKE.pick("w".__eq__)
    for make in (Sum(), Gather(median), Buckets(2, median)):
        ours = make.at(points(LIKE, 2), range(2), KEY)
        with pytest.raises(ProtocolError, match="client 1 answered with another model's leaves"):
            ours.lift(1, Reply(other))
    a = Sum().at(points(LIKE, 2), range(2), KEY)
    b = Sum().at(points(other, 2), range(2), KEY)
    with pytest.raises(ProtocolError, match="cannot be merged"):
        a.merge(a.lift(0, Reply(LIKE)), b.lift(1, Reply(other)))


def test_rules() -> None:
    ours = Gather(median).at(points(LIKE, 3), range(3), KEY)
    made = replies(4, 4)
    made[3] = (3, Reply(made[3][1].update, 0.0))
    total = ours.finish(fold(ours, made))
    assert total.count == 3  # a weight of 0 has no say in a rule either
    assert total.update.buffer.tolist() == median([r.update.buffer for _, r in made[:3]]).tolist()
    with pytest.raises(MisuseError, match=r"this one gave \(3,\)"):
        Gather(lambda U: U[:, 0]).at(points(LIKE, 3), range(3), KEY).finish(fold(ours, made))
    for make in (ours, Buckets(2, median).at(points(LIKE, 3), range(3), KEY)):
        with pytest.raises(MisuseError, match="weight 0: there is no mean"):
            make.finish(make.lift(0, Reply(LIKE, 0.0)))
    with pytest.raises(ProtocolError, match="client 0's update is not finite"):
        ours.lift(0, Reply(LIKE.map(lambda v: v * np.nan)))


def test_buckets_apply_the_rule_to_means_of_a_few() -> None:
    made = replies(2, 6)
    ours = Buckets(3, lambda U: U.max(axis=0)).at(points(LIKE, 6), range(6), KEY)
    groups = [[r for k, r in made if ours.place[k] == bucket] for bucket in range(3)]
    assert [len(g) for g in groups] == [2, 2, 2]
    means = [np.average([r.update.buffer for r in g], axis=0, weights=[r.weight for r in g]) for g in groups]
    np.testing.assert_allclose(ours.finish(fold(ours, made)).update.buffer, np.max(means, axis=0), rtol=1e-12)
    assert Buckets(3, median).at(points(LIKE, 6), [5, 4, 3, 2, 1, 0], KEY).place == ours.place
    assert Buckets(3, median).at(points(LIKE, 6), range(6), Rng.of(1)).place != ours.place


@given(
    st.sampled_from(SUMS),
    st.integers(0, 999),
    st.integers(1, 9),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_in_place_gives_the_same_bytes_and_touches_nothing_else(how, seed, n, dtype, mapped) -> None:
    """Adding into an own partial, merging over it and finishing over it; also one mapped from a file, and cut
    in parts that are added at the same time.
    """
    like = LIKE.astype(dtype)
    alone, ours = (s.at(points(like, n + 2), range(n + 2), KEY) for s in (Sum(), how))
    made, more = replies(seed, n, like), [(n, Reply(like, 3.0)), (n + 1, Reply(like.scale(-2), 1.0))]
    whole = alone.finish(fold(alone, made + more))
    start, other = fold(ours, made), ours.lift(*more[1])
    start.sums.flags.writeable = not mapped
    before = start.sums.copy(), other.sums.copy()
    added = fold(ours, more[:1], start)
    merged = ours.merge(added, other, own=True)
    assert np.array_equal(other.sums, before[1])
    assert np.array_equal(start.sums, before[0]) == mapped
    assert (merged.sums is start.sums) == (not mapped)
    spare = ours.finish(merged)
    assert same(spare, whole)
    own = ours.finish(merged, own=True)
    assert same(own, whole)
    assert np.shares_memory(own.update.buffer, merged.sums)


@pytest.mark.parametrize("how", SUMS, ids=["here", "thirds", "cores"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("at", [0, 1, 7, 200_001, 399_999])
def test_a_refused_reply_leaves_the_sum_it_was_to_join_as_it_was(how, bad, at) -> None:
    """Also where the fault shows only after some blocks have been added."""
    like = Update.of({"a": np.ones(200_000, np.float32), "b": np.full((2, 100_000), 2, np.float32)})
    ours = how.at(points(like, 4), range(4), KEY)
    start = fold(ours, [(0, Reply(like, 3.0, {"loss": 1.0}))])
    before = ours.finish(start)
    buffer = like.buffer.copy()
    buffer[at] = bad
    broken = [(1, Reply(like, 2.0, {"loss": 2.0})), (2, Reply(Update(like.layout, buffer), 2.0))]
    leaf = "a" if at < 200_000 else "b"
    for some in (broken, broken[1:]):
        with pytest.raises(ProtocolError, match=f"client 2's update of leaf '{leaf}'"):
            fold(ours, some, start)
        assert same(ours.finish(start), before)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.data())
def test_units_of_a_block_are_those_of_its_leaves(sizes, data) -> None:
    """However leaves and blocks fall, empty leaves too."""
    like = Update.of({f"leaf{i}": np.full(n, 2.0**i, np.float32) for i, n in enumerate(sizes)})
    p = points(like, 3, bounds={f"leaf{i}": 2.0**i for i in range(len(sizes))})
    full = np.repeat(np.exp2(p.exponents), sizes)
    if len(full):
        start = data.draw(st.integers(0, len(full) - 1))
        stop = data.draw(st.integers(start + 1, len(full)))
        units = np.broadcast_to(p.units(slice(start, stop)), (stop - start,))
        assert np.array_equal(units, full[start:stop])
