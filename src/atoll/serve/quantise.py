"""A model in 8-bit integers, calibrated on a site's own rows: smaller, and quicker on many processors.

Static quantisation (Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", section 2; Nagel et al. 2021, "A white paper on neural network
quantization", section 3): weights get one scale a channel, activations the range they have on the rows that
are shown, r = scale (q - zero). The graph stays ordinary ONNX, with QuantizeLinear and DequantizeLinear
around what runs in integers. Rows are run through the model here and stay here: what the new model holds of
them is each activation's least and largest value, and it should stay at its site as its rows do.

What stands before the first layer (a fitted scaling, an encoding) is left in float32: raw columns of very
different sizes have no common scale.

Some processors without VNNI saturate the sum of two 8-bit products, which `bits=7` for weights avoids.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from .model import Model, named

ROWS = 512  # that calibrate, spread over those given
BATCH = 64
LAYERS = ("Conv", "Gemm", "MatMul")
# Where the work of a network is; what ends it (Softmax, ArgMax) keeps its digits.
INTEGERS = (
    *(*LAYERS, "Add", "Mul", "Relu", "Clip", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose"),
)


def quantise(data: bytes, rows: Any, bits: int = 8) -> bytes:
    """The model in integers of 8 bits; `bits`: of its weights, 8 or 7. Reads as the one it is made from.

    `rows` (n, ...): what it is asked as a rule; some hundreds do. Raises ConfigError where the onnx package
    is not installed, the model cannot be rewritten or `bits` is another number, DataError for rows that are
    no numbers, StateError for bytes that are no model or rows that do not fit it.
    """
    if bits not in (7, 8):
        raise ConfigError(f"weights have 8 or 7 bits, got {bits}")
    model, x = Model(data), chosen(rows)
    model.run(x[:1])  # raises where they do not fit
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise ConfigError("int8 models need the onnx package: pip install 'atoll-fl[export,edge]'") from None

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = _batches(model, x)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._rest, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, ready, made = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "made.onnx"))
        plain.write_bytes(data)
        try:
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            first = _before_layers(ready)
            quantize_static(
                ready,
                made,
                Reader(),
                op_types_to_quantize=list(INTEGERS),
                nodes_to_exclude=first,
                per_channel=True,
                reduce_range=bits == 7,
            )
        except Exception as error:  # noqa: BLE001  its errors share no base of their own
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise ConfigError(f"this model cannot be rewritten in integers: {reason}") from None
        graph = onnx.load(made)
    graph.producer_name = "atoll"
    del graph.metadata_props[:]
    return named(bytes(graph.SerializeToString()), model.classes)


def chosen(rows: Any) -> NDArray[np.float32]:
    """At most ROWS of the rows, evenly spread. Raises DataError where there is none, or NaN in one."""
    x = np.asarray(rows, np.float32)
    if not x.ndim or not len(x) or not np.isfinite(x).all():
        raise DataError("calibration needs rows of finite numbers: fill or drop others first")
    return np.ascontiguousarray(x[np.linspace(0, len(x) - 1, min(len(x), ROWS)).astype(int)])


def _before_layers(path: Path) -> list[str]:
    """The nodes that a row passes on its way to the first layers, by names that are written into the file."""
    import onnx

    model = onnx.load(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    raw, names = {i.name for i in model.graph.input} - stored, []
    for at, node in enumerate(model.graph.node):  # in an order in which values come before their use
        node.name = f"{node.op_type}_{at}"
        if node.op_type not in LAYERS and raw.intersection(node.input):
            raw.update(node.output)
            names.append(node.name)
    onnx.save(model, path)
    return names


def _batches(model: Model, x: NDArray[np.float32]) -> Iterator[dict[str, NDArray[np.float32]]]:
    size = BATCH if model.many else 1
    for at in range(0, len(x), size):
        yield {model.input: x[at : at + size]}


class _quiet:  # noqa: N801  a context
    """The tool warns on the root logger about what has been done here already."""

    def __enter__(self) -> None:
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self._level)
        self._caught.__exit__(None, None, None)
