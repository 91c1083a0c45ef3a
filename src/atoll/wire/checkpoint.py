"""Checkpoints: a state as bytes, without pickle.

A state is a tree of None, booleans, numbers, text, lists, tuples, mappings, arrays, Updates and
`records`: dataclasses or named tuples the caller lists. Its arrays go into one safetensors blob,
its shape as JSON beside them. Reading makes those types and nothing else.

    load(dump(state, records), records) == state

An Update that is kept elsewhere anyway, a model in a blob, may be named instead of written again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as read_arrays
from safetensors.numpy import save as write_arrays

from ..core.errors import StateError
from ..core.update import Layout, Leaf, Rows, Update

_VERSION = 1
_TREE = "tree"
_PLAIN = (type(None), bool, int, float, str)

Records = Sequence[type[Any]]


def dump(
    state: Any, records: Records = (), elsewhere: Callable[[Update], str | None] = lambda update: None
) -> bytes:
    """The state as bytes. `elsewhere`: the name under which an Update is kept, None to write it here.

    Raises StateError, naming the type, for what cannot be kept.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    tree = {"version": _VERSION, "state": _plain(state, arrays, records, elsewhere)}
    text = json.dumps(tree, sort_keys=True).encode()
    blob: bytes = write_arrays({**arrays, _TREE: np.frombuffer(text, np.uint8)})
    return blob


def load(blob: bytes, records: Records = (), elsewhere: Callable[[str], Update] | None = None) -> Any:
    """The state again. `elsewhere`: an Update by its name. Raises StateError for damaged bytes or a newer
    version.
    """
    try:
        arrays = read_arrays(blob)
        tree = json.loads(arrays.pop(_TREE).tobytes())
    except (SafetensorError, KeyError, ValueError):
        raise StateError("this checkpoint is damaged: remove it to go on from the one before") from None
    if tree.get("version") != _VERSION:
        raise StateError(f"this checkpoint is of version {tree.get('version')}, this Atoll reads {_VERSION}")
    return _state(tree["state"], arrays, {cls.__name__: cls for cls in records}, elsewhere)


def _plain(
    x: Any, arrays: dict[str, Any], records: Records, elsewhere: Callable[[Update], str | None]
) -> Any:
    """What JSON can hold: plain values as they are, everything else as [kind, ...]."""

    def inner(value: Any) -> Any:
        return _plain(value, arrays, records, elsewhere)

    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, _PLAIN):
        return x
    if type(x) in records:
        names = [f.name for f in dataclasses.fields(x)] if dataclasses.is_dataclass(x) else type(x)._fields
        return ["record", type(x).__name__, {name: inner(getattr(x, name)) for name in names}]
    if isinstance(x, Update) and (name := elsewhere(x)) is not None:
        return ["elsewhere", name]
    if isinstance(x, Update):
        leaves = [[name, list(shape)] for name, shape in x.layout.leaves]
        rows = {name: [inner(r.ids), inner(r.values)] for name, r in x.rows.items()}
        return ["update", leaves, inner(x.buffer), x.bits, rows]
    if isinstance(x, np.ndarray):
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(x)
        return ["array", name]
    if isinstance(x, (list, tuple)):
        return [type(x).__name__, [inner(value) for value in x]]
    if isinstance(x, Mapping):
        return ["dict", [[inner(key), inner(value)] for key, value in x.items()]]
    raise StateError(
        f"a client's state of type {type(x).__name__} cannot be saved: keep numbers, text, arrays,"
        " Updates, and lists, tuples or dicts of them"
    )


def _state(
    x: Any,
    arrays: Mapping[str, Any],
    records: Mapping[str, type[Any]],
    elsewhere: Callable[[str], Update] | None,
) -> Any:
    def inner(value: Any) -> Any:
        return _state(value, arrays, records, elsewhere)

    if not isinstance(x, list):
        return x
    match x:
        case ["record", str(name), dict(values)] if name in records:
            return records[name](**{key: inner(value) for key, value in values.items()})
        case ["update", leaves, buffer, bits, rows]:
            layout = Layout(tuple(Leaf(name, tuple(shape)) for name, shape in leaves))
            sparse = {name: Rows(inner(ids), inner(values)) for name, (ids, values) in rows.items()}
            return Update(layout, inner(buffer), bits=bits, rows=sparse)
        case ["elsewhere", str(name)] if elsewhere is not None:
            return elsewhere(name)
        case ["array", str(name)] if name in arrays:
            return arrays[name]
        case ["list", values]:
            return [inner(value) for value in values]
        case ["tuple", values]:
            return tuple(inner(value) for value in values)
        case ["dict", pairs]:
            return {inner(key): inner(value) for key, value in pairs}
    raise StateError(f"this checkpoint holds something this Atoll does not know: {str(x[:2])[:60]}")
