"""Times of the clock on the wall: when something is due (cron), and when nothing may begin (hours).

POSIX.1-2017, crontab: five fields, minute hour day-of-month month day-of-week, each `*`, numbers, ranges
`a-b`, steps `*/n` or `a-b/n`, and lists of these. Sunday is 0 or 7. Where both days are restricted, either
will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from ..core.errors import ConfigError

_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 7),
)
_YEARS = 9  # from one 29th of February to the next, at most 8
DAY = 86400.0


@dataclass(frozen=True)
class Cron:
    """When something is due. `either`: both days are restricted."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool

    @classmethod
    def of(cls, text: str) -> Cron:
        """From five fields. Raises ConfigError with the field that is wrong, or where no day would do."""
        fields = text.split()
        if len(fields) != len(_FIELDS):
            raise ConfigError(f"cron has five fields, as in 30 2 * * 1-5; got {len(fields)}", "$.renew.cron")
        found = [_field(part, *field) for part, field in zip(fields, _FIELDS, strict=True)]
        minutes, hours, days, months, week = found
        both = not (fields[2].startswith("*") or fields[4].startswith("*"))
        made = cls(minutes, hours, days, months, frozenset(day % 7 for day in week), both)
        if made.after(datetime(2000, 1, 1)) is None:  # noqa: DTZ001  a wall's clock has no zone
            raise ConfigError(f"cron {text!r} names a day that never comes", "$.renew.cron")
        return made

    def after(self, at: datetime) -> datetime | None:
        """The first minute after `at` that is due, None where there is none."""
        day, least = at.date(), at.time().replace(second=0, microsecond=0)
        for _ in range(366 * _YEARS):
            if self._on(day):
                for hour in sorted(self.hours):
                    for minute in sorted(self.minutes):
                        if day > at.date() or time(hour, minute) > least:
                            return datetime.combine(day, time(hour, minute))
            day += timedelta(days=1)
        return None

    def _on(self, day: date) -> bool:
        by_month, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (by_month or by_week if self.either else by_month and by_week)


def _field(text: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    try:
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            a, b = (low, high) if span == "*" else (int(first), int(last or (high if step else first)))
            if not (low <= a <= b <= high and int(step or 1) > 0):
                raise ValueError
            found |= set(range(a, b + 1, int(step or 1)))
    except ValueError:
        raise ConfigError(f"cron: {name} is from {low} to {high}, got {text!r}", "$.renew.cron") from None
    return frozenset(found)


@dataclass(frozen=True)
class Hours:
    """Spans of each day, minutes from midnight: the first is inside, the second is not."""

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, texts: tuple[str, ...]) -> Hours:
        """From "22:00-06:00" and the like. Raises ConfigError for another form."""
        return cls(tuple(_span(text) for text in texts))

    def free(self, at: datetime) -> float:
        """Seconds from `at` until a span begins: 0 inside of one, infinite where there is none."""
        now = at.hour * 3600 + at.minute * 60 + at.second + at.microsecond / 1e6
        left = float("inf")
        for begin, end in self.spans:
            if (now - begin * 60) % DAY < ((end - begin - 1) % 1440 + 1) * 60:
                return 0.0
            left = min(left, (begin * 60 - now) % DAY)
        return left


def _span(text: str) -> tuple[int, int]:
    try:
        begin, end = (_minute(part) for part in text.split("-"))
    except ValueError:
        raise ConfigError(f"hours are written 22:00-06:00, got {text!r}", "$.renew.blackout") from None
    return begin, end


def _minute(text: str) -> int:
    hour, minute = map(int, text.strip().split(":"))
    if not (0 <= hour <= 24 and 0 <= minute < 60 and hour * 60 + minute <= 1440):
        raise ValueError(text)
    return hour * 60 + minute
