"""One series of a monitor: what is usual for it, and whether a window differs from that.

Three measures in one unit, the share of a distribution that lies elsewhere. For two normals of one spread, d
spreads apart, that is 2 Phi(d/2) - 1 = erf(d / sqrt 8), and

    KS = 2 Phi(d/2) - 1        PSI = d²        W1 / spread = d

Each counts from what is usual: 0 there, 1 where nothing is as it was. The score is the middle one, so that
two of three must agree.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from .event import Event, Limits
from .ks import ks, p_value
from .psi import psi
from .wasserstein import normalised

KEPT = 512  # values of a reference, and rows of a stable window
STRAY = 0.5  # the most that a stable window may be taken to stray: else nothing would be seen any more
MISSING = 0.2  # the share of missing values that is a fault
FEW = 10  # different values that classes have: with more, a window of one value is a sensor that is stuck


class Column(msgspec.Struct, frozen=True):
    """One series. `reference`: sorted float32. `usual`: how far stable windows stray, by measure."""

    name: str
    reference: bytes = b""
    usual: tuple[float, float, float] = (0.0, 0.0, 0.0)
    score: float = 0.0
    row: int = 0  # windows in a row that speak against what is held now
    raised: bool = False
    fault: str = ""


def settled(column: Column, windows: list[NDArray[np.float32]]) -> Column:
    """Its reference, and how far each window strays from the others."""
    parts = [x[np.isfinite(x)].astype(np.float64) for x in windows]
    usual = np.zeros(3)
    for i, x in enumerate(parts):
        others = np.concatenate([*parts[:i], *parts[i + 1 :]])
        if len(x) and len(others):
            usual = np.maximum(usual, list(_measured(others, x).values()))
    a, b, c = np.minimum(usual, STRAY)
    pooled = np.sort(np.concatenate(parts)).astype(np.float32)
    return Column(column.name, thinned(pooled).tobytes(), (float(a), float(b), float(c)))


def thinned(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """KEPT of them, evenly."""
    if len(rows) <= KEPT:
        return rows
    return rows[np.linspace(0, len(rows) - 1, KEPT).round().astype(np.intp)]


def _measured(reference: NDArray[np.float64], x: NDArray[np.float64]) -> dict[str, float]:
    """How far x lies from the reference, by three measures in one unit."""
    d = ks(reference, x)
    if reference.min() == reference.max():  # nothing to measure a distance by
        return {"psi": d, "ks": d, "w1": d}
    apart = math.sqrt(psi(reference, x)), normalised(reference, x)
    return {"psi": math.erf(apart[0] / math.sqrt(8)), "ks": d, "w1": math.erf(apart[1] / math.sqrt(8))}


def _fault(reference: NDArray[np.float64], x: NDArray[np.float32], here: NDArray[np.float64]) -> str:
    if len(here) < (1.0 - MISSING) * len(x):
        return "missing"
    return "stuck" if here.min() == here.max() and len(np.unique(reference)) > FEW else ""


def judged(
    column: Column, x: NDArray[np.float32], now: float, usual_rows: int, limits: Limits
) -> tuple[Column, tuple[Event, ...]]:
    """What its next window x says. `usual_rows`: of a stable window. A fault of the sensor is no verdict."""
    reference = np.frombuffer(column.reference, np.float32).astype(np.float64)
    here = x[np.isfinite(x)].astype(np.float64)
    if not len(reference):
        return column, ()  # it was missing in every stable window
    fault = _fault(reference, x, here)
    told: tuple[Event, ...] = ()
    if fault != column.fault:
        kind, why = ("fault", fault) if fault else ("mended", column.fault)
        figures = {"missing": 1.0 - len(here) / len(x)}
        told = (Event(kind, column.name, why, now, figures=figures),)
        column = msgspec.structs.replace(column, fault=fault)
    if fault:
        return column, told
    found = _measured(reference, here)
    room = max(1.0, math.sqrt(usual_rows / len(here)))  # all three stray by 1 / sqrt(n)
    scores = [
        max(0.0, (u - stray) / (1.0 - stray))
        for u, stray in zip(found.values(), (min(STRAY, room * s) for s in column.usual), strict=True)
    ]
    score = sorted(scores)[1]
    found |= {"p": p_value(found["ks"], len(reference), len(here)), "rows": float(len(here))}
    against = score <= limits.clear if column.raised else score >= limits.share
    row = column.row + 1 if against else 0
    column = msgspec.structs.replace(column, score=score, row=row)
    if row < limits.windows:
        return column, told
    column = msgspec.structs.replace(column, raised=not column.raised, row=0)
    kind = "raised" if column.raised else "cleared"
    return column, (*told, Event(kind, column.name, "", now, score, found))
