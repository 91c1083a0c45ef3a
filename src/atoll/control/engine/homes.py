"""Whom to ask for which clients, right now: a mapping that moves with the fleet and replays its past."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...transport.drive import Drive
from .fleet import Fleet


class Homes(Mapping[str, Sequence[int]]):
    """Member of ours -> the ids of the roster's clients it is asked for.

    After a restart the mapping that stood when a request first went out stands again for it, so that the
    same members are asked for the same clients. `drive`: set once it exists. `clock`: Unix seconds.
    `waiting`: since when too few of them can be asked, 0 while enough can.
    """

    def __init__(
        self, fleet: Fleet, roster: Mapping[str, int], clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self.waiting = 0.0
        self._fleet = fleet
        self._roster = dict(roster)
        self.drive: Drive | None = None
        self._again = self._steps = False
        self._held: list[int] = []  # as last said
        self._found: dict[tuple[bool, bool], dict[str, list[int]]] = {}  # since the fleet last changed
        self._changes = -1

    def held(self) -> list[int]:
        """Clients that hold back by their own policy: nobody chooses them."""
        recorded = self._recorded()
        if recorded is None:
            self._held = sorted(self._roster[name] for name in self._fleet.held(self._roster))
        else:
            self._held = list(map(int, recorded.get("held", ())))
        return self._held

    def resting(self) -> list[int]:
        """Clients that are here and rest from work: they can be asked again before long."""
        if self._recorded() is not None:  # whoever was waited for has rested
            return []
        return sorted(self._roster[name] for name in self._fleet.resting(self._roster))

    def waits(self, on: bool) -> str:  # noqa: FBT001  a fact that is told
        """A round waits, or does so no more; why it does, as an end of a sentence."""
        self.waiting = (self.waiting or self._clock()) if on else 0.0
        rules = self.rules() if on else {}
        held = ", ".join(f"{rule} {count}" for rule, count in rules.items())
        return f": {sum(rules.values())} of {len(self._roster)} hold back ({held})" if held else ""

    @property
    def many(self) -> int:
        """Clients of the roster."""
        return len(self._roster)

    def rules(self) -> dict[str, int]:
        """By which rules of their own how many hold back now."""
        return self._fleet.rules(self._roster)

    @property
    def steps(self) -> Steps:
        """The same for steps of an exchange, which whoever rests after work still answers."""
        return Steps(self)

    def posts(self) -> Mapping[str, Sequence[int]]:
        """The same for tasks that are posted: nobody where, before a restart, nobody was posted one now."""
        return self.now() if self.drive is None or self.drive.posts() else {}

    def now(self, *, steps: bool = False) -> dict[str, list[int]]:
        """The mapping as it is for the next request."""
        self._again, self._steps = False, steps
        recorded = self._recorded()
        return self._homes(steps=steps) if recorded is None else _homes(recorded)

    def again(self, *, steps: bool = False) -> dict[str, list[int]]:
        """The mapping to ask lost clients again by; nobody, where an earlier life did not ask again."""
        self._again, self._steps = True, steps
        recorded = self._recorded()
        if recorded is None:
            return self._homes(here=True, steps=steps)
        return _homes(recorded) if recorded.get("again") else {}

    def context(self) -> dict[str, Any]:
        """What the journal keeps with each request."""
        homes = self._homes(here=self._again, steps=self._steps)
        return {"homes": homes, "again": self._again, **({"held": self._held} if self._held else {})}

    def _homes(self, *, here: bool = False, steps: bool = False) -> dict[str, list[int]]:
        """The fleet's: found once, for whoever looks at this mapping looks at each of its names."""
        if self._changes != self._fleet.changes:
            self._found, self._changes = {}, self._fleet.changes
        if (here, steps) not in self._found:
            self._found[here, steps] = self._fleet.homes(self._roster, here=here, steps=steps)
        return self._found[here, steps]

    def _recorded(self) -> Mapping[str, Any] | None:
        return None if self.drive is None else self.drive.recorded()

    def __getitem__(self, name: str) -> Sequence[int]:
        return self.now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.now())

    def __len__(self) -> int:
        return len(self.now())


class Steps(Mapping[str, Sequence[int]]):
    """Homes, as they are for steps of an exchange."""

    def __init__(self, homes: Homes) -> None:
        self._homes = homes

    def again(self) -> dict[str, list[int]]:
        """See Homes."""
        return self._homes.again(steps=True)

    def __getitem__(self, name: str) -> Sequence[int]:
        return self._homes.now(steps=True)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes.now(steps=True))

    def __len__(self) -> int:
        return len(self._homes.now(steps=True))


def _homes(recorded: Mapping[str, Any]) -> dict[str, list[int]]:
    return {str(name): list(map(int, clients)) for name, clients in recorded.get("homes", {}).items()}
