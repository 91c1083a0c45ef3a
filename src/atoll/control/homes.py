"""Whom to ask for which clients, right now: a mapping that moves with the fleet and replays its past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..transport.drive import Drive
from .fleet import Fleet


class Homes(Mapping[str, Sequence[int]]):
    """Member of ours -> the ids of the roster's clients it is asked for.

    After a restart the mapping that stood when a request first went out stands again for it, so that the
    same members are asked for the same clients. `drive`: set once it exists.
    """

    def __init__(self, fleet: Fleet, roster: Mapping[str, int]) -> None:
        self._fleet = fleet
        self._roster = dict(roster)
        self.drive: Drive | None = None

    def now(self) -> dict[str, list[int]]:
        """The mapping as it is for the next request."""
        recorded = None if self.drive is None else self.drive.recorded()
        if recorded is not None and isinstance(recorded.get("homes"), Mapping):
            return {str(name): list(map(int, clients)) for name, clients in recorded["homes"].items()}
        return self._fleet.homes(self._roster)

    def context(self) -> dict[str, Any]:
        """What the journal keeps with each request."""
        return {"homes": self._fleet.homes(self._roster)}

    def __getitem__(self, name: str) -> Sequence[int]:
        return self.now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.now())

    def __len__(self) -> int:
        return len(self.now())
