"""Lossy updates whose loss is made good later: signs, the largest entries, entries drawn at random.

What compression takes away from an update is kept at its client and added to the next one (error
feedback: Karimireddy, Rebjock, Stich, Jaggi 2019, "Error feedback fixes SignSGD", alg. 2):

    v = Δ + e;   send C(v);   e <- v - C(v)

The memory e is a client's own, survives rounds it is not drawn in, and is committed only when the
server used what was sent. What is sent has a compact form (wire/coded.py), so few bytes travel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, MisuseError
from ..core.registry import part
from ..core.rng import Rng
from ..core.transform import Context, State, Transform
from ..core.update import Array, Update, blocks
from ..privacy import dp
from ..wire.coded import LARGEST, WIDTH, Code, Coded, Drawn, places, rows
from .quantise import Codec, dense, levels

SAMPLE = 1 << 15  # entries whose magnitudes stand for all of them
_CHUNK = 1 << 16  # numbers at a time: 256 KiB of float32, which stays in the cache

Where: TypeAlias = NDArray[np.int64] | Drawn | None
Squash: TypeAlias = Callable[[Array, Context], Code | None]
Draw: TypeAlias = Callable[[int, int], Drawn]  # (size, round)


@part("transform")
def sign() -> Transform:
    """Send signs only, times the mean magnitude of each block of 1,024: one bit a number.

    Karimireddy et al. 2019, alg. 2, with ||v||_1 / d by block. A zero counts as positive.
    """

    def signs(v: Array, ctx: Context) -> Code | None:
        return _binary(v, v.size, v.dtype, None)

    return _remembering("sign()", signs)


@part("transform")
def topk(fraction: float = 0.01, bits: int | None = None, *, exact: bool = False) -> Transform:
    """The `fraction` (0, 1] of entries that are largest in magnitude, the others 0; at least one.

    `bits`: of an entry: 8, 4 or 2 (rounded at random, as int8()), 1 (its sign, times their mean), None as
    it is. Of more than 32,768 entries so many, drawn from the client's stream, find the threshold, so that
    a few per cent more or fewer are sent than asked for; with `exact` it is exact, at thirty times the time.
    Of equal magnitudes at an exact threshold the first in leaf order stay.
    """
    share(fraction)
    _width(bits)

    def some(v: Array, ctx: Context) -> Code | None:
        where = largest(v, fraction, ctx.key, exact=exact)
        return _kept(v, where, where, bits, ctx.key)

    few = "" if bits is None else f", bits={bits}"
    return _remembering(f"topk({fraction:g}{few}{', exact=True' if exact else ''})", some)


@part("transform")
def randomk(fraction: float = 0.01, bits: int | None = None, seed: int = 0) -> Transform:
    """A `fraction` (0, 1] of entries, drawn by `seed` and round: the same for all clients, so none is named.

    Konečný et al. 2016, "Federated learning: strategies for improving communication efficiency", section 3
    (random mask), with error feedback in place of their scaling. `bits`: as in topk(). The sum of such
    updates is 0 where each of them is: `drawn(size, fraction, seed, round)` names the other places, and in
    sums that show no single update nothing else travels (`places_of`).
    """
    share(fraction)
    _width(bits)

    def draw(size: int, round: int) -> Drawn:
        return drawn(size, fraction, seed, round)

    def some(v: Array, ctx: Context) -> Code | None:
        where = draw(v.size, ctx.round)
        return _kept(v, where, where.places(v.size), bits, ctx.key)

    few = "" if bits is None else f", bits={bits}"
    return _remembering(f"randomk({fraction:g}{few})", some, draw)


def share(fraction: float) -> None:
    """Raise ConfigError unless it is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must be above 0 and at most 1, got {fraction}")


def _width(bits: int | None) -> None:
    if bits not in (None, 1, 2, 4, 8):
        raise ConfigError(f"bits must be 1, 2, 4 or 8, or left out, got {bits}")


def drawn(size: int, fraction: float, seed: int, round: int) -> Drawn:
    """Which of `size` entries randomk() sends in a round."""
    return Drawn(ceil(fraction * size), Rng.of(seed).at("randomk", round).key)


def places_of(algorithm: Transform, size: int, round: int) -> Drawn | None:
    """Outside which places every update of a round is 0 as it leaves its client's chain; None: nothing says.

    They are the last randomk()'s, if what stands right of it acts on the way back only or is a clip().
    """
    for step in reversed(algorithm.steps):
        if isinstance(step.out, _Remembering) and step.out.draw is not None:
            return step.out.draw(size, round)
        if not (step.silent or isinstance(step, dp.Clip)):
            return None
    return None


