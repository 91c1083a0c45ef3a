"""Who is drawn, and which rows are: from a cipher's keystream, as what sampling hides must not be foreseen.

Amplification by sampling holds for coins that nobody can tell from chance. So cohorts of jobs with a promise,
and rows at their sites, are not drawn from `Rng`'s streams of 64 bits but from AES-256 in counter mode, under
keys that follow from a secret of 32 bytes: the same secret and path draw the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.errors import MisuseError
from ..core.rng import Rng
from .hazmat.suite import INTL
from .noise import KEY


@dataclass(frozen=True, slots=True)
class Hidden(Rng):
    """A place in the tree of streams below a secret; `key` is 64 bits that follow from it."""

    secret: bytes = field(default=b"", repr=False)

    @classmethod
    def below(cls, secret: bytes, *path: int | str) -> Hidden:
        """The stream below a secret of at least 32 bytes, and a path of names."""
        made = blake2b(repr(path).encode(), key=secret, digest_size=KEY + 8, person=b"atoll draws").digest()
        return cls(int.from_bytes(made[KEY:], "little"), made[:KEY])

    def at(self, *path: int | str) -> Hidden:
        """The stream below this one."""
        return self.below(self.secret, *path)

    def generator(self) -> Any:
        """What draws; calling twice gives equal ones."""
        return Draws(self.secret)


class Draws:
    """Draws from a cipher's keystream, by the names that numpy's generators have for them."""

    def __init__(self, key: bytes) -> None:
        self._stream = INTL.stream(key)

    def random(self, size: int) -> NDArray[np.float64]:
        """Uniform numbers, at least 0 and below 1, in steps of 2**-53: (size,)."""
        return np.asarray((self._bits(size) >> np.uint64(11)) * 2.0**-53)

    def permutation(self, of: ArrayLike) -> NDArray[Any]:
        """`of` in an order drawn from all with equal chances; a whole number stands for those below it."""
        values = np.asarray(of)
        values = np.arange(int(values)) if values.ndim == 0 else values
        return np.asarray(values[np.argsort(self._bits(len(values)), kind="stable")])

    def choice(self, of: ArrayLike, size: int, *, replace: bool = False, p: Any = None) -> NDArray[Any]:
        """`size` different ones of them, with equal chances: others are not accounted, and refused."""
        if replace or p is not None:
            raise MisuseError("who takes part in a job with a promise is drawn once, with equal chances")
        return self.permutation(of)[:size]

    def _bits(self, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._stream.update(bytes(8 * size)), "<u8")
