"""A topology file: who is there and who dials whom, any number of tiers, as one declaration.

    [members.cloud]                         no `below`: the coordinator
    [members.plant-north]  below = "cloud"  others are below it: an edge
    [members.line-1]       below = "plant-north"   nobody is: a client

From it comes each member's settings file. A member dials its parent first; where that is away, the
parent's siblings, then who is above them, up to the coordinator.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.registry import nearest
from ..simulate.folder import write
from . import config, settings

_KINDS: Mapping[str, type[Any]] = {
    "coordinator": settings.Server,
    "edge": settings.Edge,
    "client": settings.Client,
}
_KEYS = ("federation", "transport", "members")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LISTEN = {"listen": "0.0.0.0:8443", "grpc": "0.0.0.0:8444"}  # members dial in from elsewhere


@dataclass(frozen=True)
class Member:
    """One member: its role, its parent's name ("" for the coordinator) and its settings file's values."""

    name: str
    role: str
    below: str
    values: Mapping[str, Any]


def read(path: Path) -> list[Member]:
    """Every member of a topology file, parents before those below them.

    Raises ConfigError, with the path in the file, for a parent that is not there, a circle, two
    coordinators, a name of another form, or settings that the member does not have.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a topology file: {error}") from None
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r}: {nearest(key, _KEYS)}", f"$.{key}")
    members = table.get("members")
    if not isinstance(members, dict) or not members:
        raise ConfigError("name the members, each a table, as in [members.cloud]", "$.members")
    above = {name: _parent(name, values, members) for name, values in members.items()}
    order = sorted(above, key=lambda name: (_depth(name, above), list(above).index(name)))
    tops = [name for name in order if not above[name]]
    if len(tops) != 1:
        found = ", ".join(tops) or "none"
        raise ConfigError(f"exactly one member, the coordinator, is below nobody; found {found}", "$.members")
    return [_member(name, above, table) for name in order]


def lay(members: list[Member], folder: Path) -> list[Path]:
    """Write each member's settings as FOLDER/NAME/ROLE.toml; the files. Raises StateError as `write` does."""
    made = []
    for member in members:
        path = folder / member.name / f"{member.role}.toml"
        write(path, config.dump(member.values).encode())
        made.append(path)
    return made


def tree(members: list[Member]) -> Iterator[str]:
    """The topology as lines of text, children indented below their parents."""

    def below(name: str, depth: int) -> Iterator[str]:
        for member in members:
            if member.below == name:
                yield f"{'  ' * depth}{member.name} ({member.role})"
                yield from below(member.name, depth + 1)

    yield from below("", 0)


def _parent(name: str, values: Any, members: Mapping[str, Any]) -> str:
    if not isinstance(values, dict) or not _NAME.fullmatch(name):
        raise ConfigError("a member is a table, its name up to 63 of a-z 0-9 . _ -", f"$.members.{name}")
    parent = values.get("below", "")
    if parent and parent not in members:
        raise ConfigError(
            f"no member is called {parent!r}: {nearest(str(parent), members)}", f"$.members.{name}.below"
        )
    return str(parent)


def _depth(name: str, above: Mapping[str, str]) -> int:
    seen = [name]
    while parent := above[seen[-1]]:
        if parent in seen:
            raise ConfigError(f"{' is below '.join([*seen, parent])}: a circle", f"$.members.{name}.below")
        seen.append(parent)
    return len(seen)


def _member(name: str, above: Mapping[str, str], table: Mapping[str, Any]) -> Member:
    parent = above[name]
    role = "coordinator" if not parent else "edge" if name in above.values() else "client"
    values = {key: value for key, value in table["members"][name].items() if key != "below"}
    values = {"name": name, **(LISTEN if role != "client" else {}), **values}
    if role != "client":  # whoever sits at this machine reaches it as well
        values["names"] = [*dict.fromkeys([*values.get("names", [name]), "localhost"])]
    if role == "coordinator":
        values = {"federation": table.get("federation", "atoll"), **values}
    else:
        values = {
            "transport": table.get("transport", "auto"),
            "join": [_url(door, table["members"][door]) for door in doors(name, above)],
            **values,
        }
    try:
        settings.make(_KINDS[role], dict(values), f"the {role} {name}")
    except ConfigError as error:
        raise ConfigError(
            str(error).removeprefix(f"{error.path}: "), f"$.members.{name}{error.path[1:]}"
        ) from None
    return Member(name, role, parent, values)


def doors(name: str, above: Mapping[str, str]) -> list[str]:
    """Whom a member dials, in order: its parent, the parent's siblings, and so on upward.

    `above`: each member's parent, "" for the coordinator. Nobody dials a member below itself.
    """
    found: list[str] = []
    at = above[name]
    while at:
        edges = [other for other in above if above[other] == above[at] and other in above.values()]
        found += [at, *(e for e in edges if e not in (at, name) and above[at])]
        at = above[at]
    return found


def _url(name: str, values: Mapping[str, Any]) -> str:
    host = (values.get("names") or [name])[0]
    _, port = settings.address(str(values.get("listen", LISTEN["listen"])), f"$.members.{name}.listen")
    return f"https://{host}:{port}"
