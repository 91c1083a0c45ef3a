"""Losses by name, labels made to fit them, and the checks of a client's data.

Messages name columns and shapes, never a cell or a label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError, DataError
from ..core.registry import nearest

Loss = Callable[[Tensor, Tensor], Tensor]

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
}
CLASSES = frozenset({"cross_entropy", "nll"})  # losses whose labels are class numbers


def loss_of(loss: str | Loss) -> Loss:
    """The function (out, y) -> mean loss. Raises ConfigError for an unknown name."""
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        raise ConfigError(f"no loss is called {loss!r}: {nearest(loss, _LOSSES)}, or give a function")
    return _LOSSES[loss]


def row_losses(name: str, out: Tensor, y: Tensor) -> Tensor:
    """One loss per row: (n,), averaged over whatever else a row holds."""
    losses = _LOSSES[name](out, y, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def soft(temperature: float, alpha: float) -> Loss:
    """The distilled loss of (out, y), y (n, classes + 1): the teacher's logits, and last the label."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        p, q = F.log_softmax(y[:, :-1] / temperature, 1), F.log_softmax(out / temperature, 1)
        kl = F.kl_div(q, p, reduction="batchmean", log_target=True)
        return alpha * temperature**2 * kl + (1 - alpha) * F.cross_entropy(out, y[:, -1].long())

    return loss


def hits(loss: str | Loss, out: Tensor, y: Tensor) -> Tensor | None:
    """How many predictions are right, or None where the loss is no classification's."""
    if loss == "bce_with_logits":
        return ((out > 0) == (y > 0.5)).float().mean() * len(y)
    classes = loss in CLASSES or (callable(loss) and not y.is_floating_point() and out.dim() == y.dim() + 1)
    if not classes or out.dim() < 2 or out.shape[1] < 2:
        return None
    return (out.argmax(1) == y).float().mean() * len(y)


def rows_of(data: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A client's `x` (n, ...) and `y` (n, ...). Raises DataError for wrong lengths, NaN or text."""
    x, y = np.asarray(data.x), np.asarray(data.y)
    for name, part in (("x", x), ("y", y)):
        if part.dtype.kind not in "fiub":
            raise DataError(f"{name} must hold numbers, got dtype {part.dtype}: encode it first")
        if part.ndim == 0:
            raise DataError(f"{name} must have one row per example, got a single number")
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise DataError(
                f"{name} has {int((~np.isfinite(part)).sum())} NaN or infinite cells: fill or drop them"
            )
    if len(x) != len(y):
        raise DataError(f"x and y must have as many rows as each other, got {len(x)} and {len(y)}")
    return x, y


def features(x: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """`x` in what the module takes: int64 for 32 and 64-bit integers (tokens), else `dtype`."""
    tokens = x.dtype.kind in "iu" and x.dtype.itemsize >= 4
    return x.astype(np.int64 if tokens else dtype, copy=False)


def labels(loss: str | Loss, y: np.ndarray[Any, Any], out: Tensor, dtype: Any) -> np.ndarray[Any, Any]:
    """`y` as the loss wants it for outputs like `out` (1, ...). Raises DataError where it cannot fit."""
    if callable(loss):
        return y.astype(dtype if y.dtype.kind == "f" else np.int64, copy=False)
    if loss in CLASSES:
        return _classes(y, out)
    y = y.astype(dtype, copy=False)
    if y.ndim == out.dim() - 1 and out.shape[-1] == 1:
        y = y[..., None]
    if y.shape[1:] != tuple(out.shape[1:]):
        raise DataError(f"{loss} needs y shaped like the output, (n, {_dims(out)}), got (n, {_dims(y)})")
    if loss == "bce_with_logits" and len(y) and not (y.min() >= 0 and y.max() <= 1):
        raise DataError("bce_with_logits needs labels between 0 and 1")
    return y


def _classes(y: np.ndarray[Any, Any], out: Tensor) -> np.ndarray[Any, Any]:
    whole = y.astype(np.int64, copy=False)
    if out.dim() < 2:
        raise ConfigError(f"class labels need an output (n, classes), the module gives (n, {_dims(out)})")
    if y.dtype.kind == "f" and not np.array_equal(whole, y):
        raise DataError("class labels must be whole numbers from 0; for real targets use loss='mse'")
    if whole.shape[1:] != tuple(out.shape[2:]):
        raise DataError(f"class labels must be shaped (n, {_dims(out[0])[1:]}), got (n, {_dims(y)})")
    if len(whole) and not (whole.min() >= 0 and whole.max() < out.shape[1]):
        raise DataError(
            f"class labels must lie in 0..{out.shape[1] - 1}: the module has {out.shape[1]} outputs"
        )
    return whole


def _dims(array: Any) -> str:
    return ", ".join(str(d) for d in array.shape[1:])


def loaded(array: np.ndarray[Any, Any], order: np.ndarray[Any, Any], device: Any) -> Tensor:
    """Rows in that order, in memory of PyTorch's own alignment.

    MKL may round differently for other alignments, and the same job must give the same bytes.
    """
    rows = torch.empty((len(order), *array.shape[1:]), dtype=_torch_dtype(array.dtype))
    np.take(array, order, axis=0, out=rows.numpy(), mode="clip")  # "raise" would buffer the output
    return rows.to(device)


def _torch_dtype(dtype: Any) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}[np.dtype(dtype).name]
