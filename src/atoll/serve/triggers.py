"""When a node renews its model, and how: a table of reasons, and what stands against each.

    state, start = happened(state, rules, what, now)     a window was seen: begin something?
    state, start = ended(state, rules, now, won=won)     what was begun is over: begin something more?

A reason that comes at the wrong time is kept until its time comes. `now` is Unix seconds; a clock that was
set back begins the cool-down anew, and makes nothing due twice.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Literal, TypeAlias

import msgspec

from .timetable import Cron, Hours

FAR = 2 * 86400.0  # seconds
LOST = "lost"  # the reason to ask for a federated run: the fine-tuned model did not win
Action: TypeAlias = Literal["tune", "ask", "both"]


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why, when and how to renew. `drift`: where something has changed. `cron`: five fields, "" for never.
    `rows`: after so many new ones, 0 for never. `blackout`: hours in which nothing runs, as "08:00-18:00".
    `cool_down`: seconds between two beginnings. `minutes`: the longest a fine-tune may take. `action`:
    fine-tune here, ask for a federated run, or both: ask where the fine-tuned model did not win.
    """

    drift: bool = True
    cron: str = ""
    rows: int = 0
    blackout: tuple[str, ...] = ()
    cool_down: float = 3600.0
    minutes: float = 10.0
    action: Action = "tune"


class State(msgspec.Struct, frozen=True):
    """`began`: the last beginning. `looked`: until when cron was looked at. `rows`: new ones since the last
    beginning. `due`: reasons whose time has not come. `open`: what was begun and is not over.
    """

    began: float = float("-inf")
    looked: float = float("inf")
    rows: int = 0
    due: tuple[str, ...] = ()
    open: str = ""


class What(msgspec.Struct, frozen=True):
    """What a window showed. `drift`: whether something counts as changed now. `rows`: its rows."""

    drift: bool = False
    rows: int = 0


class Start(msgspec.Struct, frozen=True):
    """Begin it. `action`: "tune" or "ask". `why`: the reasons. `until`: when it must be over."""

    action: str
    why: tuple[str, ...]
    until: float


def happened(
    state: State, rules: Rules, what: What, now: float, zone: tzinfo | None = None
) -> tuple[State, Start | None]:
    """Whether to begin now. `zone`: of blackout and cron, the machine's own without."""
    state = msgspec.structs.replace(state, began=min(state.began, now), rows=state.rows + what.rows)
    due = set(state.due) - {"drift"}
    due |= {"drift"} if rules.drift and what.drift else set()
    due |= {"rows"} if 0 < rules.rows <= state.rows else set()
    due |= {"cron"} if rules.cron and _due(rules.cron, state.looked, now, zone) else set()
    ahead = state.looked - now  # a clock may be set right by a little, or after years
    looked = now if ahead > FAR else max(state.looked, now)
    state = msgspec.structs.replace(state, due=tuple(sorted(due)), looked=looked)
    if not due or state.open or now - state.began < rules.cool_down:
        return state, None
    return _begun(state, rules, "ask" if rules.action == "ask" or LOST in due else "tune", now, zone)


def ended(
    state: State,
    rules: Rules,
    now: float,
    zone: tzinfo | None = None,
    *,
    won: bool,
) -> tuple[State, Start | None]:
    """It is over. `won`: the model it made is served now; an ask that was sent has won."""
    why, state = state.open, msgspec.structs.replace(state, open="")
    if won or rules.action != "both" or why != "tune":
        return state, None
    return _begun(msgspec.structs.replace(state, due=(LOST,)), rules, "ask", now, zone)


def _begun(
    state: State, rules: Rules, action: str, now: float, zone: tzinfo | None
) -> tuple[State, Start | None]:
    free = Hours.of(rules.blackout).free(datetime.fromtimestamp(now, zone))
    if free <= 0:
        return state, None
    start = Start(action, state.due, now + min(free, rules.minutes * 60.0))
    return State(began=now, looked=state.looked, open=action), start


def _due(cron: str, looked: float, now: float, zone: tzinfo | None) -> bool:
    """Whether a due minute lies after `looked` and not after now."""
    if looked >= now:
        return False
    due = Cron.of(cron).after(datetime.fromtimestamp(looked, zone).replace(tzinfo=None))
    return due is not None and due <= datetime.fromtimestamp(now, zone).replace(tzinfo=None)
