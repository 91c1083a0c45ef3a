"""Metrics that merge: what a federation may say about its models without gathering rows.

A metric is a frozen value made from local data; without data it is the neutral element:

    Mean(value, weight)          Count(n)                      MinMax(values)
    Histogram(edges, values)     Quantiles(values)
    Confusion(classes, truth, guess)                           AUC(truth, score)

Law (tests/laws/test_metrics.py): `merge` is an associative, commutative monoid *bit for bit*, so
the result does not depend on arrival order or on the tree that merged it. Hence every state here
is made of integers: counts, or totals in fixed binary units; floats are added nowhere.

Values that are NaN or infinite join no total and no count: they are counted in `odd`, and
`value` speaks of the finite ones only (NaN where there are none). One diverged client therefore
shows as `odd == 1` and leaves the others' mean readable.

Quantiles and AUC stand on one sketch, `_Buckets`. t-digest and KLL lost: their state depends on
the order of merging (KLL's also on coin tosses), so flat and tree would differ. DDSketch with
fixed buckets is order-free, but spends its resolution where no data are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import CodecError, MisuseError

Counts = NDArray[np.int64]
Plain = list[Any]  # numbers and lists of them: what the wire carries


class Metric(Protocol):
    """What a mergeable metric offers; own ones join the wire with `@metric("name")`.

    `merge` and `from_plain` return the metric's own kind.
    """

    kind: ClassVar[str]

    @property
    def value(self) -> Any:
        """What a report shows."""

    def merge(self, other: Any) -> Any:
        """Both together. Raises MisuseError for another kind or other settings."""

    def to_plain(self) -> Plain:
        """Numbers and lists only; equal metrics give equal lists."""

    @classmethod
    def from_plain(cls, plain: Plain) -> Any:
        """The inverse. Raises CodecError for anything `to_plain` could not have made."""


M = TypeVar("M", bound=type[Any])
kinds: dict[str, Any] = {}


def metric(name: str) -> Callable[[M], M]:
    """Let the decorated class travel under this short name."""

    def register(cls: M) -> M:
        if kinds.setdefault(name, cls) is not cls:
            raise MisuseError(f"there already is a metric called {name!r}: choose another name")
        cls.kind = name
        return cls

    return register


def lift(value: Any, weight: float = 1.0) -> Any:
    """A number becomes Mean(value, weight); a metric stays as it is."""
    if type(value) is float or not hasattr(value, "merge"):
        return Mean(value, weight)
    return value


def merge_all(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Merge by name; a name on one side only is kept. Sorted, so the bytes do not tell the order."""
    both = {**b, **a}
    return {name: a[name].merge(b[name]) if name in a and name in b else both[name] for name in sorted(both)}


def tally(reported: Iterable[tuple[Mapping[str, Any], float]]) -> dict[str, Any]:
    """All clients' metrics merged, each client's plain numbers by its weight.

    The same as lifting each and merging all, in a fraction of the time.
    """
    numbers: dict[str, tuple[list[float], list[float]]] = {}
    merged: dict[str, Any] = {}
    for metrics, weight in reported:
        for name, value in metrics.items():
            if hasattr(value, "merge"):
                merged[name] = merged[name].merge(value) if name in merged else value
            else:
                values, weights = numbers.setdefault(name, ([], []))
                values.append(value)
                weights.append(weight)
    means = {name: Mean.over(values, weights) for name, (values, weights) in numbers.items()}
    return merge_all(merged, means)


def to_plain(m: Metric) -> Plain:
    """`[kind, *state]`: the form the wire carries."""
    return [m.kind, *m.to_plain()]


def from_plain(plain: Plain) -> Any:
    """A metric from `[kind, *state]`. Raises CodecError."""
    if not (isinstance(plain, list) and plain and isinstance(plain[0], str) and plain[0] in kinds):
        raise CodecError(
            f"a metric is a list [kind, ...] with a kind of {sorted(kinds)}, got {str(plain)[:40]!r}"
        )
    return kinds[plain[0]].from_plain(plain[1:])


def _unlike(mine: Any, other: object) -> MisuseError:
    return MisuseError(f"cannot merge {mine.kind} with {type(other).__name__}: one name, one kind of metric")


