"""An ONNX model in memory: its bytes hold all of it, and it answers rows on one processor core.

A model may name other files for its weights ("external data"), which would let a file that came over
the network read local ones. Such a model is refused before ONNX Runtime sees it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, StateError
from ..wire.proto import fields, piece

# Messages and fields of onnx.proto that lead to tensors: message -> field -> the message it holds.
_TENSORS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
}
CPU = "CPUExecutionProvider"
_EXTERNAL = (13, 14)  # of a Tensor: external_data and data_location
_METADATA = 14  # of a Model: metadata_props, its key 1, its value 2
_CLASSES = "classes"  # the key: a JSON list of names


def named(data: bytes, classes: Sequence[str]) -> bytes:
    """The ONNX model `data`, which names no classes yet, with their names in its order, if there are any."""
    if not classes:
        return data
    names = json.dumps(list(classes), ensure_ascii=False).encode()
    return data + piece(_METADATA, piece(1, _CLASSES.encode()), piece(2, names))  # it may follow


class Model:
    """A loaded model. `input`, `answers`: the names of its input and outputs; `row`: the shape of one row,
    None for any size; `many`: whether it takes any number of rows; `classes`: the names of its classes in its
    order, where they stand in it.

    `provider`: what runs it, as ONNX Runtime calls it; the processor does what that cannot.

    Raises ConfigError where ONNX Runtime is not installed, StateError for bytes that are no model, name
    other files, or do not read rows as their only input.
    """

    def __init__(self, data: bytes, name: str = "the model", provider: str = CPU) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise ConfigError("running a model needs ONNX Runtime: pip install 'atoll-fl[edge]'") from None
        _closed(data, name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(
                data, options, providers=[provider] if provider == CPU else [provider, CPU], enable_fallback=0
            )
            inputs = [(i.name, i.type, i.shape) for i in self._session.get_inputs()]
            self.answers = tuple(output.name for output in self._session.get_outputs())
            self.classes = _names(self._session.get_modelmeta().custom_metadata_map.get(_CLASSES, ""))
        except Exception as error:  # noqa: BLE001  its errors share no base of their own
            raise StateError(f"{name} is not an ONNX model that runs here: {_line(error)}") from None
        if len(inputs) != 1 or inputs[0][1] != "tensor(float)" or not inputs[0][2]:
            raise StateError(f"{name} must have one input, rows of float32; it has {len(inputs)}")
        self.input, _, shape = inputs[0]
        self.row = tuple(n if isinstance(n, int) else None for n in shape[1:])
        self.many = not isinstance(shape[0], int)

    def run(self, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The answers to rows x (n, ...), by output name. Raises StateError if the model fails on them."""
        try:
            found = self._session.run(None, {self.input: x})
        except Exception as error:  # noqa: BLE001
            raise StateError(f"the model failed on rows of shape {x.shape[1:]}: {_line(error)}") from None
        return dict(zip(self.answers, found, strict=True))


def _names(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    listed = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return tuple(found) if listed else ()


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _closed(data: bytes, name: str) -> None:
    """Raises StateError for a model whose numbers stand in other files, or whose bytes cannot be read."""
    todo: list[tuple[str, memoryview]] = [("Model", memoryview(data))]
    while todo:
        message, part = todo.pop()
        inside = _TENSORS.get(message, {})
        try:
            for field, value in fields(part):
                if message == "Tensor" and field in _EXTERNAL and value not in (0, None):
                    raise StateError(f"{name} keeps numbers in other files: export it as one file")
                if field in inside and isinstance(value, memoryview):
                    todo.append((inside[field], value))
        except (IndexError, ValueError):
            raise StateError(f"{name} is not an ONNX model: its bytes end where more should follow") from None
