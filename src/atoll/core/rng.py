"""Entropy as a value: one seed and a path of names give the same numbers everywhere.

A key is 64 bits. A child key is mixed from its parent and a name with SplitMix64 (Steele, Lea,
Flood 2014, "Fast splittable pseudorandom number generators", fig. 17), so a client's numbers
depend on the seed, its id and the round, and never on who else took part or in which order.
These streams are for shuffling and sampling; they are not fit for privacy or keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _mix_many(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=4096)
def _word(name: int | str) -> int:
    if isinstance(name, str):
        name = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    return _mix((int(name) + _GOLDEN) & _MASK)


@dataclass(frozen=True, slots=True)
class Rng:
    """A place in the tree of random streams; `key` is its 64-bit state."""

    key: int

    @classmethod
    def of(cls, seed: int) -> Rng:
        """The root of one seed, any integer."""
        return cls(_mix((int(seed) + _GOLDEN) & _MASK))

    def at(self, *path: int | str) -> Rng:
        """The stream below this one under `path`: `root.at("client", 7, "round", 3)`."""
        key = self.key
        for name in path:
            key = _mix(((key ^ _word(name)) + _GOLDEN) & _MASK)
        return Rng(key)

    def generator(self) -> np.random.Generator:
        """A numpy generator (Philox, keyed) at this place; calling twice gives equal ones."""
        return np.random.Generator(np.random.Philox(key=self.key))


def shuffles(keys: NDArray[np.uint64], epochs: int, n: int) -> NDArray[np.int64]:
    """Orders in which each key visits `n` rows, epoch by epoch: (len(keys), epochs, n).

    Row k depends on `keys[k]` alone, so one client by itself and the same client among a
    thousand see their rows in the same order. Each row is a permutation of range(n).
    """
    steps = np.arange(1, epochs * n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    draws = _mix_many(np.asarray(keys, np.uint64)[:, None] + steps)  # (m, epochs * n)
    return draws.reshape(len(draws), epochs, n).argsort(axis=-1, kind="stable")
