"""A reading: what one device said at one moment. And the text it comes in from the network.

    {"at": 1751446800.25, "id": "5012", "values": {"heat": 71.5}, "units": {"heat": "degC"}}
    {"at": "2025-07-02T09:00:00Z", "heat": 71.5}

`at`: Unix seconds or ISO 8601 with its offset; without it, when it came. `id`: what the device calls it; a
reading that comes again has the same. Who gives neither cannot be told from a second one that says the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

LONGEST = 1 << 20  # bytes of one message
_NAME = 200  # characters of a device's name or an id
_OWN = ("at", "id", "source", "values", "units")


@dataclass(frozen=True, slots=True)
class Reading:
    """`source`: the device. `at`: Unix seconds. `id`: "" for none. `values`: by column.

    `units`: of those that were said. `fault`: what is wrong already, before anybody looks at the values.
    """

    source: str
    at: float
    id: str = ""
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    units: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""


def parse(text: bytes, now: float, source: str = "", units: Mapping[str, str] | None = None) -> list[Reading]:
    """The readings of one message, one or a list of them; what cannot be read is a reading with its fault.

    `source`: who sent it, where that is known: it may speak for itself only. `units`: unless it says others.
    """
    if len(text) > LONGEST:
        return [_faulty(source, now, f"a message has at most {LONGEST} bytes")]
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [_faulty(source, now, "this is no JSON")]
    return [_read(one, now, source, units or {}) for one in (found if isinstance(found, list) else [found])]


def moment(value: Any) -> float:
    """Unix seconds of a time as people and devices write it. Raises ValueError, TypeError."""
    if isinstance(value, str):
        try:
            return _finite(float(value))
        except ValueError:
            value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        return _finite(float(value))
    at: datetime = value
    if at.tzinfo is None:
        raise ValueError("a time without its offset")
    return at.timestamp()


def _finite(at: float) -> float:
    if not math.isfinite(at):
        raise ValueError("no time")
    return at


def _read(found: Any, now: float, source: str, units: Mapping[str, str]) -> Reading:
    if not isinstance(found, dict):
        return _faulty(source, now, "expected an object with values")
    said, name = found.get("source", source), found.get("id", "")
    if not isinstance(said, str) or not 0 < len(said) <= _NAME or "\0" in said:
        return _faulty(source, now, "its source is no name")
    if source and said != source:
        return _faulty(source, now, "it speaks for another device")
    name = str(name) if isinstance(name, (str, int)) else None
    if name is None or len(name) > _NAME:
        return _faulty(said, now, "its id is no name")
    try:
        at = moment(found["at"]) if "at" in found else now
    except (ValueError, TypeError, OverflowError):
        return Reading(said, now, name, fault="its time cannot be read")
    values = found.get("values", {key: value for key, value in found.items() if key not in _OWN})
    own = found.get("units", {})
    if not isinstance(values, dict) or not isinstance(own, dict):
        return Reading(said, at, name, fault="expected values and units by column")
    return Reading(said, at, name, values, {**units, **{k: str(v) for k, v in own.items()}})


def _faulty(source: str, now: float, fault: str) -> Reading:
    return Reading(source, now, fault=fault)
