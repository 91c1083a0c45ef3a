"""Who there is and through whom each can be reached: a table of clients, edges and the way to them.

A client is reached through a member of ours: itself, or an edge of ours however far above it. It may be
seen on several ways while it moves; the way reported last counts, and when that one ends, the one before
it. Where it has none it is remembered where it was last. Pure: it is told, it answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any


@dataclass(slots=True)
class Seen:
    """One client: what it says `about` itself (its data, versions), and the ways to it with the order in
    which they were reported. `last`: the way that was there last. `said`: what it says by each way.
    """

    name: str
    about: dict[str, Any] = field(default_factory=dict)
    ways: dict[str, int] = field(default_factory=dict)
    last: str = ""
    said: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def present(self) -> bool:
        """Whether there is a way to it now."""
        return bool(self.ways)

    @property
    def held(self) -> str:
        """Why it holds back by its own policy (power.py), "" where it does not: nobody asks it then."""
        power = self.about.get("power")
        return str(power.get("held", "")) if isinstance(power, Mapping) else ""

    @property
    def rule(self) -> str:
        """The rule of its own by which it holds back, "" where it does not."""
        power = self.about.get("power")
        return str(power.get("rule", "")) if isinstance(power, Mapping) and self.held else ""

    @property
    def rests(self) -> bool:
        """Whether it holds back because it has worked: it still answers steps of a sum it is in."""
        return self.rule == "duty"

    @property
    def parent(self) -> str:
        """The member right above it, "" where that is us."""
        return str(self.about.get("parent") or ("" if self.via == self.name else self.via))

    @property
    def via(self) -> str:
        """Through whom it is reached."""
        return max(self.ways, key=self.ways.__getitem__) if self.ways else self.last or self.name


class Fleet:
    """All clients at or below us. `children`: our own members that are connected, with their roles.

    What changes ways returns the clients that are now reached through another member: (name, before).
    """

    def __init__(self) -> None:
        self.clients: dict[str, Seen] = {}
        self.children: dict[str, str] = {}
        self.changes = 0  # grows with each report: what was found before may have changed since
        self._order = count(1)

    def joined(self, name: str, role: str, about: Mapping[str, Any]) -> list[tuple[str, str]]:
        """A member of ours connected; an edge's `about["below"]` tells of the clients under it."""
        self.children[name] = role
        if role == "edge":
            return self.below(name, about.get("below", {}))
        return self._report(name, {name: about})

    def below(self, edge: str, clients: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
        """All clients and edges that are connected below an edge of ours, anew, and the edge itself."""
        return self._report(edge, {**clients, edge: {"role": "edge"}})

    def left(self, name: str) -> list[tuple[str, str]]:
        """A member of ours is no longer connected."""
        self.children.pop(name, None)
        return self._report(name, {})

    def _report(self, way: str, clients: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
        self.changes += 1
        before = {name: seen.via for name, seen in self.clients.items()}
        for name, seen in self.clients.items():
            if way in seen.ways and name not in clients:
                seen.last = seen.via
                del seen.ways[way]
                seen.said.pop(way, None)
        for name, about in clients.items():
            seen = self.clients.setdefault(name, Seen(name))
            seen.said[way] = dict(about)
            if way not in seen.ways:
                seen.ways[way] = next(self._order)
            seen.last = seen.via
        for seen in self.clients.values():  # by the way it came last: an older one may not know that it left
            seen.about = seen.said.get(seen.via, seen.about)
        return [
            (n, via) for n, via in before.items() if self.clients[n].present and self.clients[n].via != via
        ]

    def told(self, name: str, power: Mapping[str, Any]) -> bool:
        """A member of ours says whether it holds back; whether it is one."""
        seen = self.clients.get(name)
        if seen is None or name not in seen.ways:
            return False
        seen.said[name] = {**seen.said.get(name, seen.about), "power": dict(power)}
        seen.about = seen.said.get(seen.via, seen.about)
        self.changes += 1
        return True

    def held(self, names: Iterable[str]) -> list[str]:
        """Which of these clients hold back by the last that was heard of them, be they here or away."""
        known = ((name, self.clients.get(name)) for name in names)
        return [name for name, seen in known if seen is not None and seen.held]

    def resting(self, names: Iterable[str]) -> list[str]:
        """Which of these clients rest, and are here."""
        return [name for name in self.held(names) if (seen := self.clients[name]).rests and seen.present]

    def rules(self, names: Iterable[str]) -> dict[str, int]:
        """By which rules of their own (power.py) how many of these clients hold back that are here."""
        here = (self.clients[name] for name in self.held(names))
        return dict(sorted(Counter(seen.rule for seen in here).items()))

    def remembered(self, name: str, via: str, about: Mapping[str, Any]) -> None:
        """A client known from before this process began."""
        self.clients.setdefault(name, Seen(name, dict(about), {}, via or name))
        self.changes += 1

    def homes(
        self, roster: Mapping[str, int], *, here: bool = False, steps: bool = False
    ) -> dict[str, list[int]]:
        """Through whom the clients of a roster (name -> id) are reached: member of ours -> ids.

        `here`: only those who can be reached now; else where they were last. Who holds back is not there;
        with `steps`, who rests is.
        """
        found: dict[str, list[int]] = {}
        for name, client in sorted(roster.items(), key=lambda item: item[1]):
            seen = self.clients.get(name)
            if seen is not None and seen.held and not (steps and seen.rests):
                continue
            if not here or (seen is not None and seen.present):
                found.setdefault(name if seen is None else seen.via, []).append(client)
        return found

    def offering(self, data: str, *, without: Iterable[str] = ()) -> dict[str, Mapping[str, Any]]:
        """Connected clients that hold data of that name, by name, with their description of it."""
        out = set(without)
        return {
            seen.name: seen.about["data"][data]
            for _, seen in sorted(self.clients.items())
            if seen.present
            and seen.name not in out
            and seen.via not in out
            and data in seen.about.get("data", {})
        }

    def offered(self) -> list[str]:
        """The names of all data that connected clients hold."""
        here = (seen.about.get("data", {}) for seen in self.clients.values() if seen.present)
        return sorted({name for held in here for name in held})

    def offers(self, name: str) -> list[str]:
        """The crypto suites that a client has and allows; who says nothing knows the first only."""
        seen = self.clients.get(name)
        return list(map(str, seen.about.get("crypto", ["intl"]))) if seen is not None else ["intl"]

    def reachable(self) -> dict[str, dict[str, Any]]:
        """Connected clients and edges with what they say about themselves: what an edge reports upward.

        `parent` stands in it for whoever is below a member of ours.
        """
        return {
            name: {**seen.about, **({} if name == seen.via else {"parent": seen.parent})}
            for name, seen in sorted(self.clients.items())
            if seen.present
        }

    def deserted(self, edge: str) -> bool:
        """Whether nobody is reached through this edge any more."""
        return not any(seen.via == edge and name != edge for name, seen in self.clients.items())
