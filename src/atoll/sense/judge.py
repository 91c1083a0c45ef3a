"""What may be kept of what was read, and why the rest may not: state in, state out, the time an argument.

A reading is bad (NaN, out of range, another unit, an unknown column, a stuck sensor, a clock that jumped), or
repeated, or late, or good. Devices are judged each by its own time: late is who is older than the newest of
the same device by more than allowed, whatever others' clocks say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .reading import Reading

Taken = Callable[[Mapping[str, Any], Mapping[str, str]], tuple[list[Any], str]]


@dataclass(frozen=True)
class Rules:
    """`taken`: cells of a reading's values and units, or the reason why not. `columns`: their names.
    `form`: names what the cells mean; it is kept with them.

    `stuck`: seconds that one value of a column may last. `late`: seconds a reading may be older than the
    newest of its device. `ahead`, `behind`: seconds it may be of now. None: any.
    """

    taken: Taken
    columns: tuple[str, ...]
    form: str = ""
    stuck: Mapping[str, float] = field(default_factory=dict)
    late: float | None = None
    ahead: float | None = None
    behind: float | None = None


class Judge:
    """Judges the readings of one store. Its memory: since when each watched cell has had its value."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._watched = [(rules.columns.index(name), name, most) for name, most in rules.stuck.items()]
        self._since: dict[str, list[tuple[Any, float]]] = {}

    def judge(self, reading: Reading, now: float) -> tuple[list[Any], str]:
        """Its cells in the order of the columns, and the reason to keep it aside, "" for a good one."""
        cells, reason = self._sound(reading, now)
        if not reason and self._watched:
            reason = self._stuck(reading, cells)
        return cells, reason

    def again(self, reading: Reading, now: float, was: str) -> tuple[list[Any], str]:
        """As `judge`, one that was kept aside because it `was` so; it came at `now`. Its sensor is still held
        to be stuck by a rule that has not changed.
        """
        if was in {_lasted(name, most) for _, name, most in self._watched}:
            return [], was
        return self._sound(reading, now)

    def _sound(self, reading: Reading, now: float) -> tuple[list[Any], str]:
        rules = self.rules
        if reading.fault:
            return [], reading.fault
        if rules.ahead is not None and reading.at > now + rules.ahead:
            return [], f"its clock is ahead by more than {rules.ahead:g} s"
        if rules.behind is not None and reading.at < now - rules.behind:
            return [], f"its clock is behind by more than {rules.behind:g} s"
        return rules.taken(reading.values, reading.units)

    def _stuck(self, reading: Reading, cells: list[Any]) -> str:
        last = self._since.setdefault(reading.source, [(None, reading.at)] * len(self._watched))
        for place, (at, name, most) in enumerate(self._watched):
            value, since = last[place]
            if cells[at] != value:
                last[place] = cells[at], reading.at
            elif reading.at - since > most:
                return _lasted(name, most)
        return ""


def _lasted(name: str, most: float) -> str:
    return f"column {name!r} has had one value for more than {most:g} s: is the sensor stuck?"
