"""Aggregators: how replies become one total, the same anywhere on the way.

    lift(peer, reply) -> partial;  merge(a, b) -> partial;  finish(partial) -> Total

`merge` is a commutative monoid, so a tree of edges, a lane of the simulator and one flat sum
give the same bytes. Floating-point addition is not associative; therefore sums are taken in
fixed point. Before a round each leaf gets a binary point (`points`) from its bound and the
largest total weight. A contribution becomes whole numbers, `rint(weight * value * 2**point)`,
and int64 addition of those is exact in any order. Float64 leaves take a second int64 for the bits
below the point. Out of range is refused, never saturated.

`Sum` shows only the sum. `Gather(rule)` keeps each update for a robust rule; `Buckets(k, rule)`
sums inside k random buckets and applies the rule over their means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite, log2
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import MisuseError, ProtocolError
from .metrics import merge_all, tally
from .rng import Rng
from .update import Array, Layout, Rows, Update, add_rows

WEIGHT_UNIT = 2.0**-32  # weights are whole multiples of this, so that their sums are exact too
_SUM_BITS = 62
_FINE_BITS = 40  # the second int64 of a float64 leaf resolves 2**-40 of the first's unit
_EXACT = 2.0**53  # float64 holds every whole number up to here
_BLOCK = 1 << 17  # numbers folded at a time: 1 MiB of float64


@dataclass(frozen=True)
class Points:
    """Binary points of one round: leaf i's numbers count in units of 2**-exponents[i].

    `max_weight`: the largest weight one contribution may have; `cohort`: how many may be summed.
    `wide`: two int64 a number. `tables`: exponents of leaves that are sent as sparse rows.
    """

    layout: Layout
    exponents: tuple[int, ...]
    max_weight: float
    cohort: int
    wide: bool
    tables: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = [
            self.layout.slices[name].stop - self.layout.slices[name].start for name in self.layout.slices
        ]
        units = np.repeat(np.exp2(np.array(self.exponents, np.float64)), sizes)
        object.__setattr__(self, "units", units)

    units: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    @property
    def limit(self) -> float:
        """The largest whole number one contribution of weight 1 may put into the sum."""
        return 2.0**_SUM_BITS / (self.max_weight * self.cohort)


def points(
    params: Update,
    cohort: int,
    max_weight: float = 2.0**20,
    bounds: Mapping[str, float] | None = None,
    headroom: float = 2.0**12,
) -> Points:
    """Binary points for updates laid out like `params`.

    `bounds`: the largest magnitude of a leaf's update where it is known. For the others the
    leaf's own largest magnitude times `headroom`; float64 leaves get the square of that, their
    second int64 pays for it. A leaf that happens to be near zero may still move: its magnitude
    counts as at least 2**-6 of the model's, and the model's as at least 2**-10 (1 where all is 0).
    """
    wide = params.buffer.dtype == np.float64
    room = headroom**2 if wide else headroom
    largest = {name: float(np.abs(leaf).max(initial=0.0)) for name, leaf in params.items()}
    model = max(max(largest.values(), default=0.0) or 1.0, 2.0**-10)
    exponents = []
    for name in params:
        scale = (bounds or {}).get(name) or room * max(largest[name] or model, model * 2.0**-6)
        exponents.append(_SUM_BITS - ceil(log2(scale)) - ceil(log2(max_weight * max(cohort, 1))))
    return Points(params.layout, tuple(exponents), max_weight, max(cohort, 1), wide)


@dataclass(frozen=True, slots=True)
class Reply:
    """One contribution as it left its client's chain."""

    update: Update
    weight: float = 1.0
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Partial:
    """A sum of some contributions. `sums`: (limbs, size) int64, or (1, size) uint64 in a ring.

    `count`: contributions with a weight above 0.
    """

    layout: Layout
    sums: NDArray[Any]
    weight: int
    count: int
    metrics: Mapping[str, Any]
    bits: int | None = None
    rows: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Total:
    """What a round's contributions came to: `update` is their weighted sum, float64 or ring."""

    update: Update
    weight: float
    count: int
    metrics: Mapping[str, Any]


