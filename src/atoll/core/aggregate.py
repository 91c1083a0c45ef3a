"""Aggregators: how replies become one total, the same anywhere on the way.

    lift(peer, reply) -> partial;  merge(a, b) -> partial;  finish(partial) -> Total

`merge` is a commutative monoid, so a tree of edges, a lane of the simulator and one flat sum
give the same bytes. Floating-point addition is not associative; therefore sums are taken in
fixed point. Before a round each leaf gets a binary point (`points`) from its bound and the
largest total weight. A contribution becomes whole numbers, `rint(weight * value * 2**point)`,
and int64 addition of those is exact in any order. Float64 leaves take a second int64 for the bits
below the point. Out of range is refused, never saturated.

`Sum` shows only the sum; rules that look at each update stand in learn/robust.py. A sum may be taken
in place: model-size arrays are then made once, when the first contribution comes in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain
from math import ceil, isfinite, log2
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import MisuseError, ProtocolError
from .metrics import merge_all, tally
from .rng import Rng
from .update import BLOCK, Array, Layout, Rows, Update, add_rows, blocks, wrap

WEIGHT_UNIT = 2.0**-32  # weights are whole multiples of this, so that their sums are exact too
_SUM_BITS = 62
_FINE_BITS = 40  # the second int64 of a float64 leaf resolves 2**-40 of the first's unit
_EXACT = 2.0**53  # float64 holds every whole number up to here


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

    @property
    def limit(self) -> float:
        """The largest whole number one contribution of weight 1 may put into the sum."""
        return 2.0**_SUM_BITS / (self.max_weight * self.cohort)

    def units(self, block: slice) -> Any:
        """What a block's numbers count in: one float64 where they are of one leaf, else one each."""
        stops = self.layout.stops
        first, last = bisect_right(stops, block.start), bisect_right(stops, block.stop - 1)
        units = np.exp2(np.array(self.exponents[first : last + 1], np.float64))
        if first == last:
            return units[0]
        return np.repeat(units, np.diff([block.start, *stops[first:last], block.stop]))


def _largest(leaf: Array) -> float:
    """The largest magnitude; NaN where there is one."""
    return max(float(leaf.max(initial=0.0)), -float(leaf.min(initial=0.0)))


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
    largest = {name: _largest(leaf) for name, leaf in params.items()}
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
    """What a round's contributions came to: `update` is their weighted sum, float64 or ring; `seen`: what
    whoever looked at each of them has to go by, None where nobody did.
    """

    update: Update
    weight: float
    count: int
    metrics: Mapping[str, Any]
    seen: Any = None


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


def fold(aggregator: Aggregator, replies: Sequence[tuple[int, Reply]], into: Any = None) -> Any:
    """All replies (at least one) as one partial, together with `into`, a partial of the caller's own.

    A `Sum` adds them in place, the rest by `merge`.
    """
    together = getattr(aggregator, "lift_all", None)
    if together is not None:
        return together(replies) if into is None else together(replies, into)
    lifted = (aggregator.lift(*one) for one in replies)
    return reduce(aggregator.merge, lifted if into is None else chain([into], lifted))


def own(aggregator: Aggregator) -> dict[str, bool]:
    """What to tell `merge` and `finish` that may write into their first argument, as a `Sum` can."""
    return {"own": True} if getattr(aggregator, "in_place", False) else {}


def whole_weight(weight: float, most: float) -> int:
    """A weight as whole multiples of WEIGHT_UNIT, capped at `most`; MisuseError if not >= 0."""
    if not (weight >= 0 and isfinite(weight)):
        raise MisuseError(f"a weight must be finite and at least 0, got {weight}")
    return round(min(weight, most) / WEIGHT_UNIT)


def _here(size: int, work: Callable[[slice], None]) -> None:
    work(slice(0, size))


