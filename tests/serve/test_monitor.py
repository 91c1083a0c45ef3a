"""The monitor over windows of a seeded world: what must raise an alarm, and what must not."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from atoll.core.errors import DataError
from atoll.serve.monitor import Event, Limits, Seen, State, begun, seen

NAMES = ("temperature", "torque", "type", "answer")


def window(rng: np.random.Generator, n: int = 120, *, shift: float = 0.0, error: float = 0.2) -> Seen:
    """Two sensors, a rare class, an answer; `shift`: of the first sensor, in its spreads."""
    rows = np.column_stack(
        [rng.normal(300 + 2 * shift, 2, n), rng.gamma(3.0, 12.0, n), rng.random(n) < 0.1]
    ).astype(np.float32)
    return Seen(rows, rng.random((n, 1)), (rng.random(n) < error).astype(np.float32))


def played(windows: list[Seen], state: State | None = None, **limits: Any) -> tuple[State, list[Event]]:
    state, events = state or begun(NAMES), []
    for i, w in enumerate(windows):
        state, told = seen(state, w, float(i), Limits(**limits))
        events += told
    return state, events


def steady(seed: int, count: int, **more: Any) -> list[Seen]:
    rng = np.random.default_rng(seed)
    return [window(rng, **more) for _ in range(count)]


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(e.kind, e.what) for e in events]


@pytest.mark.parametrize("n", [50, 120, 400])
def test_a_world_that_does_not_change_raises_nothing(n: int) -> None:
    for seed in range(3, 8):
        state, events = played(steady(seed, 60, n=n))
        assert kinds(events) == [("calibrated", "")]
        assert state.raised == ()


def test_a_shifted_sensor_is_named_and_cleared_when_it_is_back() -> None:
    state, _ = played(steady(1, 20))
    state, events = played(steady(2, 5, shift=1.5), state)
    assert kinds(events) == [("raised", "temperature")]
    assert state.raised == ("temperature",)
    assert events[0].score > 0.2
    assert events[0].figures["p"] < 1e-3
    assert state.score == pytest.approx(next(c.score for c in state.columns if c.name == "temperature"))
    state, events = played(steady(3, 4), state)
    assert kinds(events) == [("cleared", "temperature")]
    assert state.raised == ()


@pytest.mark.parametrize(("shift", "found"), [(0.25, False), (1.0, True)])
def test_what_counts_is_a_fifth_of_the_distribution(shift: float, *, found: bool) -> None:
    """Half a spread moves 20 % of a normal elsewhere, beside what is usual."""
    for seed in range(5):
        state, _ = played(steady(seed, 10, n=400))
        state, events = played(steady(100 + seed, 6, n=400, shift=shift), state)
        assert bool(events) is found


def test_one_odd_window_is_not_a_change() -> None:
    state, _ = played(steady(1, 20))
    odd = steady(2, 1, shift=3.0) + steady(3, 1)
    assert played(odd * 5, state)[1] == []


def test_errors_that_rise_are_heard_within_400_and_cleared() -> None:
    state, _ = played(steady(1, 40))
    state, events = played(steady(2, 4, error=0.35), state)
    assert kinds(events) == [("raised", "error")]
    assert 100 * (events[0].at + 1) <= 400
    state, events = played(steady(3, 5, error=0.2), state)
    assert kinds(events) == [("cleared", "error")]


def test_errors_of_values_have_a_scale_of_their_own() -> None:
    rng = np.random.default_rng(5)

    def windows(count: int, size: float) -> list[Seen]:
        return [
            Seen(rng.normal(size=(100, 1)), None, size * np.abs(rng.normal(size=100))) for _ in range(count)
        ]

    state, events = played(windows(60, 17.0), begun(("x",), values=True))
    assert kinds(events) == [("calibrated", "")]
    assert events[0].figures["error"] == pytest.approx(17.0 * np.sqrt(2 / np.pi), rel=0.1)
    assert kinds(played(windows(8, 26.0), state)[1]) == [("raised", "error")]


def test_labels_that_begin_to_come_later_are_heard() -> None:
    def bare(found: list[Seen]) -> list[Seen]:
        return [Seen(w.rows, w.said) for w in found]

    state, _ = played(bare(steady(1, 20)))
    state, _ = played(steady(2, 10), state)
    assert kinds(played(steady(3, 6, error=0.5), state)[1]) == [("raised", "error")]


def broken(kind: str, w: Seen) -> Seen:
    rows = w.rows.copy()
    if kind == "stuck":
        rows[:, 0] = 300
    elif kind == "nan":
        rows[:, 0] = np.nan
    elif kind == "some nan":
        rows[::20, 0] = np.inf
    elif kind == "one class":
        rows[:, 2] = 0
    return Seen(rows, w.said, w.errors)


@pytest.mark.parametrize("kind", ["stuck", "nan", "some nan", "one class"])
def test_a_broken_sensor_is_no_change_of_the_world(kind: str) -> None:
    state, _ = played(steady(1, 20))
    state, events = played([broken(kind, w) for w in steady(2, 6)], state)
    faulty = "temperature" if kind in ("stuck", "nan") else ""
    assert kinds(events) == ([("fault", faulty)] if faulty else [])
    state, events = played(steady(3, 3), state)
    assert kinds(events) == ([("mended", faulty)] if faulty else [])


@pytest.mark.parametrize("kind", ["stuck", "nan", "one class"])
def test_what_was_broken_from_the_start_does_not_stop_the_rest(kind: str) -> None:
    state, events = played([broken(kind, w) for w in steady(2, 12)])
    assert kinds(events) == [("calibrated", "")]
    shifted = [broken(kind, w) for w in steady(3, 4)]
    for w in shifted:
        w.rows[:, 1] *= 3
    assert kinds(played(shifted, state)[1]) == [("raised", "torque")]


def test_a_clock_that_jumps_changes_nothing_but_the_stamp() -> None:
    windows = steady(1, 20) + steady(2, 5, shift=1.5)
    state, jumped = begun(NAMES), begun(NAMES)
    for i, w in enumerate(windows):
        state, told = seen(state, w, float(i))
        jumped, again = seen(jumped, w, (-1) ** i * 1e9)
        assert kinds(list(told)) == kinds(list(again))
    assert state == jumped


def test_small_windows_are_put_together() -> None:
    whole = steady(1, 30) + steady(2, 4, shift=1.5)
    parts = [
        Seen(w.rows[a:b], w.said[a:b], w.errors[a:b])
        for w in whole
        if w.said is not None and w.errors is not None
        for a, b in ((0, 30), (30, 120))
    ]
    a, events = played(whole)
    b, again = played(parts, least=120)
    assert kinds(events) == kinds(again)
    assert a == b
    assert played([Seen(np.zeros((0, 3)), np.zeros((0, 1)))], a)[0] == a


def test_the_state_is_a_record() -> None:
    state, _ = played(steady(1, 13))
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State)
    more = steady(2, 6, shift=1.5, error=0.5)
    assert played(more, kept) == played(more, state)
    assert len(msgspec.msgpack.encode(state)) < 20_000
    before = msgspec.msgpack.encode(state)
    played(more, state)
    assert msgspec.msgpack.encode(state) == before, "a state that went in is left as it was"


def test_rows_of_another_width_are_refused() -> None:
    state, _ = played(steady(1, 12))
    with pytest.raises(DataError, match="expected windows of 4 columns, got 3"):
        seen(state, Seen(np.zeros((60, 2)), np.zeros((60, 1))), 0.0)


def test_an_event_shows_no_reading() -> None:
    """Every figure of an event is a score, a share, a count or an error: none is a value that was read."""
    windows = steady(1, 20) + steady(2, 5, shift=1.5)
    _, events = played(windows)
    readings = {float(v) for w in windows for v in w.rows[:, :2].ravel()}
    figures = {v for e in events for v in e.figures.values()}
    assert figures
    assert not figures & readings