Rule: TypeAlias = Callable[[Array], Array]


class Aggregator(Protocol):
    """The contract; `check_aggregator` of `atoll.testing` proves it for one of your own.

    `sees`: "sum" if it needs only the sum of updates, "each" if it must see every one. `rings`:
    whether it adds integers of a ring, which a rule over real numbers cannot.
    `at(points, cohort, key)`: the aggregator of one round.
    """

    @property
    def sees(self) -> Literal["sum", "each"]: ...

    @property
    def rings(self) -> bool: ...

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Aggregator: ...

    def lift(self, peer: int, reply: Reply) -> Any: ...

    def merge(self, a: Any, b: Any) -> Any: ...

    def finish(self, partial: Any) -> Total: ...


def fold(aggregator: Aggregator, replies: Sequence[tuple[int, Reply]]) -> Any:
    """All replies as one partial; at least one. A `Sum` adds them in place, the rest by `merge`."""
    together = getattr(aggregator, "lift_all", None)
    if together is not None:
        return together(replies)
    partial = aggregator.lift(*replies[0])
    for peer, reply in replies[1:]:
        partial = aggregator.merge(partial, aggregator.lift(peer, reply))
    return partial


def whole_weight(weight: float, most: float) -> int:
    """A weight as whole multiples of WEIGHT_UNIT, capped at `most`; MisuseError if not >= 0."""
    if not (weight >= 0 and isfinite(weight)):
        raise MisuseError(f"a weight must be finite and at least 0, got {weight}")
    return round(min(weight, most) / WEIGHT_UNIT)


