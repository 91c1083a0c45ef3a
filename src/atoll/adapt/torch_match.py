"""Rows whose gradients match what was seen, for PyTorch modules whose first layer need not be dense.

Geiping, Bauermeister, Dröge, Moeller 2020, "Inverting gradients: how easy is it to break privacy in federated
learning?", eq. 4. With G(x) the sum of the rows' gradients at the model and U the update,

    x* = argmin 1 - cos(G(x), -U) + a TV(x)

by Adam on the sign of the slope (§5 there), each number kept in its range; TV, the mean step between
neighbouring pixels, for rows that are images. Once with the cosine of all layers together, and once with the
mean of each layer's: where the last layers' gradients are much the largest, only that sees the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.update import Update
from .torch_loss import loss_of
from .torch_net import one_thread

Array = NDArray[Any]
SMOOTH = 1e-3  # of TV


def matched(
    learner: Any,
    params: Update,
    seen: Mapping[str, Array],
    y: Array,
    start: Array,
    span: tuple[float, float],
    steps: int = 300,
) -> Array:
    """Rows (2n, ...) within `span`, n for each cosine, with labels `y` (n,), whose gradients are like `seen`.

    `learner`: a TorchLearner; `seen`: an update of it, to a factor. `start`: (n, ...).
    """
    module, (low, high) = learner.net.loaded(params).eval(), span
    moving = {name: p for name, p in module.named_parameters() if p.requires_grad}
    target = [-torch.tensor(np.asarray(seen[name]), dtype=p.dtype).ravel() for name, p in moving.items()]
    wanted, loss = torch.tensor(y), loss_of(learner.loss)

    def sought(apart: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]) -> Tensor:
        x = torch.tensor(start, dtype=target[0].dtype, requires_grad=True)
        adam = torch.optim.Adam([x], lr=0.1 * (high - low))
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            made = torch.autograd.grad(loss(module(x), wanted), [*moving.values()], create_graph=True)
            cost = apart([g.ravel() for g in made], target) + SMOOTH * _rough(x)
            x.grad = torch.autograd.grad(cost, x)[0].sign()
            adam.step()
            fall.step()
            with torch.no_grad():
                x.clamp_(low, high)
        return x.detach()

    with one_thread():
        return torch.cat([sought(_together), sought(_each)]).numpy().astype(np.float64)


def _together(made: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    g, t = torch.cat([*made]), torch.cat([*target])
    return torch.rsub(g @ t / (g.norm() * t.norm()).clamp_min(1e-30), 1)


def _each(made: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    return torch.stack([_together([g], [t]) for g, t in zip(made, target, strict=True)]).mean()


def _rough(x: Tensor) -> Tensor:
    if x.dim() < 4:  # no rows of images
        return torch.zeros((), dtype=x.dtype)
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()


__all__ = ["matched"]