def _kept(
    v: Array, where: NDArray[np.int64] | Drawn, at: NDArray[np.int64], bits: int | None, key: Rng
) -> Code | None:
    """The entries of `v` at `at`, in so many bits each."""
    x = v[at]
    if bits is None:
        return Code(v.size, v.dtype, where, x)
    if bits == 1:
        return _binary(x, v.size, v.dtype, where)
    found = levels(x, bits, key)
    return None if found is None else Code(v.size, v.dtype, where, found[0], bits, found[1])


def _binary(x: Array, size: int, dtype: np.dtype[Any], where: Where) -> Code | None:
    """Signs and mean magnitudes of numbers that stand at `where` in an update."""
    scales = np.empty(-(-x.size // WIDTH), np.float32)
    for block, here in rows(x.size):
        np.abs(x[block]).reshape(here.stop - here.start, -1).mean(axis=1, out=scales[here])
    if not (scales <= LARGEST).all():
        return None
    return Code(size, dtype, where, (x >= 0).view(np.uint8), 1, scales)


def largest(v: Array, fraction: float, key: Rng, *, exact: bool = False) -> NDArray[np.int64]:
    """Where the largest `fraction` of entries stand, see topk(); at least one place if there is one."""
    if exact or v.size <= SAMPLE:
        return _largest(v, ceil(fraction * v.size))
    return _above(v, _threshold(v, fraction, key.at("sample")))


def _largest(v: Array, k: int) -> NDArray[np.int64]:
    """Where the k entries of largest magnitude stand, the earlier of equals first."""
    if not 0 < k < v.size:
        return np.arange(v.size)
    size = np.abs(v)
    threshold = np.partition(size, size.size - k)[size.size - k]
    above = size > threshold
    ties = np.flatnonzero(size == threshold)[: k - np.count_nonzero(above)]
    above[ties] = True
    return np.flatnonzero(above)


def _threshold(v: Array, fraction: float, key: Rng) -> float:
    """The magnitude that about a `fraction` of entries reaches, by SAMPLE of them."""
    random = key.generator().bit_generator.random_raw(SAMPLE)
    size = np.abs(v[(random % np.uint64(v.size)).astype(np.int64)])
    k = min(max(round(fraction * SAMPLE), 1), SAMPLE)
    return float(np.partition(size, SAMPLE - k)[SAMPLE - k])


def _above(v: Array, threshold: float) -> NDArray[np.int64]:
    """Where magnitudes reach the threshold and are not 0; at least one place."""
    least = max(threshold, np.finfo(v.dtype).smallest_subnormal)
    room = np.empty(min(_CHUNK, v.size), v.dtype)
    found = []
    for block in blocks(v.size, _CHUNK):
        size = np.abs(v[block], out=room[: block.stop - block.start])
        found.append(np.flatnonzero(size >= least) + block.start)
    where = np.concatenate(found)
    return where if len(where) else np.array([np.abs(v).argmax()])


@dataclass(frozen=True)
class _Remembering:
    """The way out of the compression `squash` with error feedback. `draw`: the places it takes, where they do
    not follow from the numbers.
    """

    name: str
    squash: Squash
    draw: Draw | None

    def __call__(self, update: Update, e: State, ctx: Context) -> tuple[Update, State]:
        dense(update, self.name)
        if update.layout != e.layout:
            raise MisuseError(
                f"{self.name} keeps an error for each leaf of the model, and this update has others"
            )
        v = update.buffer + e.buffer
        with np.errstate(all="ignore"):
            code = self.squash(v, ctx) if isfinite(np.dot(v, v)) else None
        if code is None:  # a diverged client: the aggregator must see it, not a squashed NaN
            return Update(update.layout, v), e
        v[slice(None) if code.where is None else places(code)] -= code.values()
        return Coded(update.layout, code), Update(update.layout, v)


def _remembering(name: str, squash: Squash, draw: Draw | None = None) -> Transform:
    """The compression `squash` with error feedback; state: the error e as an Update."""

    def init(params: Update) -> Update:
        return params.zeros()

    out = _Remembering(name, squash, draw)
    return Codec(name, out, init=init, keeps="out", loses_bound=True, whole=True)
