"""The integers of a secure sum: updates and their weights in fixed point, with noise where it is promised.

    out    z = rint(weight / heaviest * x * unit) [+ noise]  mod 2**bits       weight in digits behind it
    back   Σ weight * x = heaviest / unit * signed(Σ z)

Where all updates are 0 outside places that everybody knows (compress.places_of), x is their numbers at those,
in leaf order, and nothing else is rounded, noised or sent; the sum is 0 elsewhere.

All leaves have one public `unit`, a power of two for which no sum reaches a quarter of the ring. Where it is
coarse, numbers are rounded by chance and without bias. Under a promise of privacy every client adds noise to
its integers, after they were found not to be longer than the clip (privacy/discrete.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2, sqrt
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.aggregate import Aggregator, Partial, Points, Reply, Sum, Total
from ..core.errors import ConfigError, ProtocolError
from ..core.rng import Rng
from ..core.update import Array, Layout, Leaf, Update
from ..privacy import discrete
from ..privacy.graph import threshold
from ..privacy.hazmat.suite import INTL
from ..wire.coded import Drawn
from .ring import signed

Noise: TypeAlias = Callable[[int, float], NDArray[np.int64]]  # (numbers, deviation of all together) -> ours

WEIGHT = "secure.weight"  # the leaf that the weights travel in
NARROW, WIDE = 16, 32  # bits of a ring that is chosen
INT8 = 127  # steps of a number, on either side of 0
_WEIGHT_BITS = 32
_FLOAT = 1 + 1e-5  # a number of a clipped update, in float32
_SHRINKS = 40  # of two in a hundred each
_FINE = 24  # a scale with so many bits below the largest number is rounded to the nearest


def share_of(key: bytes, crew: int, stream: Callable[[bytes], Any] = INTL.stream) -> Noise:
    """The noise that one of `crew` members draws from its key, by a suite's `stream`."""
    return lambda size, whole: discrete.gaussian(key, size, discrete.spread(whole, 1.0, crew, size), stream)


@dataclass(frozen=True)
class Hidden:
    """Noise that clients add: together at least `sigma` times `bound`, the L2 norm of what one adds, from as
    many as must stay, less `colluders`, whose noise hides nothing from who knows it. `rows`: single rows
    are bounded, and an update is a sum of many.
    """

    sigma: float
    bound: float
    colluders: int
    rows: bool = False

    def crew(self, members: int) -> int:
        """Who of so many members must have added noise."""
        return threshold(members) - self.colluders

    def reach(self, members: int) -> float:
        """What all noise together stays below, but for one sum in 1e18, for up to so many members."""
        most = max(n / max(self.crew(n), 1) for n in range(2, members + 1))
        return float(9 * self.sigma * self.bound * sqrt(most))


