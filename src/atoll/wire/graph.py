"""Models as ONNX graphs, written node by node: for learners whose formula is known.

A graph has one input "x" (rows, *row) float32 and named answers. Only operators of the standard
set are used, and nothing is stored outside the file. Needs the onnx package, to write alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import ConfigError, StateError
from .files import whole

OPSET = 17
FORMAT = 8  # of the file: readable by every ONNX Runtime since 1.13


class Node(NamedTuple):
    """One operator: `inputs` and `gives` are names of values, `more` its attributes."""

    op: str
    inputs: tuple[str, ...]
    gives: str
    more: Mapping[str, Any] | None = None


class Answer(NamedTuple):
    """An output: its name, "float32", "int64" or "str", and the shape of one row's."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


def dense(
    layers: Sequence[tuple[Any, Any]], activation: str, after: str
) -> tuple[list[Node], dict[str, Any]]:
    """h W + b for each layer (W (in, out), b (out,)), `activation` between them; reads "x", gives `after`.

    `activation`: an operator such as "Relu", "" for none. Rows of more dimensions are read flat.
    """
    nodes, numbers, value = [Node("Flatten", ("x",), "flat", {"axis": 1})], {}, "flat"
    for at, (weight, bias) in enumerate(layers):
        last = at == len(layers) - 1
        numbers[f"weight{at}"], numbers[f"bias{at}"] = np.asarray(weight), np.asarray(bias)
        gives = after if last else f"layer{at}"
        nodes.append(Node("Gemm", (value, f"weight{at}", f"bias{at}"), gives))
        value = gives
        if not last and activation:
            value = f"hidden{at}"
            nodes.append(Node(activation, (gives,), value))
    return nodes, numbers


def two_classes(p: str) -> list[Node]:
    """From the probability `p` (rows, 1) of the second class to "probabilities" (rows, 2); needs "one"."""
    return [
        Node("Sub", ("one", p), "other"),
        Node("Concat", ("other", p), "probabilities", {"axis": 1}),
    ]


def write_graph(
    path: str | os.PathLike[str],
    row: tuple[int, ...],
    nodes: Sequence[Node],
    numbers: Mapping[str, Any],
    answers: Sequence[Answer],
) -> None:
    """Write the model; real `numbers` become float32, integers int64, text stays text.

    Raises ConfigError where onnx is not installed, StateError where the file cannot be written.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise ConfigError("writing ONNX needs the onnx package: pip install 'atoll-fl[export]'") from None
    kinds = {
        "float32": onnx.TensorProto.FLOAT,
        "int64": onnx.TensorProto.INT64,
        "str": onnx.TensorProto.STRING,
    }
    graph = helper.make_graph(
        [helper.make_node(n.op, list(n.inputs), [n.gives], **(n.more or {})) for n in nodes],
        "model",
        [helper.make_tensor_value_info("x", kinds["float32"], ["rows", *row])],
        [helper.make_tensor_value_info(a.name, kinds[a.dtype], ["rows", *a.shape]) for a in answers],
        [numpy_helper.from_array(_stored(array), name) for name, array in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=FORMAT)
    model.producer_name = "atoll"
    onnx.checker.check_model(model, full_check=True)
    file = Path(path)
    try:
        with whole(file) as out:
            out.write(model.SerializeToString())
    except OSError as error:
        raise StateError(f"{file} cannot be written: {error.strerror}") from None


def _stored(array: Any) -> np.ndarray[Any, Any]:
    a = np.asarray(array)
    if a.dtype.kind in "US":
        return a.astype(object)
    return np.ascontiguousarray(a, np.int64 if a.dtype.kind in "iub" else np.float32)
