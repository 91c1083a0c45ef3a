"""One client's local training and evaluation: the same loop over a rewritten module or a plain one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext
from ..core.rng import shuffles
from ..core.update import Update
from .rows import features, labels, rows_of
from .torch_loss import hits, loaded, loss_of
from .torch_moon import Contrast
from .torch_net import Work, own_draws, seed_draws, steady
from .torch_optim import Stepper
from .visits import batches, factor, step_count

if TYPE_CHECKING:
    from .torch import TorchLearner

EVALUATED = 512  # rows at a time


@dataclass(frozen=True, slots=True)
class Rows:
    """A client's checked arrays: `x` (n, ...), `y` (n, ...) in the module's own types."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.x)


def checked(learner: TorchLearner, work: Work, data: Any) -> Rows:
    """The client's rows as the module and the loss take them. Raises DataError."""
    x, y = rows_of(data)
    if not len(x):
        return Rows(x, y)
    x = features(x, work.net.numpy_dtype)
    return Rows(x, labels(learner.loss, y, tuple(work.output(x).shape[1:]), work.net.numpy_dtype))


def fit(learner: TorchLearner, work: Work, params: Update, data: Any, ctx: FitContext) -> Contribution:
    """One client's training from `params`; nothing of it stays in `work`."""
    rows = checked(learner, work, data)
    n, net = len(rows), work.net
    if not n:
        return Contribution(params.zeros(), 0.0, steps=0)
    with steady(net.device), own_draws(net.device, on=not work.apart):
        work.load(params)
        steps, loss = _train(learner, work, params, rows, ctx)
        new = work.read(net.numpy_dtype)
    change = difference(net, params, new, ctx)
    state = Update(net.layout, new) if learner.moon else None
    return Contribution(change, float(n), {"loss": loss / steps}, steps=steps, state=state)


def difference(net: Any, params: Update, new: np.ndarray[Any, Any], ctx: FitContext) -> Update:
    """New minus old in the order of `params`, exactly zero for leaves that may not move."""
    change = np.empty(params.layout.size, new.dtype)
    for name, here in net.layout.slices.items():
        there = params.layout.slices[name]
        if ctx.moves is None or ctx.moves(name):
            np.subtract(new[here], params.buffer[there].astype(new.dtype, copy=False), out=change[there])
        else:
            change[there] = 0
    return Update(params.layout, change.astype(params.buffer.dtype, copy=False))


def _train(
    learner: TorchLearner, work: Work, params: Update, rows: Rows, ctx: FitContext
) -> tuple[int, float]:
    if learner.moon is None:
        return _steps(learner, work, params, rows, ctx, None)
    contrast = Contrast(learner.moon, work, params, ctx)
    try:
        return _steps(learner, work, params, rows, ctx, contrast)
    finally:
        contrast.close()


def _steps(
    learner: TorchLearner, work: Work, params: Update, rows: Rows, ctx: FitContext, contrast: Contrast | None
) -> tuple[int, float]:
    n, knobs, epochs, size = len(rows), work.knobs, learner.epochs, learner.batch_size
    work.training(on=True)
    moving = _moving(work, ctx)
    knobs.fused = bool(work.fused) and learner.rule.bare and ctx.pull is None and work.fused <= moving.keys()
    knobs.weight_decay = learner.weight_decay
    stepped = {k: p for k, p in moving.items() if not (knobs.fused and k in work.fused)}
    leaves = [*stepped.values()]
    asked = [*leaves, knobs.token] if knobs.fused else leaves
    stepper, pull = Stepper(learner.rule, [p.detach() for p in leaves]), Pulled(ctx, params, stepped)
    loss_of_batch, run = loss_of(learner.loss), work.lean or work.module
    orders = shuffles(np.array([ctx.key.key], np.uint64), epochs, n)[0]
    steps = step_count(n, size, epochs)
    rate = learner.lr * learner.decay**ctx.round
    total, begun = torch.zeros((), dtype=torch.float64, device=work.net.device), -1
    for step, (epoch, part) in enumerate(batches(n, size, epochs) if asked else ()):
        if epoch != begun:
            begun = epoch
            x, y = _visit(rows, orders[epoch], work)
        knobs.lr = rate * factor(learner.schedule, step, steps)
        _seed(work, ctx, step)
        batch = work.batch(x[part])
        loss = loss_of_batch(run(batch), y[part])
        if loss.dim():
            raise ConfigError(
                f"a loss gives one number, the mean over the rows; got shape {list(loss.shape)}"
            )
        if contrast is not None:
            loss = loss + contrast.term(batch)
        grads = torch.autograd.grad(loss, asked, allow_unused=True)
        stepper.step(pull.added(grads[: len(leaves)]), knobs.lr)
        total += loss.detach()
    return steps, float(total)