@dataclass(frozen=True)
class Scale:
    """One round's integers modulo 2**bits: numbers up to `largest`, of so many `members` at most.

    `heaviest`: the weight that counts as 1. `noise`: then contributions weigh the same, and say nothing of
    how heavy they are. `drawn`: outside which places all updates are 0. Raises ConfigError where the ring has
    no room.
    """

    bits: int
    largest: float
    members: int
    heaviest: float
    noise: Hidden | None = None
    drawn: Drawn | None = None

    def __post_init__(self) -> None:
        if self.largest * self.unit < 1 or self.digit < 2:
            raise ConfigError(
                f"sums of {self.members} clients' numbers up to {self.largest:g} do not fit {self.bits} bits:"
                " take more bits, or a smaller largest"
            )

    @property
    def unit(self) -> float:
        """What 1 is."""
        noise = self.noise.reach(self.members) if self.noise is not None else 0.0
        return float(2.0 ** (self.bits - 2 - ceil(log2(self.largest * self.members + noise))))

    @property
    def digit(self) -> int:
        """Bits of a weight that one number carries, so that sums of it stay below half the ring."""
        return self.bits - 1 - ceil(log2(self.members + 1))

    @property
    def digits(self) -> int:
        """Numbers that a weight takes."""
        return 0 if self.noise is not None else ceil((_WEIGHT_BITS + 1) / self.digit)

    def layout(self, plain: Layout) -> Layout:
        """The leaves that travel: an update's, or as many numbers of each as places are drawn in it, and its
        weight.
        """
        if self.drawn is not None:
            ends = np.searchsorted(self.drawn.places(plain.size), [0, *plain.stops])
            counts = zip(plain.shapes, np.diff(ends).tolist(), strict=True)
            plain = Layout(tuple(Leaf(name, (n,)) for name, n in counts if n))
        return Layout((*plain.leaves, Leaf(WEIGHT, (self.digits,)))) if self.digits else plain

    def held(self, update: Update) -> Array:
        """An update's numbers that travel."""
        x = update.buffer
        return x if self.drawn is None else x[self.drawn.places(x.size)]

    def out(self, update: Update, weight: float, rng: Rng, noise: Noise | None = None) -> NDArray[np.uint64]:
        """An update and its weight as integers; `noise(size, s)` adds to them. Raises ProtocolError for a
        number beyond `largest`, or a weight beyond the heaviest.
        """
        for name, leaf in update.items():
            if not (np.abs(leaf) <= self.largest).all():
                raise ProtocolError(
                    f"leaf {name!r} is not finite or beyond largest={self.largest:g}: training diverged,"
                    " or secure_sum(largest=...) is too small"
                )
        if weight > self.heaviest:
            raise ProtocolError(
                "a contribution weighs more than a secure sum counts on: set the job's max_weight to the most"
                " rows that a client has"
            )
        whole = round(weight / self.heaviest * 2**_WEIGHT_BITS)
        x = self.held(update).astype(np.float64)
        x *= whole / 2**_WEIGHT_BITS * self.unit
        made = np.empty(len(x) + self.digits, np.int64)
        if self.noise is None or noise is None:
            made[: len(x)] = self._rounded(x, rng)
        else:
            bound = self.noise.bound * self.unit
            if self.noise.rows:  # rounding may move two sums that differ in a row apart, by 2 in each number
                made[:], bound = self._rounded(x, rng), bound + 2 * sqrt(len(x))
            else:
                made[:] = self._clipped(x, rng)
            made += noise(len(x), self.noise.sigma * bound)
        made[len(x) :] = [whole >> (i * self.digit) & ((1 << self.digit) - 1) for i in range(self.digits)]
        return made.view(np.uint64) & np.uint64((1 << self.bits) - 1)

    def _rounded(self, x: NDArray[np.float64], rng: Rng) -> NDArray[np.float64]:
        if self.largest * self.unit >= 2.0**_FINE:
            return np.asarray(np.rint(x))
        return np.asarray(np.floor(x + rng.generator().random(len(x))))

    def _clipped(self, x: NDArray[np.float64], rng: Rng) -> NDArray[np.float64]:
        """Rounded, and not longer than the bound: a smaller factor takes off what rounding has added."""
        assert self.noise is not None  # noqa: S101  asked by `out`
        most = self.noise.bound * self.unit
        for n in range(_SHRINKS):
            whole = self._rounded(x * 0.98**n, rng.at(n))
            if np.sqrt(np.square(whole).sum()) <= most:
                return whole
        raise ProtocolError(f"rounded to {self.bits} bits an update is longer than its clip: take more bits")

    def back(self, sums: NDArray[np.uint64], plain: Layout, count: int) -> Total:
        """What `count` clients' integers sum to: the sum of weight times update, and of the weights."""
        whole = signed(sums, self.bits)
        size = plain.size if self.drawn is None else self.drawn.k
        units = sum(int(digit) << (i * self.digit) for i, digit in enumerate(whole[size:]))
        weight = units / 2**_WEIGHT_BITS * self.heaviest if self.digits else float(count)
        x = whole[:size] * (self.heaviest / self.unit)
        if self.drawn is not None:
            x, few = np.zeros(plain.size), x
            x[self.drawn.places(plain.size)] = few
        return Total(Update(plain, x), weight, count, {})