@dataclass(frozen=True)
class Sum:
    """The weighted sum, exact in any order and any tree."""

    sees: ClassVar[Literal["sum", "each"]] = "sum"
    rings: ClassVar[bool] = True
    points: Points | None = None

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Sum:
        """This round's: with its binary points."""
        return Sum(points)

    def lift(self, peer: int, reply: Reply) -> Partial:
        """One contribution as a partial sum."""
        return self.lift_all([(peer, reply)])

    def lift_all(self, replies: Sequence[tuple[int, Reply]]) -> Partial:
        """Many contributions as one partial sum: the same bytes as lifting and merging each."""
        p = self._points()
        bits = replies[0][1].update.bits
        for peer, reply in replies:
            if reply.update.layout != p.layout or reply.update.bits != bits:
                raise _other_leaves(peer, reply.update, p.layout)
        weights = [whole_weight(reply.weight, p.max_weight) for _, reply in replies]
        scales = [w * WEIGHT_UNIT for w in weights]
        limbs = 2 if p.wide and not bits else 1
        sums = np.zeros((limbs, p.layout.size), np.uint64 if bits else np.int64)
        rows: dict[str, Rows] = {}
        if bits:
            for _, reply in replies:
                sums[0] += reply.update.buffer
            sums &= np.uint64((1 << bits) - 1)
        else:
            _add(sums, replies, scales, p)
            for (peer, reply), scale in zip(replies, scales, strict=True):
                rows = _add_rows(rows, reply.update.rows, p, scale, peer)
        metrics = tally((reply.metrics, scale) for (_, reply), scale in zip(replies, scales, strict=True))
        return Partial(p.layout, sums, sum(weights), sum(w > 0 for w in weights), metrics, bits, rows)

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Both partial sums together."""
        if (a.layout, a.bits, a.sums.shape) != (b.layout, b.bits, b.sums.shape):
            raise ProtocolError("two partial sums of different models or encodings cannot be merged")
        sums = a.sums + b.sums
        if a.bits and a.bits < 64:
            sums &= np.uint64((1 << a.bits) - 1)
        metrics, rows = merge_all(a.metrics, b.metrics), add_rows(a.rows, b.rows)
        return Partial(a.layout, sums, a.weight + b.weight, a.count + b.count, metrics, a.bits, rows)

    def finish(self, partial: Partial) -> Total:
        """The sum as an update: float64, or in its ring."""
        p = self._points()
        if partial.bits:
            buffer: Array = partial.sums[0]
        else:
            buffer = partial.sums[0] / p.units
            if len(partial.sums) > 1:
                buffer += partial.sums[1] / p.units * 2.0**-_FINE_BITS
        rows = {n: Rows(r.ids, r.values * 2.0 ** -p.tables[n]) for n, r in partial.rows.items()}
        update = Update(partial.layout, buffer, bits=partial.bits, rows=rows)
        return Total(update, partial.weight * WEIGHT_UNIT, partial.count, partial.metrics)

    def _points(self) -> Points:
        if self.points is None:
            raise MisuseError("a Sum adds within a round: take Sum().at(points, cohort, key) first")
        return self.points


def _add(
    sums: NDArray[Any], replies: Sequence[tuple[int, Reply]], scales: Sequence[float], p: Points
) -> None:
    """Add rint(weight * values * 2**point) of every reply, a block of columns at a time.

    Rounding makes whole numbers first. Below 2**53 float64 adds those exactly, above int64 does;
    either way the order cannot matter.
    """
    m, width = len(replies), max(_BLOCK // len(replies), 1024)
    w = np.array(scales)[:, None]  # (m, 1)
    room = np.empty((2, m, min(width, p.layout.size)))
    for start in range(0, p.layout.size, width):
        block = slice(start, min(start + width, p.layout.size))
        x, whole = room[:, :, : block.stop - start]
        np.multiply(np.stack([reply.update.buffer[block] for _, reply in replies]), p.units[block], out=x)
        x *= w
        np.rint(x, out=whole)
        largest = np.maximum(whole.max(axis=1), -whole.min(axis=1))  # (m,)
        if not (largest <= p.limit * w[:, 0]).all():  # NaN fails as well
            _refuse(replies, p)
        exact = largest.sum() < _EXACT
        sums[0, block] += (whole if exact else whole.astype(np.int64)).sum(axis=0).astype(np.int64)
        if len(sums) > 1:
            x -= whole
            x *= 2.0**_FINE_BITS
            sums[1, block] += np.rint(x).astype(np.int64).sum(axis=0)


def _other_leaves(peer: int, got: Update, layout: Layout) -> ProtocolError:
    """The first leaf of either side that the other lacks in that shape."""
    pairs = ((got.layout.leaves, layout.leaves), (layout.leaves, got.layout.leaves))
    first = [next((f"{n}{list(shape)}" for n, shape in a if (n, shape) not in b), "none") for a, b in pairs]
    return ProtocolError(
        f"client {peer} answered with another model's leaves: {first[0]} where the model has {first[1]}"
    )


def _refuse(replies: Sequence[tuple[int, Reply]], p: Points) -> None:
    for peer, reply in replies:
        for name, s in p.layout.slices.items():
            if not (np.abs(reply.update.buffer[s]) * p.units[s] <= p.limit).all():
                raise ProtocolError(
                    f"client {peer}'s update of leaf {name!r} is not finite or beyond this round's range:"
                    " its training diverged, or the leaf's bound is too small"
                )


def _add_rows(
    rows: dict[str, Rows], more: Mapping[str, Rows], p: Points, weight: float, peer: int
) -> dict[str, Rows]:
    for name, r in more.items():
        if name not in p.tables:
            raise ProtocolError(f"client {peer} sent sparse rows of {name!r}, which this round does not sum")
        x = np.rint(r.values.astype(np.float64) * (weight * 2.0 ** p.tables[name]))
        if not (np.abs(x) <= p.limit * weight).all():
            raise ProtocolError(
                f"client {peer}'s rows of {name!r} are not finite or beyond this round's range"
            )
        rows = add_rows(rows, {name: Rows(r.ids, x.astype(np.int64))})
    return rows


Kept: TypeAlias = tuple[tuple[int, Reply], ...]


@dataclass(frozen=True)
class Gather:
    """Every update kept until the end, then `rule(U)`: U (n, d) float64, rows by client id -> (d,).

    The rule's answer stands for the mean update. Memory grows with the cohort: n * d * 8 bytes.
    """

    rule: Rule
    sees: ClassVar[Literal["sum", "each"]] = "each"
    rings: ClassVar[bool] = False
    points: Points | None = None

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Gather:
        """This round's: with the leaves that its updates must have."""
        return Gather(self.rule, points)

    def lift(self, peer: int, reply: Reply) -> Kept:
        """One kept reply. Raises ProtocolError for other leaves, or numbers that are not finite."""
        if self.points is not None and reply.update.layout != self.points.layout:
            raise _other_leaves(peer, reply.update, self.points.layout)
        if not reply.update.finite():
            raise ProtocolError(f"client {peer}'s update is not finite: its training diverged")
        return ((peer, reply),)

    def merge(self, a: Kept, b: Kept) -> Kept:
        """Both, by client id, whatever the order they came in."""
        return tuple(sorted(a + b, key=lambda kept: kept[0]))

    def finish(self, partial: Kept) -> Total:
        """The rule over all updates of weight above 0; MisuseError if it answers in another shape."""
        replies = [reply for _, reply in partial if reply.weight > 0]
        if not replies:
            raise MisuseError("every contribution of this round has weight 0: there is no mean to take")
        metrics = tally((reply.metrics, reply.weight) for reply in replies)
        matrix = np.stack([reply.update.buffer for reply in replies]).astype(np.float64)
        return Total(apply_rule(self.rule, matrix, replies[0].update.layout), 1.0, len(replies), metrics)