def _visit(rows: Rows, order: np.ndarray[Any, Any], work: Work) -> tuple[Tensor, Tensor]:
    return loaded(rows.x, order, work.net.device), loaded(rows.y, order, work.net.device)


def _moving(work: Work, ctx: FitContext) -> dict[str, Tensor]:
    """Parameters that take steps; the others stop asking for gradients."""
    for name, p in work.parameters.items():
        p.requires_grad_(work.asks[name] and (ctx.moves is None or ctx.moves(name)))
    return {name: p for name, p in work.parameters.items() if p.requires_grad}


def _seed(work: Work, ctx: FitContext, step: int) -> None:
    """Dropout's stream is fixed by round, client and step."""
    seed = ctx.key.at("noise", step).key
    work.knobs.noise.manual_seed(seed)
    if not work.apart:  # randomness we do not know of: the caller's generator was put aside
        seed_draws(work.net.device, seed)


class Pulled:
    """The gradient of mu/2 ||w - anchor||² + <slope, w>, added to each leaf's."""

    def __init__(self, ctx: FitContext, params: Update, leaves: dict[str, Tensor]) -> None:
        pull = ctx.pull
        self.mu = pull.mu if pull else 0.0
        self.leaves = [p.detach() for p in leaves.values()]
        anchor = None if pull is None or not pull.mu else params if pull.anchor is None else pull.anchor
        slope = pull.slope if pull else None
        self.anchor = None if anchor is None else [like(p, anchor[name]) for name, p in leaves.items()]
        self.slope = None if slope is None else [like(p, slope[name]) for name, p in leaves.items()]

    def added(self, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The gradients with the pull in them."""
        if self.anchor is None and self.slope is None:
            return list(grads)
        pairs = zip(self.leaves, grads, strict=True)
        return [self._one(i, torch.zeros_like(w) if g is None else g) for i, (w, g) in enumerate(pairs)]

    def _one(self, i: int, g: Tensor) -> Tensor:
        if self.anchor is not None:
            g = g + self.mu * (self.leaves[i] - self.anchor[i])
        return g if self.slope is None else g + self.slope[i]


def like(leaf: Tensor, values: np.ndarray[Any, Any]) -> Tensor:
    """A copy of `values` as a tensor beside `leaf`."""
    return torch.from_numpy(np.array(values)).to(leaf)


def evaluate(learner: TorchLearner, work: Work, params: Update, data: Any) -> dict[str, float]:
    """Mean loss over the rows and, for classifiers, the share of right predictions."""
    rows = checked(learner, work, data)
    if not len(rows):
        return {}
    work.load(params)
    work.training(on=False)
    loss_fn, n, order = loss_of(learner.loss), len(rows), np.arange(len(rows))
    total, right = 0.0, 0.0
    counted = True
    with steady(work.net.device), torch.no_grad():
        for _, part in batches(n, EVALUATED, 1):
            x, y = _visit(rows, order[part], work)
            out = work.infer(work.batch(x))
            total += float(loss_fn(out, y)) * len(y)
            hit = hits(learner.loss, out, y)
            counted = counted and hit is not None
            right += 0.0 if hit is None else float(hit)
    return {"loss": total / n, "accuracy": right / n} if counted else {"loss": total / n}


def logits(work: Work, params: Update, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the module returns for the rows."""
    x, order = features(x, work.net.numpy_dtype), np.arange(len(x))
    work.load(params)
    work.training(on=False)
    with steady(work.net.device), torch.no_grad():
        found = [
            work.infer(work.batch(loaded(x, order[part], work.net.device))).cpu()
            for _, part in batches(len(x), EVALUATED, 1)
        ]
    return torch.cat(found).numpy() if found else np.empty((0, 0), x.dtype)
