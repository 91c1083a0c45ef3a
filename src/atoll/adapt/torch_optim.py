"""The optimisers, one leaf at a time and in place, equal to torch.optim step by step.

Written once for all engines: a leaf may be one client's or a stack of many clients', and nothing
here mixes their rows but the clipping norm, which is taken client by client.

SGD: Sutskever, Martens, Dahl, Hinton (2013) in PyTorch's form; Adam: Kingma, Ba (2015), alg. 1;
AdamW: Loshchilov, Hutter (2019), alg. 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-8  # Adam's, as in torch.optim


@dataclass(frozen=True, slots=True)
class Rule:
    """An optimiser as values; see `torch_learner` for their meaning and ranges."""

    name: str
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None

    @property
    def bare(self) -> bool:
        """Whether a step is `w -= lr * (g + weight_decay * w)`, which needs no stored gradient."""
        return self.name == "sgd" and not self.momentum and self.clip is None


class Stepper:
    """One run of an optimiser over some leaves; `stacked`: each leaf holds many clients' rows."""

    def __init__(self, rule: Rule, leaves: Sequence[Tensor], *, stacked: bool = False) -> None:
        self.rule, self.leaves, self.stacked = rule, list(leaves), stacked
        self.memory: list[list[Tensor]] = [[] for _ in self.leaves]
        self.taken = [0] * len(self.leaves)  # per leaf: one without a gradient keeps its count

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None], lr: float) -> None:
        """Move every leaf that has a gradient."""
        if self.rule.clip is not None:
            grads = self._clipped(grads)
        move = _sgd if self.rule.name == "sgd" else _adam
        for i, grad in enumerate(grads):
            if grad is not None:
                self.taken[i] += 1
                move(self.rule, self.leaves[i], grad, self.memory[i], lr, self.taken[i])

    def _clipped(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        there = [g for g in grads if g is not None]
        axis = 1 if self.stacked else 0
        squares = [(g * g).flatten(axis).sum(-1) if g.dim() > axis else g * g for g in there]
        norm = torch.stack(squares).sum(0).sqrt()
        scale = (float(self.rule.clip or 0) / (norm + 1e-6)).clamp(max=1.0)
        return [
            None if g is None else g * scale.reshape(scale.shape + (1,) * (g.dim() - axis)) for g in grads
        ]


def _sgd(rule: Rule, w: Tensor, g: Tensor, memory: list[Tensor], lr: float, t: int) -> None:
    if rule.weight_decay:
        g = g.add(w, alpha=rule.weight_decay)
    if rule.momentum:
        if t == 1:
            memory.append(g.clone())
        else:
            memory[0].mul_(rule.momentum).add_(g)
        g = g.add(memory[0], alpha=rule.momentum) if rule.nesterov else memory[0]
    w.add_(g, alpha=-lr)


def _adam(rule: Rule, w: Tensor, g: Tensor, memory: list[Tensor], lr: float, t: int) -> None:
    first, second = rule.betas
    if rule.weight_decay and rule.name == "adamw":
        w.mul_(1 - lr * rule.weight_decay)
    elif rule.weight_decay:
        g = g.add(w, alpha=rule.weight_decay)
    if t == 1:
        memory += [torch.zeros_like(w), torch.zeros_like(w)]
    m, v = memory
    m.lerp_(g, 1 - first)
    v.mul_(second).addcmul_(g, g, value=1 - second)
    spread = (v.sqrt() / math.sqrt(1 - second**t)).add_(EPS)
    w.addcdiv_(m, spread, value=-lr / (1 - first**t))
