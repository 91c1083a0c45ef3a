"""From real numbers to integers modulo 2**bits and back, so that sums can be masked or packed.

    out    z = rint(weight * x * 2**p) mod 2**bits
    back   Σ weight * x = signed(Σ z) / 2**p

The binary point p follows from what is declared: no sum may reach half the ring. A contribution's
weight multiplies before rounding, because integers of a ring cannot be scaled afterwards.
"""

from __future__ import annotations

from math import ceil, log2

import numpy as np

from ..core.errors import ConfigError, ProtocolError
from ..core.registry import part
from ..core.transform import Context, State, Transform, transform
from ..core.update import Array, Update
from .quantise import dense
from .server import positive


@part("transform")
def ring(bits: int = 32, largest: float = 16.0, total: float = 2.0**20) -> Transform:
    """Fixed point modulo 2**bits, exact in any order; everything after it sees integers.

    `bits`: 8 to 64. `largest` > 0: magnitude of a single number, larger ones are refused.
    `total` > 0: the most that the weights of a round may sum to. A number's share of the sum is
    rounded to 2**-p, where p = bits - 2 - ceil(log2(largest * total)).
    Raises ConfigError where that leaves nothing; going out ProtocolError for a number that is not
    finite or too large; coming back for a round that weighs more than `total`.
    """
    positive(largest=largest, total=total)
    if not 8 <= bits <= 64:
        raise ConfigError(f"bits must be from 8 to 64, got {bits}")
    p = bits - 2 - ceil(log2(largest * total))
    if largest * 2.0**p < 1:
        raise ConfigError(
            f"in {bits} bits with sums up to {largest * total:g} one client's numbers all round to 0:"
            " take more bits, or a smaller largest or total"
        )
    unit, mask = 2.0**p, np.uint64((1 << bits) - 1)

    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        dense(update, "ring")
        for name, leaf in update.items():
            if not (np.abs(leaf) <= largest).all():
                raise ProtocolError(
                    f"leaf {name!r} is not finite or beyond largest={largest:g}: training diverged,"
                    " or ring(largest=...) is too small"
                )
        whole = np.rint(update.buffer.astype(np.float64) * (ctx.weight * unit))
        return Update(update.layout, whole.astype(np.int64).view(np.uint64) & mask, bits=bits), state

    def back(sums: Update, state: State, ctx: Context) -> tuple[Update, State]:
        if ctx.weight > total:
            raise ProtocolError(
                f"the weights sum to {ctx.weight:g}, beyond ring(total={total:g}): raise total"
            )
        return Update(sums.layout, signed(sums.buffer, bits) / unit), state

    return transform(f"ring({bits})", out, back, gives="ring")


def signed(z: Array, bits: int) -> Array:
    """Integers modulo 2**bits as those nearest to zero, int64."""
    spare = np.uint64(64 - bits)
    return np.asarray((z << spare).view(np.int64) >> np.int64(spare))
