"""A round's updates as a matrix U (n, d) that is never in memory as a whole.

Rows stay where they are: float32 arrays, or views of files that answers came in. Everything rules need
is one of three walks over blocks of columns:

    columns(f)     f(U[:, block]) for every block: rules by coordinate
    gram           U Uᵀ (n, n), all distances and angles: d_ij² = g_ii + g_jj - 2 g_ij
    combine(w)     w U (d,), the answer of every rule that weighs rows

What comes before a rule (neighbours' means, bounded norms) is a matrix as well: the rows of
`mixed(M)` are M U, its Gram matrix is M U Uᵀ Mᵀ, and neither needs another walk. So a rule over 50 updates
of 60 million numbers takes one or two walks, and the memory of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...core.update import Array, blocks
from ..kernel import spread

BLOCK = 1 << 20  # numbers of all rows together that are worked on at a time: 4 MiB of float32


@dataclass(frozen=True)
class Stack:
    """n rows of d numbers. `rows`: arrays (d,), or anything of which a slice is one.

    `peers`: who sent each row, empty where rows are sums of several. `clients`: how many stand behind all
    rows. `mix`: (m, n), then row i of the stack is mix[i] U.
    """

    rows: Sequence[Any]
    size: int
    peers: tuple[int, ...] = ()
    clients: int = 0
    mix: Array | None = None
    under: Stack | None = None

    @classmethod
    def of(cls, rows: Sequence[Any] | Array, peers: Sequence[int] = (), clients: int = 0) -> Stack:
        """A stack of some rows (at least one), as a matrix (n, d) or a sequence of arrays (d,)."""
        return cls(list(rows), len(rows[0]), tuple(peers), clients or len(rows))

    @property
    def n(self) -> int:
        """How many rows."""
        return len(self.rows) if self.mix is None else len(self.mix)

    def mixed(self, mix: Array, *, peers: bool = False) -> Stack:
        """The stack whose rows are mix @ rows; `peers`: row i still is what peer i sent, scaled."""
        whole = mix if self.mix is None else mix @ self.mix
        kept = self.peers if peers else ()
        return replace(self, mix=whole, peers=kept, under=self.under or self)

    def block(self, block: slice) -> Array:
        """U[:, block], a copy in the rows' own precision."""
        raw = np.stack([row[block] for row in self.rows])
        if self.mix is None:
            return raw
        if self._scales is not None:
            raw *= self._scales.astype(raw.dtype)[:, None]
            return raw
        return np.asarray(self.mix.astype(raw.dtype) @ raw)

    @cached_property
    def _scales(self) -> Array | None:
        """(n,), where the mix only scales rows."""
        mix = self.mix
        if mix is None or mix.shape[0] != mix.shape[1] or np.count_nonzero(mix - np.diag(np.diag(mix))):
            return None
        return np.asarray(np.diag(mix))

    def matrix(self) -> Array:
        """All of it in float64: n * d * 8 bytes, for rules that want to see it so."""
        whole = np.empty((self.n, self.size))
        for block in self._blocks():
            whole[:, block] = self.block(block)
        return whole

    def columns(self, f: Callable[..., Array], *along: Array) -> Array:
        """f, (n, width) -> (width,), of every block of columns: (d,) float64.

        `along`: arrays (d,), of which `f` gets the same block.
        """
        answer, some = np.empty(self.size), self._blocks()

        def work(part: slice) -> None:
            for block in some[part]:
                answer[block] = f(self.block(block), *(other[block] for other in along))

        spread(len(some), work, least=2)
        return answer

    @cached_property
    def gram(self) -> Array:
        """(n, n) float64: U Uᵀ."""
        if self.mix is not None and self.under is not None:
            return np.asarray(self.mix @ self.under.gram @ self.mix.T)
        found = np.zeros((self.n, self.n))
        for block in self._blocks():
            some = self.block(block).astype(np.float64)
            found += some @ some.T
        return found

    @property
    def norms(self) -> Array:
        """(n,): the L2 norm of each row."""
        return np.asarray(np.sqrt(np.maximum(np.diag(self.gram), 0.0)))

    @property
    def apart(self) -> Array:
        """(n, n): squared distances between rows, never below 0."""
        each = np.diag(self.gram)
        far: Array = np.maximum(each[:, None] + each - 2 * self.gram, 0.0)
        np.fill_diagonal(far, 0.0)
        return far

    def dot(self, one: Array) -> Array:
        """(n,): the inner product of each row with a vector (d,)."""
        found = np.zeros(self.n)
        for block in self._blocks():
            found += self.block(block).astype(np.float64) @ one[block]
        return found

    def combine(self, w: Array) -> Array:
        """w U (d,) float64, for weights w (n,); rows of weight 0 are not read."""
        if self.mix is not None:
            w = w @ self.mix
        used = np.flatnonzero(w).tolist()
        answer, some = np.zeros(self.size), self._blocks()

        def work(part: slice) -> None:
            for block in some[part]:
                for i in used:
                    answer[block] += w[i] * self.rows[i][block].astype(np.float64)

        spread(len(some), work, least=2)
        return answer

    def _blocks(self) -> list[slice]:
        """Blocks of columns: a function of the shape alone, so that cores cannot change a result."""
        return list(blocks(self.size, max(BLOCK // len(self.rows), 1024)))