@dataclass(frozen=True)
class Sum:
    """The weighted sum, exact in any order and any tree.

    `spread(size, work)` calls `work` on range(size), cut in the same parts whenever it is called, if need be
    at the same time: no part looks at another. Raises what `work` raises, once all have ended.
    """

    sees: ClassVar[Literal["sum", "each"]] = "sum"
    rings: ClassVar[bool] = True
    in_place: ClassVar[bool] = True
    points: Points | None = None
    spread: Callable[[int, Callable[[slice], None]], None] = field(default=_here, repr=False)

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Sum:
        """This round's: with its binary points."""
        return replace(self, points=points)

    def lift(self, peer: int, reply: Reply) -> Partial:
        """One contribution as a partial sum."""
        return self.lift_all([(peer, reply)])

    def lift_all(self, replies: Sequence[tuple[int, Reply]], into: Partial | None = None) -> Partial:
        """Many contributions as one partial sum: the same bytes as lifting and merging each.

        `into`: a partial of the caller's own, to whose sums they are added; if one of them is
        refused, it stays as it was.
        """
        p, bits = self._points(), replies[0][1].update.bits
        for peer, reply in replies:
            if reply.update.layout != p.layout or reply.update.bits != bits:
                raise other_leaves(peer, reply.update, p.layout)
        weights = [whole_weight(reply.weight, p.max_weight) for _, reply in replies]
        scales = [w * WEIGHT_UNIT for w in weights]
        metrics = tally((reply.metrics, scale) for (_, reply), scale in zip(replies, scales, strict=True))
        rows: dict[str, Rows] = {}
        for (peer, reply), scale in zip(replies, scales, strict=True):
            rows = _add_rows(rows, reply.update.rows, p, scale, peer)
        shape = (2 if p.wide and not bits else 1, p.layout.size)
        sums = np.zeros(shape, np.uint64 if bits else np.int64) if into is None else _mine(into.sums)
        more = Partial(p.layout, sums, sum(weights), sum(w > 0 for w in weights), metrics, bits, rows)
        whole = more if into is None else replace(_joined(into, more), sums=sums)
        if bits:
            for _, reply in replies:
                sums[0] += reply.update.buffer
            wrap(sums, bits)
        else:
            _add(sums, replies, scales, p, self.spread)
        return whole

    def merge(self, a: Partial, b: Partial, *, own: bool = False) -> Partial:
        """Both partial sums together; `own`: written over `a`'s, which nobody uses any more."""
        both, out = _joined(a, b), _mine(a.sums) if own else None
        return replace(both, sums=wrap(np.add(a.sums, b.sums, out=out), a.bits))

    def finish(self, partial: Partial, *, own: bool = False) -> Total:
        """The sum as an update: float64, or in its ring; `own`: written over the partial's."""
        p = self._points()
        buffer: Array = partial.sums[0]
        if not partial.bits:
            buffer = _mine(buffer).view(np.float64) if own else np.empty(p.layout.size)

            def real(part: slice) -> None:
                for block in blocks(part.stop, start=part.start):
                    units = p.units(block)
                    np.divide(partial.sums[0, block], units, out=buffer[block])
                    if len(partial.sums) > 1:
                        buffer[block] += partial.sums[1, block] / units * 2.0**-_FINE_BITS

            self.spread(p.layout.size, real)
        rows = {n: Rows(r.ids, r.values * 2.0 ** -p.tables[n]) for n, r in partial.rows.items()}
        update = Update(partial.layout, buffer, bits=partial.bits, rows=rows)
        return Total(update, partial.weight * WEIGHT_UNIT, partial.count, partial.metrics)

    def _points(self) -> Points:
        if self.points is None:
            raise MisuseError("a Sum adds within a round: take Sum().at(points, cohort, key) first")
        return self.points


def _mine(sums: NDArray[Any]) -> NDArray[Any]:
    """Sums to write into: these, or a copy where they are mapped from a file."""
    return sums if sums.flags.writeable else sums.copy()


def _joined(a: Partial, b: Partial) -> Partial:
    """All of both but the sums, which are `a`'s still."""
    if (a.layout, a.bits, len(a.sums)) != (b.layout, b.bits, len(b.sums)):
        raise ProtocolError("two partial sums of different models or encodings cannot be merged")
    metrics, rows = merge_all(a.metrics, b.metrics), add_rows(a.rows, b.rows)
    return Partial(a.layout, a.sums, a.weight + b.weight, a.count + b.count, metrics, a.bits, rows)


def _add(
    sums: NDArray[Any], replies: Sequence[tuple[int, Reply]], scales: Sequence[float], p: Points, spread: Any
) -> None:
    """Add every reply; if one is refused, what was added of them comes out again."""

    def add(part: slice, put: Callable[..., Any] = np.add) -> None:
        for block, whole in _whole(replies, scales, p, len(sums), part):
            put(sums[:, block], whole, out=sums[:, block])

    def undo(part: slice) -> None:
        with suppress(ProtocolError):  # it stops where the first pass did
            add(part, np.subtract)

    try:
        spread(sums.shape[1], add)
    except ProtocolError:
        spread(sums.shape[1], undo)
        raise


def _whole(
    replies: Sequence[tuple[int, Reply]], scales: Sequence[float], p: Points, limbs: int, part: slice
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """The sum of rint(weight * values * 2**point) over all replies, for a part's columns block by block.

    Rounding makes whole numbers first. Below 2**53 float64 adds those exactly, above int64 does;
    either way the order cannot matter.
    """
    m, width = len(replies), max(BLOCK // len(replies), 1024)
    w = np.array(scales)[:, None]  # (m, 1)
    room = np.empty((2, m, min(width, p.layout.size)))
    for block in blocks(part.stop, width, part.start):
        x, whole = room[:, :, : block.stop - block.start]
        units = p.units(block)
        each = units if units.ndim else units * w  # exact: a power of two times a float64
        np.multiply(np.stack([reply.update.buffer[block] for _, reply in replies], out=x), each, out=x)
        if units.ndim:
            x *= w
        np.rint(x, out=whole)
        largest = np.maximum(whole.max(axis=1), -whole.min(axis=1))  # (m,)
        if not (largest <= p.limit * w[:, 0]).all():  # NaN fails as well
            _refuse(replies, p)
        exact = largest.sum() < _EXACT
        sums = (whole if exact else whole.astype(np.int64)).sum(axis=0).astype(np.int64)
        if limbs > 1:
            x -= whole
            x *= 2.0**_FINE_BITS
            sums = np.stack([sums, np.rint(x).astype(np.int64).sum(axis=0)])
        yield block, sums


def other_leaves(peer: int, got: Update, layout: Layout) -> ProtocolError:
    """The first leaf of either side that the other lacks in that shape."""
    pairs = ((got.layout.leaves, layout.leaves), (layout.leaves, got.layout.leaves))
    first = [next((f"{n}{list(shape)}" for n, shape in a if (n, shape) not in b), "none") for a, b in pairs]
    return ProtocolError(
        f"client {peer} answered with another model's leaves: {first[0]} where the model has {first[1]}"
    )


def _refuse(replies: Sequence[tuple[int, Reply]], p: Points) -> None:
    for peer, reply in replies:
        for (name, leaf), exponent in zip(reply.update.items(), p.exponents, strict=True):
            if not _largest(leaf) * 2.0**exponent <= p.limit:
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
