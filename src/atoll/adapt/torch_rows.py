"""Sums of gradients of any module, each row's clipped: one backward for a stack of rows (torch.func)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from ..core.errors import CompositionError, DataError
from ..core.update import Update
from . import torch_loop
from .torch_loss import row_losses
from .torch_net import Work
from .torch_vmap import refusal

if TYPE_CHECKING:
    from .torch import TorchLearner

STACK = 64 << 20  # bytes of gradients held at once


def clipped(learner: TorchLearner, work: Work, params: Update, data: Any, norm: float) -> Update:
    """Minus Σ over the rows of g min(1, norm / ‖g‖). Raises CompositionError for a module whose rows are not
    apart, DataError for rows with NaN or infinity.
    """
    why = refusal(learner) if isinstance(learner.loss, str) else "the loss is a function of whole batches"
    if why:
        raise CompositionError(f"this module's rows cannot be clipped one by one: {why}")
    rows, net = torch_loop.checked(learner, work, data), work.net
    leaves = {name: torch.from_numpy(np.array(params[name])).to(net.device) for name in net.layout.slices}
    moving = {name: leaf for name, leaf in leaves.items() if work.asks.get(name)}
    fixed = {name: leaf for name, leaf in leaves.items() if name not in moving}
    work.training(on=True)

    def loss(mine: dict[str, Any], x: Any, y: Any) -> Any:
        out = functional_call(work.module, {**fixed, **mine}, (x[None],))
        return row_losses(str(learner.loss), out, y[None])[0]

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    at_once = max(1, STACK // (4 * net.layout.size))
    for start in range(0, len(rows), at_once):
        x = torch.from_numpy(np.ascontiguousarray(rows.x[start : start + at_once])).to(net.device)
        y = torch.from_numpy(np.ascontiguousarray(rows.y[start : start + at_once])).to(net.device)
        grads = each(moving, x, y)
        squares = sum(g.flatten(1).square().sum(1) for g in grads.values())
        if not torch.isfinite(squares).all():
            raise DataError("rows hold NaN or infinity, or training diverged: fill or drop such rows first")
        factor = (norm / squares.sqrt().clamp_min(1e-30)).clamp_max(1.0)
        for name, g in grads.items():
            total[name] += torch.einsum("i...,i->...", g, factor)
    made = {name: -total[name].cpu().numpy() for name in params}
    return Update.of(made)
