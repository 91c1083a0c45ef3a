"""One thing that `atoll doctor` looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warn", "bad"]
ROOM = 1 << 30  # bytes free on a disk below which it is worth a word


@dataclass(frozen=True)
class Finding:
    """`what` was looked at, how it is, what was `found`, and the `remedy` where it is not well."""

    what: str
    level: Level
    found: str
    remedy: str = ""

    def plain(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def span(seconds: float) -> str:
    """Seconds in the unit one would say them in."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
