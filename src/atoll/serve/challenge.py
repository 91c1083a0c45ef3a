"""Champion and challenger: whether a new model is better than the one that serves, on rows neither learnt
from.

Fisher 1935, "The design of experiments", §21: both answer the same rows, and where they are equally good
the sign of each difference is a coin's. Rows that are near in time are alike, so the differences are added
up in BLOCKS blocks of successive rows first, and the coins are the blocks' (Politis, Romano, Wolf 1999,
"Subsampling", on why not the rows').

No win, no swap: a challenger must lose less than the champion by `margin` of it, and by more than chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .terms import Terms

BLOCKS, FLIPS = 20, 4095


@dataclass(frozen=True)
class Verdict:
    """`why`: the challenger did not win, in a sentence; "" where it did. `champion`, `challenger`: their mean
    losses. `p`: see `chance`.
    """

    why: str
    rows: int
    champion: float = float("nan")
    challenger: float = float("nan")
    p: float = 1.0

    @property
    def won(self) -> bool:
        """Whether the challenger is to serve."""
        return not self.why


def judged(
    champion: NDArray[np.floating],
    challenger: NDArray[np.floating],
    labels: NDArray[np.generic],
    terms: Terms,
    *,
    classes: bool,
    seed: int = 0,
) -> Verdict:
    """Compare losses (n,) on the same rows in the order of time; `labels` (n,): theirs. `classes`: whether
    these are classes, of which the rows must show two.

    A loss that is not finite is the worst there is; where the champion has one, it is left out for both.
    """
    sound = np.isfinite(champion)
    old, new = champion[sound].astype(np.float64), challenger[sound].astype(np.float64)
    n = len(old)
    if n < terms.least:
        return Verdict(f"{n} rows are too few to compare on: {terms.least} are needed", n)
    if classes and len(np.unique(labels[sound])) < 2:
        return Verdict("all rows are of one class: nothing can be compared on them", n)
    before, after = float(old.mean()), float(new.mean())
    if not np.isfinite(new).all():
        return Verdict("the new model has answers that are not finite", n, before)
    p = chance(old - new, seed)
    if not after < before * (1.0 - terms.margin):
        return Verdict("the new model is not better by the margin", n, before, after, p)
    if p > terms.alpha:
        return Verdict(f"chance explains the difference (p = {p:.2g})", n, before, after, p)
    return Verdict("", n, before, after, p)


def chance(gains: NDArray[np.float64], seed: int = 0) -> float:
    """How often a sum at least as large comes of blocks whose signs a coin draws; this one is one."""
    blocks = np.array([block.sum() for block in np.array_split(gains, min(BLOCKS, len(gains)))])
    signs = np.random.default_rng(seed).integers(0, 2, (FLIPS, len(blocks))) * 2 - 1
    return float((1 + np.count_nonzero(signs @ blocks >= blocks.sum() - 1e-12)) / (1 + FLIPS))
