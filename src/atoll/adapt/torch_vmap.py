"""Many clients of a small module at once: one forward over stacked weights, one backward.

Small models spend their time in Python and dispatch; stacking the clients removes it (research:
forward under `vmap` with one backward beats `vmap(grad)`). Clients are grouped by how many steps
they take, so nobody waits and no padded step can touch an optimiser's state; within the last
batch of an epoch shorter clients are padded and their loss masked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..core.errors import MisuseError
from ..core.message import Contribution, FitContext
from ..core.rng import shuffles
from ..core.update import Update
from . import torch_loop
from .torch_lean import IMAGE, PLAIN
from .torch_loop import Rows, difference
from .torch_loss import loss_of, row_losses
from .torch_net import Work, steady
from .torch_optim import Stepper
from .visits import batches, factor, step_count

if TYPE_CHECKING:
    from .torch import TorchLearner

SMALL = 1 << 15  # parameters; above, one client's weights in the cache win
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 4 << 30}  # of stacked weights, gradients and optimiser state
TOLERANCE = 1e-4  # between this engine and the loop on the first client
ONE_STEP: dict[str, Any] = {  # whose change is the gradient alone
    "optimizer": "sgd", "lr": 1.0, "epochs": 1, "batch_size": None, "momentum": 0.0, "nesterov": False,
    "weight_decay": 0.0, "schedule": None, "clip": None, "decay": 1.0,
}  # fmt: skip


def refusal(learner: TorchLearner) -> str:
    """Why this engine cannot run the learner; empty where it can."""
    net = learner.net
    if learner.moon is not None:
        return "MOON listens to layers, which stacked clients do not have"
    if net.traced.drops or not net.traced.known((*PLAIN, *IMAGE)):
        return "only layers that are pure functions of their input can be stacked (no BatchNorm, no dropout)"
    if any(not leaf.is_floating_point() for leaf in net.module.state_dict().values()) or _shared(net.module):
        return "tied weights and integer buffers cannot be stacked"
    return ""


def suits(learner: TorchLearner) -> bool:
    """The rule of engine="auto": it can, and the module is small or on a GPU."""
    net = learner.net
    small = net.layout.size <= SMALL and not net.convolves
    return (small or net.device.type != "cpu") and not refusal(learner)


def _shared(module: nn.Module) -> bool:
    return len({*module.parameters()}) != len([*module.named_parameters(remove_duplicate=False)])


def fit_many(
    learner: TorchLearner, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
) -> list[Contribution]:
    """Every client's contribution, stacked where steps agree."""
    if len(datas) != len(ctxs):
        raise MisuseError(f"one context per client is needed, got {len(ctxs)} for {len(datas)}")
    with learner.net.borrow(plain=False) as work, steady(learner.net.device):
        rows = [torch_loop.checked(learner, work, data) for data in datas]
        answers: dict[int, Contribution] = {}
        for group in _groups(learner, rows, ctxs):
            if len(group) == 1 or not _agrees(learner, work, params, rows[group[0]], ctxs[group[0]]):
                made = [torch_loop.fit(learner, work, params, rows[i], ctxs[i]) for i in group]
            else:
                made = _fit_group(learner, work, params, [rows[i] for i in group], [ctxs[i] for i in group])
            answers.update(zip(group, made, strict=True))
    return [answers[i] for i in range(len(datas))]


