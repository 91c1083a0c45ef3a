"""A federation's tiers, declared: which edges there are, who stands under whom. Any depth.

    [edges]
    plant-1 = "cloud"            # an edge and its parent; "cloud" is the coordinator
    line-1a = "plant-1"
    line-1b = "plant-1"

    [clients]                    # where each client is at home
    "press-*" = "line-1a"        # names, or patterns as in file names
    "*" = "line-1b"

Where nothing is said about a client it is at home at the coordinator. Should its home be away, a client
goes to the others at the same place, then upwards.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.registry import nearest

CLOUD = "cloud"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Topology:
    """`edges`: each edge's parent. `clients`: homes by name or pattern, the first that fits counts.

    Raises ConfigError for an unknown parent, a ring, or a bad name.
    """

    edges: Mapping[str, str]
    clients: Mapping[str, str]

    def __post_init__(self) -> None:
        known = [CLOUD, *self.edges]
        for kind, table in (("edges", self.edges), ("clients", self.clients)):
            for name, parent in table.items():
                if parent not in known:
                    raise ConfigError(
                        f"there is no edge {parent!r}: {nearest(parent, known)}", f"$.{kind}.{name}"
                    )
        for name in self.edges:
            if not NAME.fullmatch(name) or name == CLOUD:
                raise ConfigError(
                    f"an edge's name is lower-case letters, digits, dots and dashes, and not {CLOUD!r}",
                    f"$.edges.{name}",
                )
            self.above(name)

    def above(self, name: str) -> tuple[str, ...]:
        """An edge's parents, the nearest first, without the coordinator. Raises ConfigError for a ring."""
        found: list[str] = []
        parent = self.edges[name]
        while parent != CLOUD:
            if parent in (name, *found):
                raise ConfigError(
                    "edges stand in a ring: one of them must have the coordinator as parent",
                    f"$.edges.{name}",
                )
            found.append(parent)
            parent = self.edges[parent]
        return tuple(found)

    def tiers(self) -> list[str]:
        """The edges, parents before children."""
        return sorted(self.edges, key=lambda name: (len(self.above(name)), name))

    def parents(self, name: str) -> tuple[str, ...]:
        """Whom an edge joins, the preferred first: its parent, those beside the parent, then upwards."""
        return self._ways(self.edges[name], but=self._below(name))

    def homes(self, client: str) -> tuple[str, ...]:
        """Whom a client joins, the preferred first."""
        home = next((edge for pattern, edge in self.clients.items() if fnmatchcase(client, pattern)), CLOUD)
        return self._ways(home, but=frozenset())

    def _ways(self, home: str, but: frozenset[str]) -> tuple[str, ...]:
        found: list[str] = []
        while home != CLOUD:
            beside = [
                edge for edge, parent in self.edges.items() if parent == self.edges[home] and edge != home
            ]
            found += [edge for edge in (home, *beside) if edge not in but and edge not in found]
            home = self.edges[home]
        return (*found, CLOUD)

    def _below(self, name: str) -> frozenset[str]:
        return frozenset(edge for edge in self.edges if edge == name or name in self.above(edge))


def read(path: Path) -> Topology:
    """A topology file. Raises ConfigError with the path of what is wrong in it."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}: atoll new shows one, topology.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for key in table:
        if key not in ("edges", "clients"):
            raise ConfigError(f"unknown key {key!r}: {nearest(key, ('edges', 'clients'))}", f"$.{key}")
    return Topology(_texts(table, "edges"), _texts(table, "clients"))


def plain(edges: int) -> Topology:
    """So many edges under the coordinator, with the clients dealt to them by `up`."""
    return Topology({f"edge-{letters(i)}": CLOUD for i in range(edges)}, {})


def letters(n: int) -> str:
    """a, b, … z, aa, ab, …"""
    text = ""
    n += 1
    while n:
        n, rest = divmod(n - 1, 26)
        text = chr(97 + rest) + text
    return text


def _texts(table: Mapping[str, Any], key: str) -> dict[str, str]:
    found = table.get(key, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f'expected a table of names, as in line-1 = "{CLOUD}"', f"$.{key}")
    for name, parent in found.items():
        if not isinstance(parent, str):
            raise ConfigError("expected the name of a parent", f"$.{key}.{name}")
    return dict(found)


def dealt(topology: Topology, clients: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each client and whom it joins; where the topology names no clients, dealt to the lowest edges in turn."""
    inner = set(topology.edges.values())
    lowest = [edge for edge in topology.tiers() if edge not in inner]
    for k, client in enumerate(clients):
        if topology.clients or not lowest:
            yield client, topology.homes(client)
        else:
            home = lowest[k % len(lowest)]
            yield client, Topology(topology.edges, {client: home}).homes(client)
