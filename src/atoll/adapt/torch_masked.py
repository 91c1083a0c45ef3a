"""BatchNorm over the rows that are there: a short batch is padded, and the copies enter no statistics.

    mean = Σ m x / Σ m        var = Σ m (x - mean)² / Σ m        m: 1 for a row's cells, 0 for a copy's

which is what PyTorch computes over the rows alone. The running statistics that come out are read from
`seen`, by name: a traced step changes nothing in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .torch_lean import NORMS


class Seen:
    """What the norms of one forward pass read and leave: `mask` (batch,), `statistics` by leaf."""

    def __init__(self) -> None:
        self.mask: Any = None
        self.statistics: dict[str, Tensor] = {}


class MaskedNorm(nn.Module):
    """A BatchNorm in training mode; its leaves keep their names."""

    def __init__(self, norm: Any, name: str, seen: Seen) -> None:
        super().__init__()
        if norm.momentum is None or norm.running_mean is None:
            raise ConfigError(
                f"a plan takes BatchNorm with running statistics and a momentum, unlike {name!r}"
            )
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = nn.Buffer(norm.running_mean), nn.Buffer(norm.running_var)
        self.eps, self.momentum, self.name, self.seen = norm.eps, norm.momentum, name, seen

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (batch, channels, ...); one cell a channel has no variance, as in torch_net."""
        axes, wide = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        mask = self.seen.mask.reshape(-1, *[1] * (x.dim() - 1))
        n = self.seen.mask.sum() * (x[0, 0].numel())
        mean = (x * mask).sum(axes) / n
        off = (x - mean.reshape(wide)) * mask
        var = (off * off).sum(axes) / n
        many = n > 1.5
        self._follow("running_mean", self.running_mean, mean, many)
        self._follow("running_var", self.running_var, var * (n / (n - 1).clamp(min=1.0)), many)
        mean, var = torch.where(many, mean, self.running_mean), torch.where(many, var, self.running_var)
        out: Tensor = (x - mean.reshape(wide)) * (var + self.eps).rsqrt().reshape(wide)
        if self.weight is not None:
            out = out * self.weight.reshape(wide) + self.bias.reshape(wide)
        return out

    def _follow(self, leaf: str, old: Tensor, now: Tensor, many: Tensor) -> None:
        new = old + self.momentum * (now.detach() - old)
        self.seen.statistics[f"{self.name}.{leaf}" if self.name else leaf] = torch.where(many, new, old)


def masked(module: nn.Module, seen: Seen) -> nn.Module:
    """The module with every BatchNorm that is in training mode replaced; in place, but for a bare norm."""
    if isinstance(module, NORMS) and module.training:
        return MaskedNorm(module, "", seen)
    for name, norm in [*module.named_modules()]:
        if isinstance(norm, NORMS) and norm.training:
            above, _, own = name.rpartition(".")
            setattr(module.get_submodule(above), own, MaskedNorm(norm, name, seen))
    return module
