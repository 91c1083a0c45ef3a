"""What an ONNX file says of itself, read from its bytes: operators, values, shapes. Nothing is run.

Whoever is given a graph looks at it here before ONNX Runtime does. https://github.com/onnx/onnx onnx.proto
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from ..core.errors import ProtocolError
from .proto import fields

ITEMS = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 11: 8}  # bytes of float32, (u)int8, int32, int64, bool, float64
FLOAT, INT = 1, 7  # float32, int64
ROWS = 0  # stands for a dimension that has a name and no size


class Value(NamedTuple):
    """An array by its type in onnx.proto's numbers and its shape, ROWS for an open dimension."""

    kind: int
    shape: tuple[int, ...]

    def bytes(self, rows: int) -> int:
        """Its size where open dimensions are `rows`."""
        return prod(n or rows for n in self.shape) * ITEMS[self.kind]


class Node(NamedTuple):
    """One operator; `holds`: what its attributes hold besides numbers, "" or why that is refused."""

    op: str
    domain: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    holds: str


@dataclass(slots=True)
class Graph:
    """A graph's `nodes` in order, its `inputs`, `outputs` and `values` by name, `weights` in bytes.

    `opset`: the version of the standard operators; `odd`: parts that an ordinary graph does not have.
    """

    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    weights: int = 0
    opset: int = 0
    odd: list[str] = field(default_factory=list)


def read_graph(data: bytes) -> Graph:
    """The graph of a model file. Raises ProtocolError for bytes that are none."""
    graph = Graph()
    try:
        for number, value in fields(memoryview(data)):
            if number == 7 and isinstance(value, memoryview):
                _graph(graph, value)
            elif number == 8 and isinstance(value, memoryview):
                _opset(graph, value)
            elif number in (20, 25):
                graph.odd.append({20: "a training part", 25: "functions of its own"}[number])
    except (IndexError, ValueError, UnicodeDecodeError):
        raise ProtocolError("this is no ONNX graph: its bytes end where more should follow") from None
    return graph


def _opset(graph: Graph, part: memoryview) -> None:
    domain, version = "", 0
    for number, value in fields(part):
        if number == 1:
            domain = _text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    if domain in ("", "ai.onnx"):
        graph.opset = version
    else:
        graph.odd.append(f"operators of {domain[:60]!r}")


def _graph(graph: Graph, part: memoryview) -> None:
    for number, value in fields(part):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            graph.nodes.append(_node(value))
        elif number == 5:
            graph.weights += len(value)
            if _external(value):
                graph.odd.append("numbers in other files")
        elif number in (11, 12, 13):
            name, found = described(value)
            if found is not None:
                (graph.inputs, graph.outputs, graph.values)[number - 11][name] = found
        elif number == 15:
            graph.odd.append("sparse numbers")


def _node(part: memoryview) -> Node:
    op, domain, holds = "", "", ""
    reads: list[str] = []
    gives: list[str] = []
    for number, value in fields(part):
        if number == 1:
            reads.append(_text(value))
        elif number == 2:
            gives.append(_text(value))
        elif number == 4:
            op = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5 and isinstance(value, memoryview):
            holds = holds or _attribute(value)
    return Node(op, domain, tuple(reads), tuple(gives), holds)


def _attribute(part: memoryview) -> str:
    for number, value in fields(part):
        if number in (6, 11):
            return "a graph within"
        if number in (10, 15, 21, 22, 23):
            return "an attribute that no plan needs"
        if number == 5 and isinstance(value, memoryview) and _external(value):
            return "numbers in other files"
    return ""


def _external(tensor: memoryview) -> bool:
    return any(number in (13, 14) and value not in (0, None) for number, value in fields(tensor))


def described(part: memoryview) -> tuple[str, Value | None]:
    """Name and type of a value; None where it says no shape, or is no array."""
    name, found = "", None
    for number, value in fields(part):
        if number == 1:
            name = _text(value)
        elif number == 2 and isinstance(value, memoryview):
            found = _tensor(value)
    return name, found


def _tensor(part: memoryview) -> Value | None:
    kind, shape = 0, None
    for number, value in fields(part):
        if number != 1 or not isinstance(value, memoryview):
            return None
        for inner, more in fields(value):
            if inner == 1 and isinstance(more, int):
                kind = more
            elif inner == 2 and isinstance(more, memoryview):
                shape = tuple(_size(dim) for _, dim in fields(more) if isinstance(dim, memoryview))
    return None if shape is None or kind not in ITEMS else Value(kind, shape)


def _size(dim: memoryview) -> int:
    return next((value for number, value in fields(dim) if number == 1 and isinstance(value, int)), ROWS)


def _text(value: object) -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""
