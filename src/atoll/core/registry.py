"""Every part a job file may name: one printable table, filled by decorators and entry points.

A part is a plain function that makes a value; its signature is its configuration. Job files
hold names and values only: no class path is ever imported from a file.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
        from importlib.metadata import entry_points

        _plugged = True
        for plug in entry_points(group="atoll.parts"):
            plug.load()
    return [p for _, p in sorted(_parts.items()) if kind is None or p.kind == kind]


def nearest(name: str, names: Iterable[str]) -> str:
    """Advice for a wrong name: the closest right one, or all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"


def find(kind: str, name: str, path: str = "$") -> Part:
    """The part of that name. Raises ConfigError with the nearest valid name."""
    if (kind, name) not in _parts:  # which plug-ins have it, all of ours among them, is seen by loading them
        known = [p.name for p in parts(kind)]
        if name not in known:
            raise ConfigError(f"no {kind} is called {name!r}: {nearest(name, known)}", path)
    return _parts[kind, name]


def build(kind: str, values: str | Mapping[str, Any], path: str = "$") -> Any:
    """Make a part from `"name"` or `{"name": ..., other values}`.

    Raises ConfigError, with the path, for an unknown name or key, a missing or mistyped value.
    """
    table = {"name": values} if isinstance(values, str) else dict(values)
    if not isinstance(table.get("name"), str):
        raise ConfigError(f'name the {kind}, as in name = "{parts(kind)[0].name}"', f"{path}.name")
    return call(find(kind, table.pop("name"), f"{path}.name").make, table, path)


def call(make: Callable[..., Any], table: Mapping[str, Any], path: str = "$") -> Any:
    """Call `make` with the values of a table, each key and type checked against its signature.

    Where a parameter is itself a part (a delay, a partition), its value is built like one.
    """
    takes = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wanted = {n: p for n, p in inspect.signature(make).parameters.items() if p.kind in takes}
    hints = get_type_hints(make)
    values = {}
    for key, value in table.items():
        if key not in wanted:
            advice = nearest(key, wanted) if wanted else "it takes no values"
            raise ConfigError(f"unknown key {key!r}: {advice}", f"{path}.{key}")
        values[key] = _read(value, hints.get(key, Any), f"{path}.{key}")
    for key, p in wanted.items():
        if p.default is p.empty and key not in table:
            raise ConfigError("this value is needed and has no default", f"{path}.{key}")
    try:
        return make(**values)
    except ConfigError as error:  # its path, if any, starts at this part
        text = str(error).removeprefix(f"{error.path}: ")
        raise type(error)(text, path + error.path.removeprefix("$")) from None


def _read(value: Any, hint: Any, path: str) -> Any:
    """One value as its parameter takes it: a part where the parameter is one, else checked."""
    kind = _kind(hint)
    if kind is not None and isinstance(value, (str, Mapping)):
        return build(kind, value, path)
    if kind is not None and not _plain_fits(value, hint):
        raise ConfigError(f"expected a {kind}, as in {{ name = ... }}, got {value!r}", path)
    if not _fits(value, hint):
        raise ConfigError(f"expected {_words(hint)}, got {value!r}", path)
    return tuple(value) if isinstance(value, list) and tuple in (get_origin(hint), hint) else value


def _words(hint: Any) -> str:
    """A type as a job file's writer knows it: "a number", "a list, each a whole number"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in args if a is not type(None))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (list, tuple, Sequence):
        return f"a list, each {_words(args[0])}"
    return _NAMES.get(hint, str(getattr(hint, "__name__", hint)))


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
    tuple: "a list",
}


def _kind(hint: Any) -> str | None:
    """The kind whose parts make values of this type, None for plain values."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    options = tuple(o for o in options if isinstance(o, type) and o not in _PLAIN)
    made = {get_type_hints(p.make).get("return"): p.kind for p in parts()} if options else {}
    return next((made[o] for o in options if o in made), None)


def _plain_fits(value: Any, hint: Any) -> bool:
    """Whether a parameter that takes a part, and maybe plain values too, takes this one."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return type(value) not in _PLAIN or any(_fits(value, o) for o in options if o in _PLAIN)


_PLAIN = (str, int, float, bool, type(None), dict, list, tuple)


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in _PLAIN else True
