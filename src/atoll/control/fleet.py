"""Who there is and through whom each can be reached: a table of clients, edges and the way to them.

A client's `via` is the member of ours it answers through: itself, or an edge of ours however far above
it. Edges report what is below them; the newest report about a client wins, so a client that moves from
one edge to another is found under the other. Pure: it is told, it answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Seen:
    """One client: what it says `about` itself (its data, versions), and through whom it is reached."""

    name: str
    via: str
    about: dict[str, Any] = field(default_factory=dict)
    present: bool = False


class Fleet:
    """All clients at or below us. `children`: our own members that are connected, with their roles."""

    def __init__(self) -> None:
        self.clients: dict[str, Seen] = {}
        self.children: dict[str, str] = {}

    def joined(self, name: str, role: str, about: Mapping[str, Any]) -> None:
        """A member of ours connected; an edge's `about["below"]` tells of the clients under it."""
        self.children[name] = role
        if role == "client":
            self.clients[name] = Seen(name, name, dict(about), present=True)
        else:
            self.below(name, about.get("below", {}))

    def below(self, edge: str, clients: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """All clients that are connected below an edge, anew; those that moved here from elsewhere."""
        moved = []
        for seen in self.clients.values():
            if seen.via == edge:
                seen.present = False
        for name, about in clients.items():
            before = self.clients.get(name)
            if before is not None and before.via != edge:
                moved.append(name)
            self.clients[name] = Seen(name, edge, dict(about), present=True)
        return moved

    def left(self, name: str) -> None:
        """A member of ours is no longer connected; neither is whoever is reached through it."""
        self.children.pop(name, None)
        for seen in self.clients.values():
            if seen.via == name:
                seen.present = False

    def remembered(self, name: str, via: str, about: Mapping[str, Any]) -> None:
        """A client known from before this process began."""
        self.clients.setdefault(name, Seen(name, via or name, dict(about)))

    def homes(self, roster: Mapping[str, int], *, here: bool = False) -> dict[str, list[int]]:
        """Through whom the clients of a roster (name -> id) are reached: member of ours -> ids.

        `here`: only those who can be reached now; else where they were last.
        """
        found: dict[str, list[int]] = {}
        for name, client in sorted(roster.items(), key=lambda item: item[1]):
            seen = self.clients.get(name)
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

    def reachable(self) -> dict[str, dict[str, Any]]:
        """Connected clients with what they say about themselves: what an edge reports upward."""
        return {name: dict(seen.about) for name, seen in sorted(self.clients.items()) if seen.present}

    def deserted(self, edge: str) -> bool:
        """Whether nobody is reached through this edge any more."""
        return not any(seen.via == edge for seen in self.clients.values())
