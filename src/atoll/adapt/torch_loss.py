"""Losses by name, and rows in PyTorch's own memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..core.registry import nearest
from .rows import CLASSES

Loss = Callable[[Tensor, Tensor], Tensor]

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
}


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


def loaded(array: np.ndarray[Any, Any], order: np.ndarray[Any, Any], device: Any) -> Tensor:
    """Rows in that order, in memory of PyTorch's own alignment.

    MKL may round differently for other alignments, and the same job must give the same bytes.
    """
    rows = torch.empty((len(order), *array.shape[1:]), dtype=_torch_dtype(array.dtype))
    np.take(array, order, axis=0, out=rows.numpy(), mode="clip")  # "raise" would buffer the output
    return rows.to(device)


def _torch_dtype(dtype: Any) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}[np.dtype(dtype).name]
