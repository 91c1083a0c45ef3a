"""The errors of a monitor, one by one: ADWIN and Page-Hinkley over errors between 0 and 1."""

from __future__ import annotations

from copy import deepcopy

import msgspec
import numpy as np
from numpy.typing import NDArray

from .adwin import Adwin
from .event import Event, Limits
from .page_hinkley import PageHinkley

SURE = 0.0002  # ADWIN's delta: at .002 it raised one alarm in two million stationary errors


class Errors(msgspec.Struct, frozen=True):
    """`scale`: the error that counts as 1. `usual`: their mean; `level`: the mean that raised the alarm."""

    scale: float = 1.0
    usual: float = 0.0
    level: float = 0.0
    score: float = 0.0
    row: int = 0
    raised: bool = False
    adwin: Adwin = msgspec.field(default_factory=lambda: Adwin(delta=SURE))
    page_hinkley: PageHinkley = msgspec.field(default_factory=PageHinkley)


def calibrated(errors: NDArray[np.float32], *, values: bool) -> Errors | None:
    """Detectors that have seen the stable windows; None where no label came."""
    if not len(errors):
        return None
    scale = max(4.0 * float(errors.mean()), 1e-30) if values else 1.0
    scaled = np.minimum(errors / scale, 1.0)
    made = Errors(scale, float(scaled.mean()))
    for x in scaled.tolist():
        made.adwin.add(x)
        made.page_hinkley.add(x)
    return made


def heard_in(
    held: Errors, errors: NDArray[np.float32], now: float, limits: Limits
) -> tuple[Errors, tuple[Event, ...]]:
    """Errors one by one; an alarm is cleared where they are half-way back, for some windows."""
    if not len(errors):
        return held, ()
    held = deepcopy(held)
    scaled = np.minimum(errors / held.scale, 1.0)
    heard, level = False, held.level
    for x in scaled.tolist():
        before = held.adwin.mean
        cut = held.adwin.add(x) and held.adwin.mean > before
        if (held.page_hinkley.add(x) or cut) and not heard and not held.raised:
            heard, level = True, max(held.adwin.mean, float(scaled.mean()))
    mean = float(scaled.mean())
    score = max(0.0, (mean - held.usual) / max(1.0 - held.usual, 1e-9))
    figures = {"error": mean * held.scale, "usual": held.usual * held.scale, "rows": float(len(errors))}
    if heard:
        held = msgspec.structs.replace(held, raised=True, level=level, score=score, row=0)
        return held, (Event("raised", "error", "", now, score, figures),)
    row = held.row + 1 if held.raised and mean < (held.usual + held.level) / 2 else 0
    if row >= limits.windows:
        held = msgspec.structs.replace(held, raised=False, score=score, row=0)
        return held, (Event("cleared", "error", "", now, score, figures),)
    return msgspec.structs.replace(held, score=score, row=row), ()
