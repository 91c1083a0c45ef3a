"""Dates and times of one patient, all moved by the same amount: what lies between two of them stays.

PS3.15 E.3.6, Retain Longitudinal Temporal Information with Modified Dates. A date with its time (StudyDate,
StudyTime) moves as one instant, so that neither keeps its old value and midnight is crossed where it should
be; a date by itself moves by the whole days, a time by itself around the clock.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from .profile import ACTIONS, NEVER_MOVED

YEARS = 10  # a shift goes back by up to so many
_TIME = re.compile(r"(\d\d)(\d\d)(\d\d)(\.\d{1,6})?")
_INSTANT = re.compile(r"(\d{14})(\.\d{1,6})?([+-]\d{4})?")


def shift_of(digest: bytes) -> timedelta:
    """How far a patient's dates go back: at least a day and a second, at most ten years."""
    days = 1 + int.from_bytes(digest[:8]) % (365 * YEARS)
    return timedelta(days=days, seconds=1 + int.from_bytes(digest[8:16]) % 86_399)


def moved(found: Any, shift: timedelta) -> dict[Any, Any]:
    """The new values of those dates and times that can be moved, by tag; the others lose theirs."""
    from pydicom.datadict import keyword_for_tag, tag_for_keyword

    new: dict[Any, Any] = {}
    for tag in list(found.keys()):
        if tag.is_private or tag in NEVER_MOVED or tag not in ACTIONS or tag in new:
            continue
        element = found[tag]
        if element.VR == "DA":
            other = tag_for_keyword(keyword_for_tag(tag).replace("Date", "Time"))
            paired = other is not None and other != tag and other in found and found[other].VR == "TM"
            time = str(found[other].value or "") if paired else ""
            day, clock = _moved(str(element.value or ""), time, shift)
            if day:
                new[tag] = day
            if day and clock:
                new[type(tag)(other)] = clock
        elif element.VR == "DT" and (instant := _instant(str(element.value or ""), shift)):
            new[tag] = instant
    for tag in list(found.keys()):
        if tag in ACTIONS and tag not in new and tag not in NEVER_MOVED and not tag.is_private:
            element = found[tag]
            if element.VR == "TM" and (clock := _moved("20000101", str(element.value or ""), shift)[1]):
                new[tag] = clock
    return new


def _moved(day: str, time: str, shift: timedelta) -> tuple[str, str]:
    """Date and time, moved; "" for what is none. A date without a time moves by whole days."""
    clock = _TIME.fullmatch(time)
    try:
        old = datetime.strptime(day.replace(".", ""), "%Y%m%d")  # noqa: DTZ007  DICOM's have no zone
        if clock is None:
            return (old - timedelta(days=shift.days)).strftime("%Y%m%d"), ""
        hour, minute, second = map(int, clock.groups()[:3])
        new = old.replace(hour=hour, minute=minute, second=second) - shift
    except (ValueError, OverflowError):
        return "", ""
    return f"{new.year:04}{new:%m%d}", f"{new:%H%M%S}{clock[4] or ''}"


def _instant(text: str, shift: timedelta) -> str:
    parts = _INSTANT.fullmatch(text)
    if parts is None:
        return ""
    day, clock = _moved(parts[1][:8], parts[1][8:], shift)
    return f"{day}{clock}{parts[2] or ''}{parts[3] or ''}" if day else ""
