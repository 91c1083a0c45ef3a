"""A member's place at a server, and the lines it has open there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..core.errors import AtollError
from .half import Half, Inbox

if TYPE_CHECKING:
    from ..privacy.keys import Member
    from .service import Way


class Line:
    """Something a member has open: a connection or a transfer, and the task that serves it."""

    __slots__ = ("error", "over", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.error: AtollError | None = None
        self.over = False

    def cut(self, error: AtollError) -> None:
        """End it; `error` is what the member is told."""
        if self.error is None and not self.over:
            self.error = error
            self.task.cancel()


class Seat:
    """One member's session: `half` of its letters, the connection it has now, what is known of it."""

    __slots__ = (
        *("along", "delta", "half", "held", "heard", "inbox", "line", "member", "name", "protocol", "rate"),
        *("session", "since", "transfers", "way", "_debt", "_paced"),
    )

    def __init__(self, member: Member, session: str, way: Way, inbox: Inbox, now: float) -> None:
        self.name = member.name
        self.member = member
        self.session = session
        self.way = way
        self.inbox = inbox
        self.half = Half()
        self.since = self.heard = self._paced = now
        self.protocol = (0, 0)
        self.delta = self.along = False
        self.held = ""  # the blob that went to it last along with a letter
        self.rate = float("inf")  # bytes a second of the last long transfer to it
        self.transfers = 0
        self.line: Line | None = None
        self._debt = 0.0  # letters read ahead of the rate

    def pace(self, now: float, rate: float, burst: int) -> float:
        """Seconds to wait before the next packet is read."""
        self._debt = max(0.0, self._debt - (now - self._paced) * rate) + 1
        self._paced = now
        return max(0.0, self._debt - burst) / rate

    def row(self, now: float) -> dict[str, Any]:
        """For people."""
        return {
            "name": self.name,
            "role": self.member.role,
            "transport": self.way.transport,
            "address": self.way.address,
            "sealed": self.way.sealed,
            "protocol": list(self.protocol),
            "connected": self.line is not None,
            "since": now - self.since,
            "heard": now - self.heard,
            "waiting": self.half.waiting,
        }