def apply_rule(rule: Rule, matrix: Array, layout: Layout) -> Update:
    """`rule` over the rows of `matrix` (n, d) as an Update; its answer must be (d,) real."""
    answer = np.asarray(rule(matrix), np.float64)
    if answer.shape != (layout.size,):
        raise MisuseError(f"a rule maps (n, {layout.size}) to ({layout.size},), this one gave {answer.shape}")
    return Update(layout, answer)


@dataclass(frozen=True)
class Buckets:
    """Sums inside `k` random buckets of the cohort, then `rule` over the buckets' means (k, d).

    Who falls into which bucket follows from the round's key and the cohort alone. Robust rules
    see means of a few, never one (Karimireddy, He, Jaggi 2022, "Byzantine-robust learning on
    heterogeneous datasets via bucketing", alg. 1).
    """

    k: int
    rule: Rule
    sees: ClassVar[Literal["sum", "each"]] = "sum"
    rings: ClassVar[bool] = False
    inner: Sum = field(default_factory=Sum)
    place: Mapping[int, int] = field(default_factory=dict)

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Buckets:
        """This round's: the cohort dealt into buckets."""
        order = key.at("buckets").generator().permutation(sorted(cohort))
        place = {int(client): i % self.k for i, client in enumerate(order)}
        return Buckets(self.k, self.rule, self.inner.at(points, cohort, key), place)

    def lift(self, peer: int, reply: Reply) -> dict[int, Partial]:
        """One contribution in its bucket."""
        return {self.place[peer]: self.inner.lift(peer, reply)}

    def merge(self, a: dict[int, Partial], b: dict[int, Partial]) -> dict[int, Partial]:
        """Bucket by bucket."""
        merged = dict(a)
        for bucket, partial in b.items():
            merged[bucket] = self.inner.merge(merged[bucket], partial) if bucket in merged else partial
        return merged

    def finish(self, partial: dict[int, Partial]) -> Total:
        """The rule over the means of the buckets that got anything."""
        totals = [self.inner.finish(partial[bucket]) for bucket in sorted(partial)]
        filled = [t for t in totals if t.weight > 0]
        if not filled:
            raise MisuseError("every contribution of this round has weight 0: there is no mean to take")
        means = np.stack([t.update.buffer / t.weight for t in filled])
        metrics: Mapping[str, Any] = {}
        for total in totals:
            metrics = merge_all(metrics, total.metrics)
        update = apply_rule(self.rule, means, filled[0].update.layout)
        return Total(update, 1.0, sum(t.count for t in totals), metrics)