# Exact totals: a weight in units of 2^-48, a value in units of 2^-80, their product in 2^-128.
# A value of at least 2^-27 in size is held exactly, so the mean of equal values is that value to
# the last bit whatever the weights; smaller ones to 4e-25. Python's integers do not overflow.
_WEIGHT, _VALUE = 48, 80
_HUGE = 2.0**900  # from here on x * 2.0**80 might overflow, and x is an integer anyway


def _real(x: Any) -> float:
    """A Python float: in float32, as learners often give, the units below would overflow."""
    try:
        return float(x)
    except (TypeError, ValueError):
        raise MisuseError(f"a metric is a number or has merge(); got {type(x).__name__}") from None


def _units(x: float, bits: int) -> int:
    return round(x * 2.0**bits) if -_HUGE < x < _HUGE else int(x) << bits


@metric("mean")
@dataclass(frozen=True, slots=True, init=False)
class Mean:
    """A weighted mean, exact in any order of merging.

    `weight`: finite, >= 0, in practice a number of rows; resolved to 2^-48. `total` and `mass`:
    sums of value x weight and of weight, in units of 2^-128 and 2^-48. `odd`: how many values
    were NaN or infinite.

    >>> Mean(0.5, 30).merge(Mean(0.8, 10)).value
    0.575
    """

    kind: ClassVar[str] = "mean"
    total: int
    mass: int
    odd: int

    def __init__(self, value: float, weight: float = 1.0) -> None:
        value, weight = _real(value), _real(weight)
        if not 0 <= weight < math.inf:
            raise MisuseError(f"a metric's weight must be finite and at least 0, got {weight}")
        finite = math.isfinite(value)
        mass = _units(weight, _WEIGHT) if finite else 0
        _fill(self, _units(value, _VALUE) * mass if finite else 0, mass, 0 if finite else 1)

    @classmethod
    def over(cls, values: Sequence[float], weights: Sequence[float]) -> Mean:
        """The mean of many at once: `Mean(v, w)` of each, merged. At least one."""
        total = mass = odd = 0
        for value, weight in zip(map(_real, values), map(_real, weights), strict=True):
            if math.isfinite(value) and 0 <= weight < math.inf:
                units = _units(weight, _WEIGHT)
                total += _units(value, _VALUE) * units
                mass += units
            else:
                odd += cls(value, weight).odd
        made: Mean = object.__new__(cls)
        _fill(made, total, mass, odd)
        return made

    @property
    def value(self) -> float:
        """The mean of the finite values, NaN where they weigh nothing."""
        return self.total / (self.mass << _VALUE) if self.mass else math.nan

    @property
    def weight(self) -> float:
        """The total weight of the finite values."""
        return self.mass / (1 << _WEIGHT)

    def merge(self, other: Mean) -> Mean:
        if type(other) is not Mean:
            raise _unlike(self, other)
        made: Mean = object.__new__(Mean)
        _fill(made, self.total + other.total, self.mass + other.mass, self.odd + other.odd)
        return made

    def to_plain(self) -> Plain:
        return [_limbs(self.total), _limbs(self.mass), self.odd]

    @classmethod
    def from_plain(cls, plain: Plain) -> Mean:
        total, mass, odd = _fields(plain, 3)
        made = object.__new__(cls)
        _fill(made, _join(total), _join(mass), _natural(odd))
        if made.mass < 0 or abs(made.total) > (made.mass << _VALUE) * int(_MAX):
            raise CodecError("a mean's weight must be at least 0, and its value finite")
        return made


def _fill(mean: Mean, total: int, mass: int, odd: int) -> None:
    object.__setattr__(mean, "total", total)
    object.__setattr__(mean, "mass", mass)
    object.__setattr__(mean, "odd", odd)


@metric("count")
@dataclass(frozen=True, slots=True)
class Count:
    """How many: rows, clients, refusals. `n`: an integer >= 0."""

    kind: ClassVar[str] = "count"
    n: int = 0

    def __post_init__(self) -> None:
        if self.n < 0:
            raise MisuseError(f"a count must be at least 0, got {self.n}")

    @property
    def value(self) -> int:
        return self.n

    def merge(self, other: Count) -> Count:
        if type(other) is not Count:
            raise _unlike(self, other)
        return Count(self.n + other.n)

    def to_plain(self) -> Plain:
        return [int(self.n)]

    @classmethod
    def from_plain(cls, plain: Plain) -> Count:
        return cls(_natural(*_fields(plain, 1)))


