"""When a node may work: battery, mains, temperature, metered link, duty. Pure: it is told, it answers.

    held(power, seen, spent, before, now) -> Held        why it may not now, "" for it may
    rested(power, spent, began, ended) -> Spent          after work: how long it rests

Whoever holds back says so upward and is not asked; it refuses by itself what comes all the same. A rule that
began to hold lets go a little later than it began, so that a node does not come and go with each look.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ...core.errors import ConfigError
from ..settings import Power

DAY = 86_400.0
CHARGED, COOLED = 0.05, 5.0  # how far beyond its limit a battery or a temperature must be to let go


@dataclass(frozen=True)
class Seen:
    """What sensors say now. `mains`: it does not run from its battery; `battery`: charge from 0 to 1, None
    without one; `temperature`: °C of the hottest sensor; `metered`: whether bytes cost on its link. None:
    nobody can say.
    """

    mains: bool = True
    battery: float | None = None
    temperature: float | None = None
    metered: bool | None = None


class Spent(msgspec.Struct, frozen=True):
    """What a node has to remember: `rest`, until when it rests (Unix seconds); `bytes` that cost on `day`."""

    rest: float = 0.0
    day: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Held:
    """Why a node holds back: the `rule`'s key, a sentence, and until when if that is known, else 0."""

    rule: str = ""
    reason: str = ""
    until: float = 0.0


def checked(power: Power) -> Power:
    """The same. Raises ConfigError for values out of range."""
    for key, low, high in (("battery", 0.0, 1.0), ("duty", 0.001, 1.0), ("every", 0.1, 3600.0)):
        if not low <= getattr(power, key) <= high:
            raise ConfigError(f"expected {low:g} to {high:g}, got {getattr(power, key):g}", f"$.power.{key}")
    if power.metered_bytes is not None and power.metered_bytes < 0:
        raise ConfigError("expected bytes a day, 0 for none", "$.power.metered_bytes")
    return power


def held(
    power: Power, seen: Seen, spent: Spent, before: Held, now: float, opens: float | None = None
) -> Held:
    """Why this node may not work now. `before`: what held the last time; `now`: Unix seconds; `opens`: when
    the hours of the site's policy begin, None while they last.
    """
    if opens is not None:
        return Held("hours", "it is outside its hours", opens)
    if power.mains and not seen.mains:
        return Held("mains", "it works on mains only")
    if not seen.mains and seen.battery is not None:
        more = CHARGED if before.rule == "battery" else 0.0
        if seen.battery < min(power.battery + more, 1.0):
            return Held("battery", f"its battery is below {power.battery:.0%}")
    if other := _warm(power, seen, before) or _metered(power, seen, spent, now):
        return other
    if now < spent.rest:
        return Held("duty", f"it rests after work, {power.duty:.0%} of its time", spent.rest)
    return Held()


def _warm(power: Power, seen: Seen, before: Held) -> Held | None:
    if power.temperature is None:
        return None
    if seen.temperature is None:
        return Held("temperature", "no sensor says how warm it is: leave [power] temperature out")
    less = COOLED if before.rule == "temperature" else 0.0
    if seen.temperature <= power.temperature - less:
        return None
    return Held("temperature", f"it is warmer than {power.temperature:g} °C")


def _metered(power: Power, seen: Seen, spent: Spent, now: float) -> Held | None:
    if power.metered_bytes is None or seen.metered is False:
        return None
    if seen.metered is None:
        return Held("metered_bytes", "nobody says whether its link is metered: set [power] link")
    day = now // DAY
    if (spent.bytes if spent.day == day else 0) < power.metered_bytes:
        return None
    until = (day + 1) * DAY if power.metered_bytes else 0.0
    return Held("metered_bytes", "its link is metered, and its bytes of the day are spent", until)


def rested(power: Power, spent: Spent, began: float, ended: float) -> Spent:
    """After work from `began` to `ended`: it rests so long that work is `duty` of both together."""
    rest = ended + (ended - began) * (1 / power.duty - 1)
    return msgspec.structs.replace(spent, rest=max(rest, spent.rest)) if power.duty < 1 else spent


def carried(spent: Spent, count: int, now: float) -> Spent:
    """After `count` bytes over a metered link."""
    day = int(now // DAY)
    return msgspec.structs.replace(spent, day=day, bytes=count + (spent.bytes if spent.day == day else 0))
