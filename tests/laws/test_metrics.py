"""Metrics form a commutative monoid bit for bit, survive the wire, and refuse what they cannot hold."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core import metrics
from atoll.core.errors import CodecError, MisuseError
from atoll.core.metrics import (
    AUC,
    Confusion,
    Count,
    Histogram,
    Mean,
    MinMax,
    Quantiles,
    lift,
    merge_all,
    tally,
)

any_float = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
weights = st.floats(0, 1e300)
values = st.lists(any_float, max_size=20)


def wide(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Enough different values that a sketch must coarsen: 3,000 over a seeded number of octaves."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=3000) * 2.0 ** rng.uniform(0, rng.choice([0, 8, 500]), 3000))


quantiles = st.one_of(values.map(Quantiles), st.integers(0, 50).map(lambda seed: Quantiles(wide(seed))))
scored = st.lists(st.tuples(st.integers(0, 1), any_float), max_size=20)
aucs = st.one_of(
    scored.map(lambda rows: AUC([t for t, _ in rows], [s for _, s in rows])),
    st.integers(0, 50).map(lambda seed: AUC(wide(seed) > 0.3, wide(seed + 1))),
)
labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20)
one_kind: st.SearchStrategy[Any] = st.sampled_from(
    [
        st.builds(Mean, any_float, weights),
        st.builds(Count, st.integers(0, 10**9)),
        values.map(MinMax),
        values.map(lambda v: Histogram([-1.0, 0.0, 2.5], v)),
        labels.map(lambda rows: Confusion(4, [t for t, _ in rows], [g for _, g in rows])),
        quantiles,
        aucs,
    ]
)
NEUTRAL: dict[str, Any] = {
    "mean": Mean(0, 0),
    "count": Count(),
    "minmax": MinMax(),
    "histogram": Histogram([-1.0, 0.0, 2.5]),
    "confusion": Confusion(4),
    "quantiles": Quantiles(),
    "auc": AUC(),
}


def same(a: Any, b: Any) -> bool:
    return bool(a == b) and json.dumps(metrics.to_plain(a)) == json.dumps(metrics.to_plain(b))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_merge_is_a_commutative_monoid_bit_for_bit(data: st.DataObject) -> None:
    kind: Any = data.draw(one_kind)
    a, b, c = data.draw(kind), data.draw(kind), data.draw(kind)
    assert same(a.merge(b), b.merge(a))
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))
    neutral = NEUTRAL[a.kind]
    assert same(a.merge(neutral), a)
    assert same(neutral.merge(a), a)
    assert hash(a.merge(b)) == hash(b.merge(a))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_wire_returns_the_same_metric(data: st.DataObject) -> None:
    m: Any = data.draw(data.draw(one_kind))
    assert same(metrics.from_plain(json.loads(json.dumps(metrics.to_plain(m)))), m)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 3999), min_size=1, max_size=6))
def test_a_sketch_of_parts_is_the_sketch_of_the_whole(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    v = rng.lognormal(sigma=rng.choice([0.1, 3, 90]), size=4000) * rng.choice([-1, 1], 4000)
    parts = [Quantiles(part) for part in np.split(v, sorted(cuts))]
    total = Quantiles()
    for k in rng.permutation(len(parts)):
        total = total.merge(parts[k])
    assert same(total, Quantiles(v))


@given(st.floats(2.0**-27, 1e300), st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=9))
def test_the_mean_of_equal_values_is_that_value(value: float, ws: list[float]) -> None:
    total = Mean(0, 0)
    for w in ws:
        total = total.merge(Mean(value, w))
    assert total.value == value


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 10**6)), min_size=1, max_size=30))
def test_the_mean_is_the_weighted_mean(rows: list[tuple[float, int]]) -> None:
    total = Mean(0, 0)
    for v, w in rows:
        total = total.merge(Mean(v, w))
    mass = sum(w for _, w in rows)
    if mass:
        assert total.value == pytest.approx(math.fsum(v * w for v, w in rows) / mass, rel=1e-12, abs=1e-12)
        assert total.weight == mass
    else:
        assert math.isnan(total.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_apart(bad: float) -> None:
    assert Mean(3.0, 5).merge(Mean(bad, 7)) == _with_odd(Mean(3.0, 5))
    assert Histogram([0, 1], [0.5, bad]).odd == 1
    assert Histogram([0, 1], [0.5, bad]).value == [1]
    assert Quantiles([2.0, bad]).at(1) == 2.0
    assert MinMax([bad, 1.0]).value == (1.0, 1.0)
    assert AUC([0, 1, 1], [0.1, 0.2, bad]).value == 1.0
    assert AUC([0, 1, 1], [0.1, 0.2, bad]).odd == 1
    assert math.isnan(Mean(bad).value)


def _with_odd(m: Mean) -> Mean:
    odd = metrics.from_plain([*metrics.to_plain(m)[:-1], 1])
    assert isinstance(odd, Mean)
    return odd


def test_no_finite_size_overflows() -> None:
    most = float(np.finfo(np.float64).max)
    assert Mean(most, most).merge(Mean(most, 3)).value == most
    assert Mean(-most, most).merge(Mean(most, most)).value == 0
    assert MinMax([-most, most]).value == (-most, most)
    assert Quantiles([-most, most]).at(0.5) == -most
    assert AUC([0, 1], [-most, most]).value == 1
    coarse = Quantiles(np.concatenate([wide(2) * 2.0**500, [most, -most, 5e-324]]))
    assert coarse.at(1) == pytest.approx(most, rel=2**-7)


@given(st.dictionaries(st.sampled_from("abc"), any_float), st.dictionaries(st.sampled_from("abc"), any_float))
def test_merge_all_keeps_every_name(a: dict[str, float], b: dict[str, float]) -> None:
    left, right = ({k: lift(v) for k, v in d.items()} for d in (a, b))
    both = merge_all(left, right)
    assert list(both) == sorted(a.keys() | b.keys())
    assert list(both.items()) == list(merge_all(right, left).items())
    assert all(both[k] == left[k] for k in a.keys() - b.keys())


@given(st.lists(st.tuples(any_float, st.integers(0, 99)), max_size=8), st.sampled_from([float, np.float32]))
def test_tally_is_lifting_and_merging(rows: list[tuple[float, int]], number: Any) -> None:
    with np.errstate(over="ignore"):  # float64 values beyond float32 become infinite: odd, as they should
        reports = [({"loss": number(v), "all": Count(w)}, w) for v, w in rows]
    slow: dict[str, Any] = {}
    for metric, w in reports:
        slow = merge_all(slow, {name: lift(value, w) for name, value in metric.items()})
    assert tally(reports) == slow


def test_lift_takes_numbers_and_passes_metrics() -> None:
    assert lift(0.5, 3) == Mean(0.5, 3)
    assert lift(np.float32(0.5), 3) == lift(np.array(0.5), 3) == Mean(0.5, 3)
    assert lift(True) == Mean(1)
    q = Quantiles([1])
    assert lift(q, 3) is q
    with pytest.raises(MisuseError, match="number"):
        lift("0.5x")
    with pytest.raises(MisuseError, match="number"):
        tally([({"loss": "low"}, 1)])


def test_metrics_are_values() -> None:
    for m in NEUTRAL.values():
        with pytest.raises((AttributeError, TypeError)):  # dataclasses with slots raise either
            m.odd = 3
    with pytest.raises(ValueError, match="read-only"):
        Histogram([0, 1]).counts[0] = 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Mean(1), Count(1)),
        (Count(1), Mean(1)),
        (Histogram([0, 1]), Histogram([0, 2])),
        (Confusion(2), Confusion(3)),
        (Quantiles(), AUC()),
        (MinMax(), Quantiles()),
    ],
)
def test_unlike_metrics_do_not_merge(a: Any, b: Any) -> None:
    with pytest.raises(MisuseError):
        a.merge(b)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mean(1, -1),
        lambda: Mean(1, math.nan),
        lambda: Mean(1, math.inf),
        lambda: Count(-1),
        lambda: Histogram([1]),
        lambda: Histogram([1, 1]),
        lambda: Histogram([0, math.inf]),
        lambda: Confusion(0),
        lambda: Confusion(2, [2], [0]),
        lambda: Confusion(2, [0.0], [0]),
        lambda: Confusion(2, [0], []),
        lambda: AUC([2], [0.5]),
        lambda: AUC([1], []),
        lambda: Quantiles([1]).at(1.1),
    ],
)
def test_misuse_is_refused(make: Any) -> None:
    with pytest.raises(MisuseError):
        make()


BIG = 1 << 63


@pytest.mark.parametrize(
    "plain",
    [
        [],
        "mean",
        ["nosuch", 1],
        ["mean", [0], [0]],
        ["mean", [1], [0], 0],
        ["mean", [0], [-1], 0],
        ["mean", [0, 0], [1], 0],
        ["mean", [0.5], [1], 0],
        ["mean", [BIG], [1], 0],
        ["mean", [0] * 65, [1], 0],
        ["mean", [0] * 40 + [1], [1], 0],
        ["mean", [True], [1], 0],
        ["count", -1],
        ["count", 1 << 48],
        ["histogram", [0.0, 0.0], [0, 0, 0], 0],
        ["histogram", [0.0, math.nan], [0, 0, 0], 0],
        ["histogram", [0.0, 1.0], [0, 0], 0],
        ["histogram", [0.0, 1.0], [0, -1, 0], 0],
        ["histogram", [0.0, 1.0], [0, 1 << 48, 0], 0],
        ["confusion", [10**9], [[0]], 0],
        ["confusion", [2], [[0, 0]], 0],
        ["confusion", [2], [[0, 0], [0]], 0],
        ["quantiles", 0, [2, 1], [[1], [1]], 0],
        ["quantiles", 0, [1], [[0]], 0],
        ["quantiles", 47, [1], [[1]], 0],
        ["quantiles", 0, [0x7FF0 << 48], [[1]], 0],
        ["quantiles", 0, list(range(2049)), [[1]] * 2049, 0],
        ["auc", 0, [1], [[1]], 0],
        ["minmax", [1.0, 10**400], [2], 0],
        ["minmax", [1.0, 0.0], [2], 0],
        ["minmax", [], [2], 0],
        ["minmax", [1.0, 2.0], [0], 0],
    ],
)
def test_what_no_peer_could_have_made_is_refused(plain: Any) -> None:
    with pytest.raises(CodecError):
        metrics.from_plain(plain)


def test_two_kinds_cannot_share_a_name() -> None:
    with pytest.raises(MisuseError, match="already"):
        metrics.metric("mean")(Count)
