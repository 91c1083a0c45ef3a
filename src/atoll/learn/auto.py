"""Compression by measure: of an update as it is and in 8, 4 or 2 bits a number, what pays on a client's link.

    seconds = bytes / uplink + bytes of float32 / speed of encoding

A client chooses once a run, at its first answer, and keeps the choice with what else a chain keeps there. How
many bytes each level takes is measured on a sample of that first update; the link and the speed are facts
that its node hands over (`linked`), and are declared ones where nobody has measured, as in a simulation. No
clock is read here: the same update, facts and key make the same choice.

Under noise that hides clients nothing is measured on an update, or its size would follow private numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal, NamedTuple

import numpy as np

from ..core.errors import CompositionError, ConfigError
from ..core.registry import part
from ..core.rng import Rng
from ..core.transform import Context, State, Transform, chain
from ..core.update import Array, Update
from ..privacy import dp
from ..wire.coded import WIDTH, Code, encode, plain_bytes
from .quantise import Codec, coded, levels

LEVELS = (8, 4, 2)  # bits, after none; on MNIST they cost 1.00, 1.03 and 1.01 of float32's rounds
MANY = 10  # clients of a round for two bits: where fewer are averaged their noise costs rounds
SHARE = 0.1  # of the seconds before, that a lossier level must save: less is within what links vary by
LEAST = 0.02  # seconds that it must save: a round takes as long for its letters
SAMPLE, BLOCKS = 1 << 16, 4  # numbers of a block, and blocks: some milliseconds for all levels
MBIT = 125_000.0  # bytes a second
NONE, UNSET = 0, -1  # of the state's one number, which else is a level


class How(NamedTuple):
    """What a client chooses by: bytes a second that it sends, and bytes of float32 a second that it encodes.

    `mild`: not two bits. `hidden`: the choice must not follow the update.
    """

    uplink: float = 10 * MBIT
    speed: float = 1e9  # one core of a laptop, packing included
    mild: bool = False
    hidden: bool = False


_DECLARED = How()


@dataclass(frozen=True)
class Auto(Codec):
    """What `compress` makes."""

    how: How = _DECLARED


@part("transform")
def compress(uplink: float = 10.0) -> Transform:
    """What pays on each client's link: updates as they are, or as int8(), int4() or int2() makes them.

    `uplink`: Mbit/s, of clients that no long transfer has shown theirs. Two bits only in rounds of ten
    clients or more, under a rule that sees sums and without a promise of privacy.
    """
    if not (uplink > 0 and isfinite(uplink)):
        raise ConfigError(f"uplink must be above 0 Mbit/s, got {uplink}", "$.uplink")
    name = "compress()" if uplink == 10.0 else f"compress(uplink={uplink:g})"
    return _auto(name, How(uplink * MBIT))


def _auto(name: str, how: How) -> Auto:
    out = partial(_out, name, how)
    return Auto(name, out, init=_unset, keeps="out", loses_bound=True, whole=True, how=how)


def fitted(given: Transform, sees: Literal["sum", "each"], shows: Literal["sum", "each"]) -> Transform:
    """The chain with its compress() told what the rule sees, and whether noise hides clients.

    Raises CompositionError where it would have nothing to choose.
    """
    mine = auto(given)
    if mine is None:
        return given
    other = next((s for s in given.steps if isinstance(s, Codec) and s is not mine), None)
    if isinstance(other, Auto):
        raise CompositionError(f"{mine} stands twice: keep one")
    if other is not None:
        raise CompositionError(
            f"{mine} chooses how updates are coded, and {other} codes them already: keep {other} where the"
            f" job is to say, or {mine} where the link is"
        )
    ring = next((s for s in given.steps if s.gives == "ring"), None)
    if shows == "sum" or ring is not None or dp.local(given):
        who = "the exchange" if ring is None else str(ring)
        end = "noise of each client's own" if dp.local(given) else f"whole numbers that {who} makes"
        raise CompositionError(
            f"updates leave as {end}, where no compact form is left to choose: leave {mine} out"
        )
    hidden = dp.noisy(given) is not None
    return _with(given, lambda how: how._replace(mild=sees == "each" or hidden, hidden=hidden))


def linked(given: Transform, uplink: float, speed: float) -> Transform:
    """The chain of a client that sends and encodes so many bytes a second; 0 where nobody has measured."""
    return _with(given, lambda how: how._replace(uplink=uplink or how.uplink, speed=speed or how.speed))


def chosen(given: Transform, state: State) -> int | None:
    """The bits that a client's state of this chain says, NONE for an update as it is; None before that."""
    slots = state or (None,) * len(given.steps)
    for step, slot in zip(given.steps, slots, strict=True):
        if isinstance(step, Auto) and slot is not None and (bits := _bits(slot)) != UNSET:
            return bits
    return None


def choose(update: Update, how: How, cohort: int, key: Rng) -> int | None:
    """The level that pays: bits, or NONE. None where an update that is not finite says nothing."""
    sizes = _declared(update) if how.hidden else _measured(update, key)
    if sizes is None:
        return None
    encoding = 4 * update.layout.size / how.speed
    best, least = NONE, sizes[0] / how.uplink
    for bits, size in zip(LEVELS, sizes[1:], strict=True):
        if bits == 2 and (how.mild or cohort < MANY):
            break
        seconds = size / how.uplink + encoding
        if least - seconds >= max(SHARE * least, LEAST):
            best, least = bits, seconds
    return best


def auto(given: Transform) -> Auto | None:
    """The compress() of a chain."""
    return next((step for step in given.steps if isinstance(step, Auto)), None)


def _with(given: Transform, change: Callable[[How], How]) -> Transform:
    if auto(given) is None:
        return given
    return chain(*(_auto(s.name, change(s.how)) if isinstance(s, Auto) else s for s in given.steps))


def _out(name: str, how: How, update: Update, state: State, ctx: Context) -> tuple[Update, State]:
    if update.rows:  # of some rows only: that is small already
        return update, state
    bits: int | None = _bits(state)
    if bits == UNSET:
        bits = choose(update, how, ctx.population, ctx.key.at("choice"))
        if bits is None:  # a diverged client: the aggregator must see it
            return update, state
        state = _state(bits)
    return (coded(name, bits, update, ctx.key) if bits else update), state


def _declared(update: Update) -> list[float]:
    """Bytes of each level, as if nothing packed."""
    n = update.layout.size
    return [float(update.buffer.nbytes), *(n * bits / 8 + 4 * n / WIDTH for bits in LEVELS)]


def _measured(update: Update, key: Rng) -> list[float] | None:
    """Bytes of each level, by some blocks of the update."""
    x = _sample(update.buffer)
    found: list[float] = [plain_bytes(x)]
    for bits in LEVELS:
        made = levels(x, bits, key)
        if made is None:
            return None
        found.append(encode(Code(x.size, x.dtype, None, made[0], bits, made[1])).nbytes)
    return [bytes_ * update.layout.size / max(x.size, 1) for bytes_ in found]


def _sample(x: Array) -> Array:
    """Some blocks of the numbers, from its first to its last; all of few."""
    if x.size <= BLOCKS * SAMPLE:
        return x
    starts: Sequence[int] = [i * (x.size - SAMPLE) // (BLOCKS - 1) for i in range(BLOCKS)]
    return np.concatenate([x[start : start + SAMPLE] for start in starts])


def _unset(params: Update) -> Update:
    return _state(UNSET)


def _state(bits: int) -> Update:
    return Update.of({"bits": np.array([bits], np.float32)})


def _bits(state: Update) -> int:
    return int(state["bits"][0])
