"""Every part a job file may name: one printable table, filled by decorators and entry points.

A part is a plain function that makes a value; its signature is its configuration. Job files
hold names and values only: no class path is ever imported from a file.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Part:
    """A named maker: `kind` as in "algorithm", `name` as in "fedavg", `make(**values)`."""

    kind: str
    name: str
    make: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]


_parts: dict[tuple[str, str], Part] = {}
_plugged = False


def part(kind: str, name: str | None = None) -> Callable[[F], F]:
    """Register the decorated function under its own name (or `name`) as a part of `kind`."""

    def register(make: F) -> F:
        label = name or make.__name__
        if (kind, label) in _parts:
            raise ConfigError(f"there already is a {kind} called {label!r}: choose another name")
        _parts[kind, label] = Part(kind, label, make)
        return make

    return register


def parts(kind: str | None = None) -> list[Part]:
    """All parts (of one kind), sorted; loads installed plug-ins of entry point `atoll.parts` once."""
    global _plugged  # noqa: PLW0603  loaded once in a process
    if not _plugged:
        _plugged = True
        for plug in entry_points(group="atoll.parts"):
            plug.load()
    return [p for _, p in sorted(_parts.items()) if kind is None or p.kind == kind]


def nearest(name: str, names: Iterable[str]) -> str:
    """Advice for a wrong name: the closest right one, or all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}"


def find(kind: str, name: str, path: str = "$") -> Part:
    """The part of that name. Raises ConfigError with the nearest valid name."""
    known = {p.name: p for p in parts(kind)}
    if name not in known:
        raise ConfigError(f"no {kind} is called {name!r}: {nearest(name, known)}", path)
    return known[name]


def build(kind: str, values: str | Mapping[str, Any], path: str = "$") -> Any:
    """Make a part from `"name"` or `{"name": ..., other values}`.

    Raises ConfigError, with the path, for an unknown name or key, a missing or mistyped value.
    """
    table = {"name": values} if isinstance(values, str) else dict(values)
    if not isinstance(table.get("name"), str):
        raise ConfigError(f'name the {kind}, as in name = "{parts(kind)[0].name}"', f"{path}.name")
    made = find(kind, table.pop("name"), f"{path}.name")
    return call(made.make, table, path)


def call(make: Callable[..., Any], table: Mapping[str, Any], path: str = "$") -> Any:
    """Call `make` with the values of a table, each key and type checked against its signature."""
    wanted = {
        n: p
        for n, p in inspect.signature(make).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    hints = get_type_hints(make)
    for key, value in table.items():
        if key not in wanted:
            raise ConfigError(
                f"unknown key {key!r}: {nearest(key, wanted) if wanted else 'it takes none'}", f"{path}.{key}"
            )
        if key in hints and not _fits(value, hints[key]):
            kind = getattr(hints[key], "__name__", str(hints[key]))
            raise ConfigError(f"expected {kind}, got {value!r}", f"{path}.{key}")
    for key, p in wanted.items():
        if p.default is p.empty and key not in table:
            raise ConfigError("this value is needed and has no default", f"{path}.{key}")
    try:
        return make(**table)
    except ConfigError as error:
        raise error if error.path else type(error)(str(error), path) from None


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint or type(None))
    if origin is not None and isinstance(origin, type) and isinstance(value, (list, tuple)):
        return all(_fits(v, args[0]) for v in value) if args else True
    return True
