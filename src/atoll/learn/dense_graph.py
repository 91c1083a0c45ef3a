"""What dense layers answer, computed here and as an ONNX graph for serving.

A regression answers `y` (n, outputs); a classifier `label` (n,) and `probabilities` (n, classes).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from atoll.core.errors import ConfigError
from atoll.core.update import Update
from atoll.wire.graph import Answer, Node, dense, two_classes, write_graph

from . import batched
from .rows import rows
from .task import Array


def answers(dims: tuple[int, ...], loss: str, activation: str, params: Update, x: Any) -> dict[str, Array]:
    """The answers to rows x, in the params' precision. Raises DataError for rows of another width."""
    kind = str(params.buffer.dtype)
    read, _ = rows(SimpleNamespace(x=x, y=np.zeros(len(x))), (*dims[:-1], 1), "squared", kind)
    z = batched.forward(dims, activation, params.buffer[None], read[None])[-1][0]
    if loss == "squared":
        return {"y": z}
    if loss == "logistic":
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return {"label": z.argmax(axis=1), "probabilities": e / e.sum(axis=1, keepdims=True)}


def export(
    dims: tuple[int, ...],
    loss: str,
    activation: str,
    params: Update,
    path: str | Path,
    row: tuple[int, ...],
) -> None:
    """Write the graph: input "x" (rows, *row) float32. Raises ConfigError without onnx or for another row."""
    if int(np.prod(row)) != dims[0]:
        raise ConfigError(f"the model reads {dims[0]} features a row, the example has rows of shape {row}")
    layers = [(params[f"layer{at}.weight"], params[f"layer{at}.bias"]) for at in range(len(dims) - 1)]
    nodes, numbers = dense(layers, activation.title(), "y" if loss == "squared" else "z")
    if loss == "squared":
        write_graph(path, row, nodes, numbers, [Answer("y", "float32", dims[-1:])])
        return
    if loss == "logistic":
        numbers["one"] = np.array(1.0)
        nodes += [Node("Sigmoid", ("z",), "p"), *two_classes("p")]
    else:
        nodes.append(Node("Softmax", ("z",), "probabilities", {"axis": 1}))
    nodes.append(Node("ArgMax", ("probabilities",), "label", {"axis": 1, "keepdims": 0}))
    classes = 2 if loss == "logistic" else dims[-1]
    gives = [Answer("label", "int64"), Answer("probabilities", "float32", (classes,))]
    write_graph(path, row, nodes, numbers, gives)
