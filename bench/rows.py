"""A bench row, and how sides are timed: interleaved in one process, medians, answers compared.

Interleaving gives every side the same machine: what slows one down a minute later slows the
others too. Medians ignore the rounds that a neighbour disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """`value` in `unit`; `ratio`: how many times faster than `against`; `accuracy` on test rows.

    `accuracy_against`: the other side's. `target`: the ratio that was set as a goal, None for none.
    `engine` and `data`: what ran and on which data.
    """

    name: str
    value: float
    unit: str
    ratio: float
    against: str
    accuracy: float
    accuracy_against: float
    target: float | None
    engine: str
    data: str


class Side(Protocol):
    """One way to run the same rounds: `play` trains round r and keeps the new global model."""

    engine: str

    def play(self, r: int) -> None: ...

    def weights(self) -> NDArray[np.float32]:
        """The global model as one vector, in the order of our leaves."""

    def accuracy(self) -> float: ...


class Disagreement(Exception):  # noqa: N818  it is a finding
    """Two sides did not do the same work, so their times say nothing."""


def race(sides: Mapping[str, Side], rounds: int, closeness: float) -> dict[str, float]:
    """Median seconds a round for each side; the first is what the others are compared with.

    Raises Disagreement where a side's weights after the first round are not the first side's, to
    `closeness` of its step: same seed, same orders, same arithmetic up to rounding.
    """
    start = next(iter(sides.values())).weights()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for r in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side.play(r)
            times[name].append(time.perf_counter() - began)
        if r == 0:
            agree(sides, start, closeness)
    return {name: median(seen[1:] or seen) for name, seen in times.items()}  # the first warms up


def agree(sides: Mapping[str, Side], start: NDArray[np.float32], closeness: float) -> None:
    """Raise Disagreement where a side is further than `closeness` times the first side's step from it.

    Sums in another order part by about 1e-6. But a relu whose input is within rounding of zero may
    open on one side only, which happens once in some rounds of W1 (2.4 million relus) and
    moved float32 and float64 of one and the same loop apart by 0.02. Another order of rows or
    another rate shows as 0.1 or more.
    """
    (first, bare), *others = sides.items()
    reference = bare.weights()
    for name, side in others:
        gap = float(np.linalg.norm(side.weights() - reference) / np.linalg.norm(reference - start))
        if not gap <= closeness:
            raise Disagreement(
                f"after one round {name} is {gap:.1e} of the step from {first}; allowed {closeness:g}"
            )


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [f"{'':34}{'value':>12} {'':9}{'ratio':>8}{'goal':>7}{'accuracy':>10}{'other':>8}  engine"]
    for row in rows:
        goal = "" if row.target is None else f"{row.target:g}x"
        lines.append(
            f"{row.name:34}{row.value * 1e3:12.3f} m{row.unit:8}{row.ratio:7.2f}x{goal:>7}"
            f"{row.accuracy:10.4f}{row.accuracy_against:8.4f}  {row.engine}"
        )
    return "\n".join(lines)


Maker = Callable[[Any, int, int], Side]  # (workload, threads, rounds) -> a side at its start