def _groups(learner: TorchLearner, rows: Sequence[Rows], ctxs: Sequence[FitContext]) -> list[list[int]]:
    """Indices of clients that can be stacked, at most as many as the memory bound allows."""
    alike: dict[Any, list[int]] = defaultdict(list)
    names = [*learner.net.layout.slices]
    for i, (r, ctx) in enumerate(zip(rows, ctxs, strict=True)):
        moves = None if ctx.moves is None else tuple(map(ctx.moves, names))
        per_epoch = step_count(len(r), learner.batch_size, 1)
        whole = callable(learner.loss) or learner.batch_size is None  # nothing to mask, or no way to
        alike[per_epoch, len(r) if whole else 0, r.x.shape[1:], moves, ctx.round, ctx.pull is None].append(i)
    most = max(1, CHUNK_BYTES[learner.net.device.type] // (16 * learner.net.layout.size))
    return [group[i : i + most] for group in alike.values() for i in range(0, len(group), most)]


def _agrees(learner: TorchLearner, work: Work, params: Update, rows: Rows, ctx: FitContext) -> bool:
    """Whether a stack gives the loop's gradients, tried once per module and loss on one client."""
    if not len(rows):
        return False
    verdicts = learner.net.verdicts
    if learner.loss not in verdicts:
        verdicts[learner.loss] = _same(learner, work, params, Rows(rows.x[:8], rows.y[:8]), ctx)
    return verdicts[learner.loss]


def _same(learner: TorchLearner, work: Work, params: Update, rows: Rows, ctx: FitContext) -> bool:
    one, ctx = replace(learner, **ONE_STEP), FitContext(ctx.key)
    single = torch_loop.fit(one, work, params, rows, ctx).update.buffer
    try:
        stacked = _fit_group(one, work, params, [rows], [ctx])[0].update.buffer
    except RuntimeError:  # an operation that has no rule for stacks
        return False
    scale = max(1.0, float(np.abs(np.nan_to_num(single)).max()))
    return np.allclose(stacked, single, rtol=0, atol=TOLERANCE * scale, equal_nan=True)


def _fit_group(
    learner: TorchLearner, work: Work, params: Update, rows: Sequence[Rows], ctxs: Sequence[FitContext]
) -> list[Contribution]:
    net, m, longest = work.net, len(rows), max(len(r) for r in rows)
    stacks = _stacks(net, params, m)
    moves = ctxs[0].moves
    moving = {k: v for k, v in stacks.items() if work.asks.get(k) and (moves is None or moves(k))}
    for leaf in moving.values():
        leaf.requires_grad_(True)
    stepper = Stepper(learner.rule, [w.detach() for w in moving.values()], stacked=True)
    pull = _Pull(ctxs, params, moving)
    orders = _orders(rows, ctxs, learner.epochs)
    per_epoch = step_count(longest, learner.batch_size, 1)
    steps = per_epoch * learner.epochs
    rate = learner.lr * learner.decay ** ctxs[0].round
    totals, begun = torch.zeros(m, dtype=torch.float64, device=net.device), -1
    work.training(on=True)
    forward = vmap(lambda leaves, x: functional_call(work.module, leaves, (x,)))
    every = batches(longest, learner.batch_size, learner.epochs) if moving else ()
    for step, (epoch, part) in enumerate(every):
        if epoch != begun:
            begun = epoch
            x, y, mask = _epoch(rows, [o[epoch] for o in orders], longest, net)
        losses = _losses(learner, forward(stacks, x[:, part]), y[:, part], mask[:, part])
        grads = torch.autograd.grad(losses.sum(), [*moving.values()], allow_unused=True)
        stepper.step(pull.added(grads), rate * factor(learner.schedule, step, steps))
        totals += losses.detach()
    spent = (totals / steps).tolist()
    return [
        Contribution(
            difference(net, params, _flat(net, stacks, i), ctx),
            float(len(r)),
            {"loss": spent[i]},
            steps=steps,
        )
        for i, (r, ctx) in enumerate(zip(rows, ctxs, strict=True))
    ]


def _orders(rows: Sequence[Rows], ctxs: Sequence[FitContext], epochs: int) -> list[np.ndarray[Any, Any]]:
    """Each client's visits, (epochs, its rows); clients of one length are drawn together."""
    orders: dict[int, np.ndarray[Any, Any]] = {}
    for n in {len(r) for r in rows}:
        who = [i for i, r in enumerate(rows) if len(r) == n]
        keys = np.array([ctxs[i].key.key for i in who], np.uint64)
        orders.update(zip(who, shuffles(keys, epochs, n), strict=True))
    return [orders[i] for i in range(len(rows))]


def _stacks(net: Any, params: Update, m: int) -> dict[str, Tensor]:
    """Each leaf m times, in memory of PyTorch's own alignment, on which the last bits may depend."""
    return {
        name: torch.tensor(np.repeat(params[name][None], m, axis=0), dtype=net.dtype, device=net.device)
        for name in net.layout.slices
    }


def _flat(net: Any, stacks: Mapping[str, Tensor], i: int) -> np.ndarray[Any, Any]:
    return np.concatenate([stacks[name][i].detach().cpu().numpy().ravel() for name in net.layout.slices])


def _epoch(
    rows: Sequence[Rows], orders: Sequence[np.ndarray[Any, Any]], longest: int, net: Any
) -> tuple[Tensor, ...]:
    """x, y and the mask of real rows, (clients, longest, ...), in this epoch's orders."""
    short = any(len(r) < longest for r in rows)
    fill = [np.resize(o, longest) if short else o for o in orders]
    x = np.stack([r.x[f] for r, f in zip(rows, fill, strict=True)])
    y = np.stack([r.y[f] for r, f in zip(rows, fill, strict=True)])
    mask = np.array([np.arange(longest) < len(r) for r in rows], net.numpy_dtype)
    return tuple(torch.tensor(a, device=net.device) for a in (x, y, mask))


def _losses(learner: TorchLearner, out: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Each client's mean loss over its real rows: (clients,)."""
    if callable(learner.loss):
        loss = loss_of(learner.loss)
        return torch.stack([loss(o, t) for o, t in zip(out, y, strict=True)])
    each = row_losses(learner.loss, out.flatten(0, 1), y.flatten(0, 1)).reshape(mask.shape)
    return (each * mask).sum(1) / mask.sum(1)


class _Pull:
    """The pull's gradient for stacked leaves: mu and slope may differ between clients."""

    def __init__(self, ctxs: Sequence[FitContext], params: Update, leaves: Mapping[str, Tensor]) -> None:
        pulls = [c.pull for c in ctxs if c.pull is not None]
        self.leaves = [w.detach() for w in leaves.values()]
        self.on = bool(pulls)
        if not self.on:
            return
        zero = params.zeros()
        self.mu = [
            torch.tensor([p.mu for p in pulls]).to(w).reshape(-1, *[1] * (w.dim() - 1)) for w in self.leaves
        ]
        self.anchors = [
            self._tensor([(params if p.anchor is None else p.anchor)[name] for p in pulls], w)
            for name, w in leaves.items()
        ]
        self.slopes = [
            self._tensor([(zero if p.slope is None else p.slope)[name] for p in pulls], w)
            for name, w in leaves.items()
        ]

    @staticmethod
    def _tensor(values: Sequence[Any], beside: Tensor) -> Tensor:
        return torch.from_numpy(np.stack(values)).to(beside.detach())

    def added(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients with the pull in them."""
        if not self.on:
            return list(grads)
        parts = zip(self.leaves, grads, self.mu, self.anchors, self.slopes, strict=True)
        return [(0 if g is None else g) + mu * (w - a) + s for w, g, mu, a, s in parts]
