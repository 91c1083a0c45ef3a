"""Cron against a search minute by minute, and spans of the day."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

import pytest

from atoll.core.errors import ConfigError
from atoll.serve.timetable import Cron, Hours


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        ("* * * * *", "2026-03-01 10:00:30", "2026-03-01 10:01"),
        ("30 2 * * *", "2026-03-01 02:29:59", "2026-03-01 02:30"),
        ("30 2 * * *", "2026-03-01 02:30", "2026-03-02 02:30"),
        ("0 22 * * 1-5", "2026-02-27 22:00", "2026-03-02 22:00"),
        ("*/20 8-9,17 * * *", "2026-03-01 09:40", "2026-03-01 17:00"),
        ("5/15 0 * * *", "2026-03-01 00:05", "2026-03-01 00:20"),
        ("0 0 29 2 *", "2026-03-01 00:00", "2028-02-29 00:00"),
        ("0 0 13 * 5", "2026-03-01 00:00", "2026-03-06 00:00"),
        ("0 0 * * 7", "2026-03-02 00:00", "2026-03-08 00:00"),
        ("0 0 29 2 *", "2096-03-01 00:00", "2104-02-29 00:00"),
    ],
)
def test_when_it_is_due(cron: str, after: str, due: str) -> None:
    assert Cron.of(cron).after(at(after)) == at(due)


def test_the_next_minute_is_the_first_that_matches() -> None:
    draw = random.Random(5)
    for _ in range(60):
        minute, hour = draw.sample(range(60), 3), draw.sample(range(24), 2)
        week = draw.choice(["*", "1-5", "0,6"])
        cron = Cron.of(f"{','.join(map(str, minute))} {','.join(map(str, hour))} * * {week}")
        start = at("2026-01-01 00:00") + timedelta(minutes=draw.randrange(500_000))
        found = start + timedelta(minutes=1)
        days = {"*": range(7), "1-5": range(1, 6), "0,6": (0, 6)}[week]
        while not (found.minute in minute and found.hour in hour and found.isoweekday() % 7 in days):
            found += timedelta(minutes=1)
        assert cron.after(start) == found


@pytest.mark.parametrize(
    "text", ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "a * * * *"]
)
def test_what_is_no_cron_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cron"):
        Cron.of(text)


@pytest.mark.parametrize("text", ["5-1 * * * *", "*/0 * * * *", "0 0 31 2 *", "0 0 30 2 1-2-3"])
def test_a_cron_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cron"):
        Cron.of(text)


@pytest.mark.parametrize(
    ("spans", "now", "free"),
    [
        ((), "2026-03-01 10:00", float("inf")),
        (("08:00-18:00",), "2026-03-01 07:59", 60.0),
        (("08:00-18:00",), "2026-03-01 08:00", 0.0),
        (("08:00-18:00",), "2026-03-01 17:59:59", 0.0),
        (("08:00-18:00",), "2026-03-01 18:00", 14 * 3600.0),
        (("22:00-06:00",), "2026-03-01 23:00", 0.0),
        (("22:00-06:00",), "2026-03-01 05:59", 0.0),
        (("22:00-06:00", "12:00-13:00"), "2026-03-01 11:30", 1800.0),
        (("00:00-24:00",), "2026-03-01 11:30", 0.0),
    ],
)
def test_how_long_nothing_begins(spans: tuple[str, ...], now: str, free: float) -> None:
    assert Hours.of(spans).free(at(now)) == free


@pytest.mark.parametrize("text", ["8-18", "08:00", "25:00-06:00", "24:30-06:00", "08:00-09:00-10:00"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="22:00-06:00"):
        Hours.of((text,))
