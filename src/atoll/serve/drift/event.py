"""What a monitor goes by, and what it tells."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a change is one. `share` and `clear` in (0, 1]: scores that raise an alarm and clear it, where
    so many `windows` in a row have them. `least`: rows of a window. `stable`: windows of a reference, at
    least 2.
    """

    share: float = 0.2
    clear: float = 0.1
    windows: int = 2
    least: int = 50
    stable: int = 10


USUAL = Limits()


class Event(msgspec.Struct, frozen=True):
    """`kind`: "calibrated", "raised", "cleared", "fault" or "mended". `what`: the column, or "error".
    `why`: of a fault. `figures`: by name, none of them a reading.
    """

    kind: str
    what: str = ""
    why: str = ""
    at: float = 0.0
    score: float = 0.0
    figures: dict[str, float] = {}
