"""An exported model is checked before anybody uses it: ONNX Runtime must answer as its source does.

`verify` follows some rows through both. A learner says what its own model answers by
`answers(params, x)`, a mapping of output names to arrays; see learn/dense_graph.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, MisuseError, StateError
from ..core.update import Update
from .model import Model

TOLERANCE = 1e-4  # of an answer, or of its largest size where that is above 1


def verify(path: str | Path, learner: Any, params: Update, rows: Any) -> float:
    """The largest gap between the file's answers to `rows` (n, ...) and the learner's own.

    The rows are read as float32 by both. Labels must be the same, but where the two best scores are closer
    than the tolerance.
    Raises ConfigError if they differ by more than TOLERANCE or ONNX Runtime is not installed, MisuseError
    for a learner without `answers`, StateError for a file that is no model or cannot be read.
    """
    if not hasattr(learner, "answers"):
        raise MisuseError(f"{type(learner).__name__} has no answers(params, x): there is nothing to compare")
    x = np.ascontiguousarray(rows, np.float32)
    want: Mapping[str, NDArray[Any]] = learner.answers(params, x)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; expected an ONNX model") from None
    found = Model(data, str(path)).run(x)
    if found.keys() != want.keys():
        raise ConfigError(f"{path} answers {sorted(found)}, the learner {sorted(want)}")
    worst = 0.0
    for name, expected in want.items():
        if expected.dtype.kind != "f":
            continue
        gaps = np.abs(found[name] - expected) / np.maximum(1.0, np.abs(expected).max(initial=0.0))
        worst = max(worst, float(gaps.max(initial=0.0)))
        if not worst <= TOLERANCE:
            raise ConfigError(
                f"{path}: {name!r} differs from the learner's by {worst:.1e}, more than {TOLERANCE}; numbers"
                " this large lose digits in float32: standardise the columns first (at.standardise)"
            )
    for name, expected in want.items():
        if expected.dtype.kind != "f" and (found[name] != expected)[_clear(want, len(x))].any():
            raise ConfigError(f"{path}: {name!r} differs from the learner's")
    return worst


def check(path: Path, learner: Any, params: Update, rows: Any) -> None:
    """`verify` a file just written, and remove one that is wrong."""
    try:
        verify(path, learner, params, rows)
    except ConfigError:
        path.unlink()
        raise


def _clear(want: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.bool_]:
    """Rows whose label no rounding can change: their two best scores are further apart than the tolerance."""
    name = next((name for name, value in want.items() if value.dtype.kind == "f"), None)
    if name is None or not n:
        return np.ones(n, np.bool_)
    scores = -want[name] if name == "distances" else want[name]
    if scores.shape[1] == 1:  # the sign decides
        scores = np.concatenate([scores, np.zeros_like(scores)], axis=1)
    best = np.sort(scores, axis=1)
    return np.asarray(best[:, -1] - best[:, -2] > TOLERANCE)
