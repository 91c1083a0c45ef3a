"""What a node may spend on renewing its model in a day: CPU minutes, energy, epsilon, bytes.

    state, refused = reserve(state, quota, "tune 7", Amount(cpu_minutes=10), now)     on disk before it begins
    state = settle(state, "tune 7", spent, now)                                       what is left comes back

What was reserved counts as spent until it is settled, so that a node killed in the midst of its work has
spent all of it. Work that is still open at midnight counts in both days. A day is a date of the wall's
clock; one that was set back stays in the later day.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, tzinfo

import msgspec

_SLACK = 1e-9  # sums of decimal numbers
FAR = 2  # days


class Amount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So much of each; at least 0."""

    cpu_minutes: float = 0.0
    energy_wh: float = 0.0
    epsilon: float = 0.0
    bytes: float = 0.0


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most of each in a day, None for any."""

    cpu_minutes: float | None = None
    energy_wh: float | None = None
    epsilon: float | None = None
    bytes: float | None = None


class State(msgspec.Struct, frozen=True):
    """A day so far. `spent`: what is settled. `open`: what is reserved, by name."""

    day: str = ""
    spent: Amount = Amount()
    open: dict[str, Amount] = {}


KINDS = Amount.__struct_fields__


def left(state: State, quota: Quota, now: float, zone: tzinfo | None = None) -> Amount:
    """What may still be reserved today; infinite where there is no limit."""
    state = _today(state, now, zone)
    used = total([state.spent, *state.open.values()])
    most = {kind: float("inf") if (q := getattr(quota, kind)) is None else q for kind in KINDS}
    return Amount(**{kind: max(0.0, most[kind] - getattr(used, kind)) for kind in KINDS})


def reserve(
    state: State, quota: Quota, name: str, need: Amount, now: float, zone: tzinfo | None = None
) -> tuple[State, str]:
    """Set `need` aside. The reason why not is "" where it could be, and the state then holds it: write it
    to disk before anything is done.
    """
    state = _today(state, now, zone)
    free = left(state, quota, now, zone)
    for kind in KINDS:
        wants, may = getattr(need, kind), getattr(free, kind)
        if wants > may * (1 + _SLACK):
            return state, f"{wants:.4g} {_words(kind)} are needed, {may:.4g} are left of today's"
    held = {**state.open, name: total([need, *([state.open[name]] if name in state.open else [])])}
    return msgspec.structs.replace(state, open=held), ""


def settle(state: State, name: str, spent: Amount, now: float, zone: tzinfo | None = None) -> State:
    """It is over and took `spent`; a name that holds nothing changes nothing."""
    state = _today(state, now, zone)
    if name not in state.open:
        return state
    open_ = {other: amount for other, amount in state.open.items() if other != name}
    return msgspec.structs.replace(state, spent=total([state.spent, spent]), open=open_)


def total(amounts: Iterable[Amount]) -> Amount:
    """Their sum."""
    found = list(amounts)
    return Amount(**{kind: sum(getattr(a, kind) for a in found) for kind in KINDS})


def _today(state: State, now: float, zone: tzinfo | None) -> State:
    """The state as of today. Of a day that lies further ahead than FAR, what was spent counts today."""
    today = datetime.fromtimestamp(now, zone).date()
    if today.isoformat() > state.day:
        return State(today.isoformat(), Amount(), state.open)
    ahead = date.fromisoformat(state.day) - today
    return state if ahead.days <= FAR else State(today.isoformat(), state.spent, state.open)


def _words(kind: str) -> str:
    return {"cpu_minutes": "CPU minutes", "energy_wh": "Wh"}.get(kind, kind)
