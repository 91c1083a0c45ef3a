"""A graph that takes its leaves as inputs becomes a model that holds them: the numbers go into its bytes.

So a device writes the model it has trained for serving, and needs no package that writes ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.errors import MisuseError, ProtocolError
from .onnx import FLOAT, Value, described
from .proto import fields, number, piece

_GRAPH, _INPUT, _INITIALISER = 7, 11, 5


def filled(graph: bytes, leaves: Mapping[str, Any]) -> bytes:
    """The model in which each input that is named like a leaf holds that leaf's numbers, float32.

    Raises MisuseError for a leaf that the graph does not take, or takes in another shape; ProtocolError
    for bytes that are no ONNX model.
    """
    made: list[bytes] = []
    done: set[str] = set()
    try:
        for at, part in fields(memoryview(graph)):
            if at == _GRAPH and isinstance(part, memoryview):
                inside = [_field(leaves, done, *one) for one in fields(part)]
                made.append(piece(_GRAPH, b"".join(inside)))
            else:
                made.append(_same(at, part))
    except (IndexError, ValueError, UnicodeDecodeError):
        raise ProtocolError("this is no ONNX model: its bytes end where more should follow") from None
    missing = [name for name in leaves if name not in done]
    if missing:
        raise MisuseError(f"the graph takes no leaf {missing[0]!r}")
    return b"".join(made)


def _field(leaves: Mapping[str, Any], done: set[str], at: int, part: int | memoryview | None) -> bytes:
    """A field of the graph as it was, or a leaf's numbers in place of the input it was."""
    if at != _INPUT or not isinstance(part, memoryview):
        return _same(at, part)
    name, value = described(part)
    if name not in leaves:
        return _same(at, part)
    done.add(name)
    return piece(_INITIALISER, _tensor(name, value, leaves[name]))


def _tensor(name: str, value: Value | None, leaf: Any) -> bytes:
    array = np.asarray(leaf, "<f4", order="C")
    if value != (FLOAT, array.shape):
        wanted = None if value is None else value.shape
        raise MisuseError(f"the graph takes leaf {name!r} as float32 of shape {wanted}, got {array.shape}")
    dims = b"".join(number(1, n) for n in array.shape)
    return b"".join((dims, number(2, FLOAT), piece(8, name.encode()), piece(9, array.tobytes())))


def _same(at: int, part: int | memoryview | None) -> bytes:
    if part is None:  # neither a model nor a graph has fields of a fixed size
        raise ValueError
    return number(at, part) if isinstance(part, int) else piece(at, part)
