"""The hub: who was asked what, who answered, when it is over. It decides; drivers do.

    handle(now, event) -> [effects]

It knows only peers, requests and deadlines; bodies are opaque. A request is closed once: when
its quorum has answered, when all have answered or failed, or at its deadline.

    Asked ──► Send × peers, Wake(deadline)
    Replied ─► Accept          (the driver folds the body into the request's partial)
    … quorum, all, deadline ─► Closed(replied, missing)

Laws (tests/laws/test_hub.py): a request closes exactly once; replied ⊎ missing = asked; late,
duplicate and unknown replies have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .errors import MisuseError


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody asks `messages` (peer -> body). Done when `quorum` answered, or `deadline` seconds passed.

    `quorum`: from 1 to all of them, None for all; `deadline`: at least 0, None for as long as it takes.
    """

    request: int
    messages: Mapping[str, Any]
    quorum: int | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Replied:
    """`peer` answered a request."""

    request: int
    peer: str
    body: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """`peer` refused a request; `reason` is its own words."""

    request: int
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Left:
    """`peer` is gone: every open request to it fails."""

    peer: str
    reason: str = "gone"


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; a driver sends it when a Wake is due."""


Event: TypeAlias = Asked | Replied | Failed | Left | Tick


@dataclass(frozen=True, slots=True)
class Send:
    """Send the body to the peer as this request; `deadline` is when it closes, absolute seconds."""

    request: int
    peer: str
    body: Any
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Accept:
    """This reply counts: fold it."""

    request: int
    peer: str
    body: Any


@dataclass(frozen=True, slots=True)
class Closed:
    """The request is over: who replied, in order of arrival, and why each other did not."""

    request: int
    replied: tuple[str, ...]
    missing: Mapping[str, str]
    enough: bool


@dataclass(frozen=True, slots=True)
class Wake:
    """Call again with a Tick at this time, absolute seconds."""

    at: float


Effect: TypeAlias = Send | Accept | Closed | Wake


@dataclass(slots=True)
class _Open:
    waiting: set[str]
    quorum: int
    deadline: float | None
    replied: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


class Hub:
    """The table of open requests; `handle` is its only door."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._last = -1

    def handle(self, now: float, event: Event) -> list[Effect]:
        """What to do about `event` at `now` (seconds); never fails for what a peer did."""
        match event:
            case Asked():
                return self._ask(now, event)
            case Replied(request, peer, body):
                return self._reply(request, peer, body)
            case Failed(request, peer, reason):
                return self._fail(request, peer, reason)
            case Left(peer, reason):
                return [e for request in list(self._open) for e in self._fail(request, peer, reason)]
            case Tick():
                due = [r for r, o in self._open.items() if o.deadline is not None and o.deadline <= now]
                return [self._close(request, "deadline") for request in due]

    def table(self) -> dict[int, dict[str, Any]]:
        """Open requests for people to look at: who is waited for, who replied, until when."""
        return {
            request: {"waiting": sorted(o.waiting), "replied": list(o.replied), "deadline": o.deadline}
            for request, o in self._open.items()
        }

    def _ask(self, now: float, ask: Asked) -> list[Effect]:
        if ask.request <= self._last:
            raise MisuseError(f"request ids grow: {ask.request} came after {self._last}")
        quorum = len(ask.messages) if ask.quorum is None else ask.quorum
        if not min(1, len(ask.messages)) <= quorum <= len(ask.messages):
            raise MisuseError(f"a quorum of {quorum} cannot come from {len(ask.messages)} peers")
        if ask.deadline is not None and not ask.deadline >= 0:
            raise MisuseError(f"a deadline is at least 0 seconds from now, got {ask.deadline}")
        self._last = ask.request
        until = None if ask.deadline is None else now + ask.deadline
        self._open[ask.request] = _Open(set(ask.messages), quorum, until)
        effects: list[Effect] = [Send(ask.request, peer, body, until) for peer, body in ask.messages.items()]
        if until is not None:
            effects.append(Wake(until))
        return effects if ask.messages else [self._close(ask.request, "")]

    def _reply(self, request: int, peer: str, body: Any) -> list[Effect]:
        o = self._open.get(request)
        if o is None or peer not in o.waiting:
            return []
        o.waiting.discard(peer)
        o.replied.append(peer)
        accept: list[Effect] = [Accept(request, peer, body)]
        over = len(o.replied) >= o.quorum or not o.waiting
        return [*accept, self._close(request, "not needed")] if over else accept

    def _fail(self, request: int, peer: str, reason: str) -> list[Effect]:
        o = self._open.get(request)
        if o is None or peer not in o.waiting:
            return []
        o.waiting.discard(peer)
        o.missing[peer] = reason
        return [] if o.waiting else [self._close(request, "")]

    def _close(self, request: int, reason: str) -> Closed:
        o = self._open.pop(request)
        missing = {**o.missing, **dict.fromkeys(sorted(o.waiting), reason)}
        return Closed(request, tuple(o.replied), missing, len(o.replied) >= o.quorum)