class _Counted:
    """Integer counts in `counts`, NaN and infinities in `odd`, and `terms` that must agree."""

    __slots__ = ("counts", "odd", "terms")
    kind: ClassVar[str]
    terms: tuple[float, ...]
    counts: Counts
    odd: int

    def _set(self, terms: tuple[float, ...], counts: Counts, odd: int) -> Self:
        counts.flags.writeable = False
        for name, field in (("terms", terms), ("counts", counts), ("odd", odd)):
            object.__setattr__(self, name, field)
        return self

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a metric is a value: {name!r} cannot be set")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_plain() == other.to_plain()

    def __hash__(self) -> int:
        return hash((self.kind, self.terms, self.counts.tobytes(), self.odd))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self.counts.sum())} counted, {self.odd} odd)"

    def _check(self, other: Any) -> None:
        if type(other) is not type(self):
            raise _unlike(self, other)
        if other.terms != self.terms:
            raise MisuseError(
                f"cannot merge {self.kind} made with different settings: use the same everywhere"
            )

    def merge(self, other: Self) -> Self:
        self._check(other)
        made = object.__new__(type(self))
        return made._set(self.terms, self.counts + other.counts, self.odd + other.odd)

    def to_plain(self) -> Plain:
        return [list(self.terms), self.counts.tolist(), self.odd]


@metric("histogram")
class Histogram(_Counted):
    """How many values fall between `edges` (increasing, finite, at least two).

    Bins as in numpy.histogram, the last one closed; what lies outside is kept in `under`, `over`.
    """

    __slots__ = ()

    def __init__(self, edges: ArrayLike, values: ArrayLike = ()) -> None:
        terms = tuple(np.asarray(edges, np.float64).reshape(-1).tolist())
        ordered = all(a < b for a, b in pairwise(terms))
        if len(terms) < 2 or not ordered or not all(map(math.isfinite, terms)):
            raise MisuseError("edges must be at least two finite numbers, each larger than the one before")
        v, odd = _finite(values)
        place = np.searchsorted(terms, v, side="right")
        place[v == terms[-1]] = len(terms) - 1
        self._set(terms, np.bincount(place, minlength=len(terms) + 1), odd)

    @property
    def value(self) -> list[int]:
        """Counts per bin, len(edges) - 1 of them."""
        return [int(n) for n in self.counts[1:-1]]

    @property
    def under(self) -> int:
        return int(self.counts[0])

    @property
    def over(self) -> int:
        return int(self.counts[-1])

    @classmethod
    def from_plain(cls, plain: Plain) -> Histogram:
        terms, counts, odd = _fields(plain, 3)
        empty: Histogram = _or_codec(lambda: cls(_numbers(terms)))
        return empty._set(empty.terms, _counts(counts, empty.counts.shape), _natural(odd))