@dataclass(frozen=True)
class Width:
    """How many bits a round's integers have, as follows from the job: 16 where those do, else 32.

    They do where each of n members has INT8 steps for a number and there is room for all, INT8 n + 9 σ < 2^15
    with σ the noise in steps; and where rounding is small: an update's is at most an eighth as long as
    `bound`, the most that an update may be (a hundredth where rows are bounded), and all of it adds at most a
    hundredth to the noise's variance. `bound`: None where nothing in the job says so.
    """

    largest: float
    heaviest: float
    bound: float | None
    noise: Hidden | None = None

    def scale(self, members: int, size: int) -> Scale:
        """A round's, for updates of `size` numbers of so many members."""
        return self._narrow(members, size) or self._scale(WIDE, self.largest, members)

    def why(self, members: int, size: int) -> str:
        """For people: the bits of sums of up to so many members, and by what they were chosen."""
        if self.bound is None:
            return f"{WIDE} bits: nothing in the job bounds the length of an update"
        most = next((n for n in range(members, 1, -1) if self._narrow(n, size)), 0)
        if not most:
            return (
                f"{WIDE} bits: for sums of {members} clients' {size} numbers, {NARROW} would round coarsely"
                f" against the bound of {self.bound:g}" + (" or its noise" if self.noise else "")
            )
        beyond = f", {WIDE} beyond" if most < members else ""
        return (
            f"{NARROW} bits in sums of up to {most} clients{beyond}: {INT8} steps a number for each"
            f"{' and 9 deviations of noise' if self.noise else ''} stay below 2^15, and rounding is small"
            f" against the bound of {self.bound:g}"
        )

    def _narrow(self, members: int, size: int) -> Scale | None:
        """The scale in 16 bits, where it does."""
        if self.bound is None:
            return None
        rows = self.noise is not None and self.noise.rows
        largest = self.largest if rows else min(self.largest, self.bound * _FLOAT)
        try:
            made = self._scale(NARROW, largest, members)
            step, length = 1 / made.unit, sqrt(size)
            if largest / step < INT8 or length * step > self.bound * (1 / 200 if rows else 1 / 4):
                return None
            if self.noise is not None:
                sigma, crew = self.noise.sigma * self.bound, max(1, self.noise.crew(members))
                discrete.spread(self.noise.sigma, self.bound / step, crew, size)
                return made if sqrt(members) / 2 * step <= sigma / 10 else None
        except ConfigError:
            return None
        return made

    def _scale(self, bits: int, largest: float, members: int) -> Scale:
        return Scale(bits, largest, members, self.heaviest, self.noise)


@dataclass(frozen=True)
class Read(Sum):
    """A sum of integers that is read by its scale."""

    scale: Scale | None = None
    plain: Layout | None = None

    def finish(self, partial: Partial, *, own: bool = False) -> Total:
        """As real numbers."""
        assert self.scale is not None and self.plain is not None  # noqa: S101, PT018  made so
        return self.scale.back(partial.sums[0], self.plain, partial.count)


@dataclass(frozen=True)
class Counted:
    """A rule over buckets whose answer, a mean, counts as the sum of all who are in it: a mean() that divides
    by a number known before takes it, too.
    """

    rule: Aggregator
    sees: ClassVar[Literal["sum", "each"]] = "sum"
    rings: ClassVar[bool] = True

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Counted:
        """This round's."""
        return Counted(self.rule.at(points, cohort, key))

    def lift(self, peer: int, reply: Reply) -> Any:
        """As the rule."""
        return self.rule.lift(peer, reply)

    def merge(self, a: Any, b: Any) -> Any:
        """As the rule."""
        return self.rule.merge(a, b)

    def finish(self, partial: Any) -> Total:
        """The rule's answer times the number of contributions."""
        total = self.rule.finish(partial)
        return Total(total.update.scale(total.count), float(total.count), total.count, total.metrics)
