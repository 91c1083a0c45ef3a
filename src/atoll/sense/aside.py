"""What was set aside: readings and labels that could not be kept, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .file import File
from .reading import Reading

CELLS = 4096  # bytes of values that are kept with the reason


class Aside(NamedTuple):
    """A reading or a label that was kept aside: when it came, who said it, and what is wrong with it.

    `values`: what it said, where that is small enough to keep. `kind`: reading or label. `fault`: it could
    not be read, so that no other contract helps. `number`: its own.
    """

    taken: float
    source: str
    reason: str
    at: float = 0.0
    id: str = ""
    values: Mapping[str, Any] | None = None
    units: Mapping[str, str] = {}
    kind: str = "reading"
    fault: bool = False
    number: int = 0

    @property
    def said(self) -> Reading | None:
        """It as it came; None where it was not kept whole, or was none."""
        if self.values is None or self.fault:
            return None
        return Reading(self.source, self.at, self.id, self.values, self.units)


def put(file: File, said: Reading, reason: str, now: float, kind: str = "reading") -> None:
    """Set one aside, in the commit under way."""
    box = file.seal.sealed(_packed(said, reason, kind), -2)
    file.sql.execute("INSERT INTO aside (taken, box) VALUES (?, ?)", (now, box))


def judged(file: File, one: Aside, said: Reading, reason: str) -> None:
    """It stays, for another reason."""
    box = file.seal.sealed(_packed(said, reason, one.kind), -2)
    file.sql.execute("UPDATE aside SET box = ? WHERE number = ?", (box, one.number))


def kept(file: File) -> list[Aside]:
    """What lies aside, the oldest first."""
    rows = file.sql.execute("SELECT number, taken, box FROM aside ORDER BY number").fetchall()
    return [_unpacked(number, taken, *file.seal.opened(box, -2)) for number, taken, box in rows]


def _packed(said: Reading, reason: str, kind: str) -> list[Any]:
    """Plain values to keep of it."""
    values = plain(said.values)
    shown = values if len(values) <= CELLS else b""
    return [said.source, said.at, said.id, reason, shown, dict(said.units), kind, bool(said.fault)]


def _unpacked(
    number: int, taken: float, source: str, at: float, id_: str, reason: str, values: bytes, *more: Any
) -> Aside:
    """The inverse, with its number and when it came."""
    units, kind, fault = more or ({}, "reading", False)
    said = msgspec.msgpack.decode(values) if values else None
    shown = said if isinstance(said, dict) else None
    return Aside(taken, source, reason, at, id_, shown, units, kind, fault, number)


def plain(values: Mapping[str, Any]) -> bytes:
    """The same bytes for the same values, whatever a device has sent: one bad reading stops nobody else's."""
    try:
        return msgspec.msgpack.encode(values, enc_hook=str, order="sorted")
    except (OverflowError, ValueError, TypeError, RecursionError):
        return msgspec.msgpack.encode(
            sorted(f"{key!r} {type(value).__name__}" for key, value in values.items())
        )