@metric("confusion")
class Confusion(_Counted):
    """How often each true class was taken for each other one: rows truth, columns guess.

    `classes`: how many, 1..1000. `truth`, `guess`: (n,) integers in 0..classes-1.
    """

    __slots__ = ()

    def __init__(self, classes: int, truth: ArrayLike = (), guess: ArrayLike = ()) -> None:
        if not 1 <= classes <= 1000:
            raise MisuseError(f"classes must be 1..1000, got {classes}")
        t, g = np.asarray(truth).reshape(-1), np.asarray(guess).reshape(-1)
        if t.shape != g.shape:
            raise MisuseError(f"truth and guess must have one length, got {len(t)} and {len(g)}")
        for name, labels in (("truth", t), ("guess", g)):
            if len(labels) and (
                labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() >= classes
            ):
                raise MisuseError(f"{name} must hold integers in 0..{classes - 1}: number the classes first")
        cell = t.astype(np.int64) * classes + g.astype(np.int64)
        self._set((classes,), np.bincount(cell, minlength=classes**2).reshape(classes, classes), 0)

    @property
    def value(self) -> list[list[int]]:
        """The matrix, (classes, classes)."""
        matrix: list[list[int]] = self.counts.tolist()
        return matrix

    @property
    def accuracy(self) -> float:
        """Right guesses by all, NaN where there are none."""
        total = int(self.counts.sum())
        return int(self.counts.trace()) / total if total else math.nan

    @property
    def recall(self) -> NDArray[np.float64]:
        """Per true class, how many were found: (classes,), 0 for a class nobody has."""
        return _share(self.counts.diagonal(), self.counts.sum(1))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Per guessed class, how many were right: (classes,), 0 for a class nobody guessed."""
        return _share(self.counts.diagonal(), self.counts.sum(0))

    @property
    def f1(self) -> NDArray[np.float64]:
        """Per class, the harmonic mean of precision and recall: (classes,)."""
        return _share(2 * self.counts.diagonal(), self.counts.sum(0) + self.counts.sum(1))

    @classmethod
    def from_plain(cls, plain: Plain) -> Confusion:
        terms, counts, odd = _fields(plain, 3)
        empty: Confusion = _or_codec(lambda: cls(_natural(*_fields(terms, 1))))
        return empty._set(empty.terms, _counts(counts, empty.counts.shape), _natural(odd))


# A float64 read as an integer keeps its order, and the top bits of that integer are a bucket:
# sign, exponent and some bits of the fraction. A sketch drops as many low bits (`shift`) as it
# must to hold at most `_SIZE` occupied buckets, and never more than `_COARSEST`. That shift only
# depends on the multiset of values: a union needs at least the shift of each part, and each part
# kept what is needed to find it. So merging in any order gives the same bytes. Below _SIZE
# distinct values nothing is dropped and everything is exact; at worst (more than 32 full octaves)
# 6 bits of the fraction stay and a value is known to 1 part in 128.
_SIZE = 2048
_COARSEST = 46


class _Buckets(_Counted):
    """Counts of values in adaptive buckets: `keys` (m,) increasing, `counts` (m, columns).

    `terms` is empty: all sketches can be merged.
    """

    __slots__ = ("keys", "shift")
    columns: ClassVar[int] = 1
    keys: Counts
    shift: int

    def _sketch(self, keys: Counts, counts: Counts, shift: int, odd: int) -> Self:
        """Unite equal keys, then coarsen as far as needed."""
        keys, counts = _unite(keys, counts)
        if len(keys) > _SIZE and shift < _COARSEST:
            gaps = (keys[1:] ^ keys[:-1]).view(np.uint64)
            need = int(np.partition(gaps, -_SIZE)[-_SIZE]).bit_length()
            more = min(need, _COARSEST - shift)
            keys, counts = _unite(keys >> more, counts)
            shift += more
        keys.flags.writeable = False
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "shift", shift)
        return self._set((), counts, odd)

    def merge(self, other: Self) -> Self:
        self._check(other)
        shift = max(self.shift, other.shift)
        keys = np.concatenate([self.keys >> (shift - self.shift), other.keys >> (shift - other.shift)])
        counts = np.concatenate([self.counts, other.counts])
        return object.__new__(type(self))._sketch(keys, counts, shift, self.odd + other.odd)

    def to_plain(self) -> Plain:
        return [self.shift, self.keys.tolist(), self.counts.tolist(), self.odd]

    @classmethod
    def from_plain(cls, plain: Plain) -> Self:
        shift, keys, counts, odd = _fields(plain, 4)
        k = _integers(keys)
        c = _counts(counts, (len(k), cls.columns))
        if _natural(shift) > _COARSEST or np.any(k[1:] <= k[:-1]) or (len(k) > _SIZE and shift < _COARSEST):
            raise CodecError("a sketch's keys must increase, as few of them as its shift allows")
        top = _keys(np.array([-_MAX, _MAX])) >> shift
        if len(k) and not (top[0] <= k[0] and k[-1] <= top[1] and bool(c.any(axis=1).all())):
            raise CodecError("a sketch's buckets must be finite numbers, and none of them empty")
        return object.__new__(cls)._sketch(k, c, shift, _natural(odd))

    def _centres(self) -> NDArray[np.float64]:
        low = _floats(self.keys << self.shift)
        high = _floats((self.keys << self.shift) | ((1 << self.shift) - 1))
        return low / 2 + high / 2 if self.shift else low


@metric("quantiles")
class Quantiles(_Buckets):
    """Order statistics of numbers; exact while at most 2,048 of them differ.

    Beyond that `at(q)` is a value from the bucket that holds the true quantile: always within
    0.8 % of it, and off in rank by at most `rank_error`, which the sketch knows: the largest
    bucket's share. That is far below 1 % for data of usual shapes (tests/against). Not promised:
    a small rank error where over 2,048 values crowd together at a scale far below that of the
    rest; the price of being free of order.

    >>> Quantiles([3, 1, 2]).at(0.5)
    2.0
    """

    __slots__ = ()

    def __init__(self, values: ArrayLike = ()) -> None:
        v, odd = _finite(values)
        self._sketch(_keys(v), np.ones((len(v), 1), np.int64), 0, odd)

    def at(self, q: float) -> float:
        """The smallest value with at least a share `q` (0..1) at or below it; NaN if empty."""
        if not 0 <= q <= 1:
            raise MisuseError(f"a quantile is asked for by a share in 0..1, got {q}")
        ranks = self.counts[:, 0].cumsum()
        if not len(ranks):
            return math.nan
        place = np.searchsorted(ranks, max(1, math.ceil(q * int(ranks[-1]))))
        return float(self._centres()[place])

    @property
    def value(self) -> dict[str, float]:
        """Five quantiles by name."""
        return {f"p{p}": self.at(p / 100) for p in (5, 25, 50, 75, 95)}

    @property
    def rank_error(self) -> float:
        """A bound on the error in rank of any `at(q)`, as a share of all values."""
        return int(self.counts.max()) / int(self.counts.sum()) if self.shift else 0.0


@metric("auc")
class AUC(_Buckets):
    """Area under the ROC curve; exact while at most 2,048 scores differ, else within `error`.

    `truth`: (n,) of 0 and 1. `score`: (n,), larger for 1; probabilities or, finer, logits. A NaN or
    infinite score counts in `odd` and not in the curve.
    """

    __slots__ = ()
    columns = 2

    def __init__(self, truth: ArrayLike = (), score: ArrayLike = ()) -> None:
        t, s = np.asarray(truth).reshape(-1), np.asarray(score, np.float64).reshape(-1)
        if t.shape != s.shape or not np.isin(t, (0, 1)).all():
            raise MisuseError("truth must hold 0 and 1, one for each score")
        keep = np.isfinite(s)
        counts = np.stack([t[keep] == 0, t[keep] == 1], axis=1).astype(np.int64)  # (n, 2)
        self._sketch(_keys(s[keep]), counts, 0, int(len(s) - keep.sum()))

    def _pairs(self) -> tuple[int, int, int]:
        """Pairs of a negative and a positive: all, rightly ordered, in one bucket."""
        n, p = self.counts[:, 0], self.counts[:, 1]
        below = n.cumsum() - n
        total = int(n.sum()) * int(p.sum())
        return total, _dot(below, p), _dot(n, p)

    @property
    def value(self) -> float:
        """The share of pairs in right order, ties as half; NaN without both classes."""
        total, right, tied = self._pairs()
        return (2 * right + tied) / (2 * total) if total else math.nan

    @property
    def error(self) -> float:
        """A bound on |value - exact|: half the pairs that share a bucket, 0 if none were united."""
        total, _, tied = self._pairs()
        return tied / (2 * total) if total and self.shift else 0.0


@metric("minmax")
class MinMax(_Counted):
    """The smallest and the largest value, and how many there were."""

    __slots__ = ()

    def __init__(self, values: ArrayLike = ()) -> None:
        v, odd = _finite(values)
        ends = (float(v.min()), float(v.max())) if len(v) else ()
        self._set(ends, np.array([len(v)]), odd)

    @property
    def value(self) -> tuple[float, float]:
        """(smallest, largest), NaN where there are none."""
        return (self.terms[0], self.terms[1]) if self.terms else (math.nan, math.nan)

    def merge(self, other: MinMax) -> MinMax:
        if type(other) is not MinMax:
            raise _unlike(self, other)
        both = self.terms + other.terms
        ends = (min(both), max(both)) if both else ()
        return object.__new__(MinMax)._set(ends, self.counts + other.counts, self.odd + other.odd)

    @classmethod
    def from_plain(cls, plain: Plain) -> MinMax:
        terms, counts, odd = _fields(plain, 3)
        ends, n = tuple(map(float, _numbers(terms))), _counts(counts, (1,))
        if (len(ends) == 2) != bool(n[0]) or len(ends) not in (0, 2) or ends != tuple(sorted(ends)):
            raise CodecError(
                "a minmax holds two finite numbers in order and how many values it saw, or nothing"
            )
        return object.__new__(cls)._set(ends, n, _natural(odd))


def _share(part: Counts, whole: Counts) -> NDArray[np.float64]:
    """part / whole, 0 where the whole is 0."""
    return np.true_divide(part, np.maximum(whole, 1), dtype=np.float64)


_MAX = float(np.finfo(np.float64).max)


def _finite(values: ArrayLike) -> tuple[NDArray[np.float64], int]:
    """The finite values, flat, and how many others there were; -0.0 becomes 0.0."""
    v = np.asarray(values, np.float64).reshape(-1) + 0.0
    keep = np.isfinite(v)
    return v[keep], int(len(v) - keep.sum())


def _keys(v: NDArray[np.float64]) -> Counts:
    """Integers in the order of the floats: negative ones have all but the sign turned."""
    k = np.asarray(v + 0.0).view(np.int64)
    return k ^ ((k >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))


def _floats(k: Counts) -> NDArray[np.float64]:
    """The inverse of `_keys`."""
    return (k ^ ((k >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))).view(np.float64)


def _unite(keys: Counts, counts: Counts) -> tuple[Counts, Counts]:
    """Equal keys become one; (m,) and (m, columns)."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(counts[order], first, axis=0)


