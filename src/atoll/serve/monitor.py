"""Whether what a model is given, says or gets wrong has changed since it was put to work.

    state = begun(("temperature", "torque"))
    state, events = seen(state, Seen(rows, said, errors), now, limits)      for every window, in order

The first `stable` windows are what is usual at this node: together the reference, and each of them against
the others says how far a usual window strays. From then on each column of the rows and of the answers has a
score (drift/column.py), and errors, where labels come, are heard one by one (drift/errors.py).

A window without a verdict changes nothing: one with too few rows, which wait for the next, or a column that
is missing or stuck at one value. That is told as a fault of the sensor, which is no change of the world. No
time is measured here, so that a clock that jumps does no harm. The state holds readings: keep it sealed.
Events hold figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from .drift.column import Column, judged, settled, thinned
from .drift.errors import Errors, calibrated, heard_in
from .drift.event import Event, Limits

USUAL = Limits()


@dataclass(frozen=True)
class Seen:
    """A window. `rows`: (n, d); `said`: (n, k), the model's answers; `errors`: (n,), at least 0: 0 or 1 for
    classes, absolute errors for values. Missing values are not finite.
    """

    rows: NDArray[np.floating]
    said: NDArray[np.floating] | None = None
    errors: NDArray[np.floating] | None = None


class State(msgspec.Struct, frozen=True):
    """`waiting`: stable windows so far, float32 by rows; `pending`: rows that are too few for a window;
    with the errors of both, `errors_later` those that came by themselves. `rows`: of a usual window.
    """

    columns: tuple[Column, ...]
    values: bool = False
    waiting: tuple[bytes, ...] = ()
    pending: bytes = b""
    errors_waiting: bytes = b""
    errors_pending: bytes = b""
    errors_later: bytes = b""
    rows: int = 0
    seen: int = 0
    errors: Errors | None = None

    @property
    def calibrated(self) -> bool:
        """Whether it is known what is usual."""
        return self.rows > 0

    @property
    def raised(self) -> tuple[str, ...]:
        """What has changed, by name."""
        names = tuple(c.name for c in self.columns if c.raised)
        return (*names, "error") if self.errors is not None and self.errors.raised else names

    @property
    def score(self) -> float:
        """The largest of the columns' and the error's."""
        return max([c.score for c in self.columns] + [self.errors.score if self.errors else 0.0], default=0.0)


def begun(names: tuple[str, ...], *, values: bool = False) -> State:
    """Nothing seen yet. `names`: of all columns, rows then answers. `values`: errors are sizes."""
    return State(tuple(Column(name) for name in names), values)


def renewed(state: State) -> State:
    """For a model that this node made itself: what is usual is learnt anew, and an error that was raised
    stays so until it is back.
    """
    held = state.errors
    fresh = None if held is None else Errors(held.scale, held.usual, held.level, raised=held.raised)
    columns = tuple(Column(c.name, fault=c.fault) for c in state.columns)
    return State(columns, state.values, seen=state.seen, errors=fresh)


def seen(state: State, window: Seen, now: float, limits: Limits = USUAL) -> tuple[State, tuple[Event, ...]]:
    """What the next window changes. `now`: only told on. Raises DataError for rows of another width."""
    fresh, errors = _joined(state, window)
    state = msgspec.structs.replace(state, pending=b"", errors_pending=b"")
    if len(fresh) < limits.least:
        return msgspec.structs.replace(state, pending=fresh.tobytes(), errors_pending=errors.tobytes()), ()
    state = msgspec.structs.replace(state, seen=state.seen + 1)
    if not state.calibrated:
        return _stable(state, fresh, errors, now, limits)
    verdicts = [
        judged(column, x, now, state.rows, limits) for column, x in zip(state.columns, fresh.T, strict=True)
    ]
    events = tuple(event for _, told in verdicts for event in told)
    state = msgspec.structs.replace(state, columns=tuple(c for c, _ in verdicts))
    if state.errors is None:
        return _late(state, errors, limits), events
    wrong, more = heard_in(state.errors, errors, now, limits)
    return msgspec.structs.replace(state, errors=wrong), events + more


def heard(
    state: State, errors: NDArray[np.floating], now: float, limits: Limits = USUAL
) -> tuple[State, tuple[Event, ...]]:
    """What errors change that are known only now, of rows that were seen before; those that are too few for a
    verdict wait for the next. `errors`: as in Seen.
    """
    some = np.asarray(errors, np.float32)
    some = np.concatenate([np.frombuffer(state.errors_later, np.float32), some[np.isfinite(some)]])
    if len(some) < limits.least:
        return msgspec.structs.replace(state, errors_later=some.tobytes()), ()
    state = msgspec.structs.replace(state, errors_later=b"")
    if state.errors is None:
        return _late(state, some, limits), ()
    wrong, told = heard_in(state.errors, some, now, limits)
    return msgspec.structs.replace(state, errors=wrong), told


def _joined(state: State, window: Seen) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The window's columns and errors, after those that waited for it."""
    parts = [part for part in (window.rows, window.said) if part is not None]
    made = [np.asarray(part, np.float32).reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    width, wide = sum(part.shape[1] for part in made), len(state.columns)
    if width != wide or len({len(part) for part in made}) != 1:
        raise DataError(f"expected windows of {wide} columns, got {width}: begin a monitor for these anew")
    here = np.concatenate(made, axis=1)
    errors = np.zeros(0, np.float32) if window.errors is None else np.asarray(window.errors, np.float32)
    errors = errors[np.isfinite(errors)]
    return (
        np.concatenate([_table(state.pending, wide), here]),
        np.concatenate([np.frombuffer(state.errors_pending, np.float32), errors]),
    )


def _table(data: bytes, wide: int) -> NDArray[np.float32]:
    return np.frombuffer(data, np.float32).reshape(-1, wide)


# -- what is usual ------------------------------------------------------------------------------------


def _stable(
    state: State, fresh: NDArray[np.float32], errors: NDArray[np.float32], now: float, limits: Limits
) -> tuple[State, tuple[Event, ...]]:
    """One more stable window; with the last of them it is known what is usual."""
    waiting = (*state.waiting, thinned(fresh).tobytes())
    erring, wrong = state.errors_waiting + errors.tobytes(), state.errors
    told: tuple[Event, ...] = ()
    if wrong is not None:
        wrong, told = heard_in(wrong, errors, now, limits)
    if len(waiting) < max(2, limits.stable):
        return msgspec.structs.replace(state, waiting=waiting, errors_waiting=erring, errors=wrong), told
    tables = [_table(data, len(state.columns)) for data in waiting]
    known = [settled(c, [t[:, i] for t in tables]) for i, c in enumerate(state.columns)]
    wrong = wrong or calibrated(np.frombuffer(erring, np.float32), values=state.values)
    strays = [max(c.usual) for c in known]
    figures = {"windows": float(len(tables)), "stray": max(strays, default=0.0)}
    if wrong is not None:
        figures["error"] = wrong.usual * wrong.scale
    rows = int(np.median([len(t) for t in tables]))
    made = State(tuple(known), state.values, rows=rows, seen=state.seen, errors=wrong)
    return made, (*told, Event("calibrated", at=now, figures=figures))


def _late(state: State, errors: NDArray[np.float32], limits: Limits) -> State:
    """Labels that began to come after the stable windows: as many of them say what error is usual."""
    erring = state.errors_waiting + errors.tobytes()
    if len(erring) < limits.stable * limits.least * errors.itemsize:
        return msgspec.structs.replace(state, errors_waiting=erring)
    known = calibrated(np.frombuffer(erring, np.float32), values=state.values)
    return msgspec.structs.replace(state, errors=known, errors_waiting=b"")