def _dot(a: Counts, b: Counts) -> int:
    """Exact: int64 would overflow where both hold billions."""
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


# What came from a peer, checked piece by piece.
_LIMBS = 64
_COUNT = 1 << 48  # the most one peer may count: 2^15 such peers still fit int64


def _limbs(n: int) -> list[int]:
    """An integer of any size as int64 numbers, 63 bits each, lowest first, the sign in the last."""
    limbs = []
    while not -(1 << 63) <= n < 1 << 63:
        limbs.append(n & ((1 << 63) - 1))
        n >>= 63
    return [*limbs, n]


def _join(limbs: Any) -> int:
    if not (isinstance(limbs, list) and 1 <= len(limbs) <= _LIMBS):
        raise CodecError(f"a big integer is a list of 1..{_LIMBS} integers")
    total = 0
    for limb in reversed(_integers(limbs).tolist()):
        total = (total << 63) + limb
    if _limbs(total) != limbs:
        raise CodecError("a big integer must be written in its shortest form")
    return total


def _fields(plain: Any, n: int) -> Plain:
    if not isinstance(plain, list) or len(plain) != n:
        raise CodecError(f"expected a list of {n} fields of a metric")
    return plain


def _natural(n: Any) -> int:
    if type(n) is not int or not 0 <= n < _COUNT:
        raise CodecError("a metric's count must be an integer in 0..2^48")
    return n


def _numbers(plain: Any) -> list[float]:
    if not isinstance(plain, list) or not all(type(x) is float and math.isfinite(x) for x in plain):
        raise CodecError("expected a list of finite floats in a metric")
    return plain


def _integers(plain: Any) -> Counts:
    if not isinstance(plain, list) or not all(type(x) is int and -(1 << 63) <= x < 1 << 63 for x in plain):
        raise CodecError("expected a list of int64 numbers in a metric")
    return np.array(plain, np.int64)


def _counts(plain: Any, shape: tuple[int, ...]) -> Counts:
    if len(shape) == 2:
        if not isinstance(plain, list) or any(not isinstance(r, list) or len(r) != shape[1] for r in plain):
            raise CodecError(f"expected rows of {shape[1]} counts in a metric")
        plain = [x for row in plain for x in row]
    flat = _integers(plain)
    if flat.size != math.prod(shape) or np.any(flat < 0) or np.any(flat >= _COUNT):
        raise CodecError(f"expected {math.prod(shape)} counts in 0..2^48 in a metric")
    return flat.reshape(shape)


def _or_codec(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except MisuseError as error:
        raise CodecError(str(error)) from None
