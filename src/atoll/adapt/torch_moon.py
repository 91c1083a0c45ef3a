"""MOON's contrastive term: Li, He, Song (2021), "Model-contrastive federated learning", eq. 3.

    mu * -log( e^{cos(z, z_glob)/T} / (e^{cos(z, z_glob)/T} + e^{cos(z, z_prev)/T}) )

z is the input of the module's last linear layer (its representation of a row), z_glob the same
under the params the round began with, z_prev under this client's previous local params. A client
without previous params has no term: z_prev would be z_glob, and the gradient zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError, MisuseError
from ..core.message import FitContext
from ..core.update import Update

if TYPE_CHECKING:
    from .torch_net import Work


def last_linear(module: nn.Module) -> nn.Linear:
    """The last linear layer. Raises ConfigError where there is none."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ConfigError("MOON takes the input of the last nn.Linear, and the module has none")
    return layers[-1]


def contrast(z: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:
    """The term for representations (n, d), without its mu, averaged over rows."""
    a, b = F.cosine_similarity(z, near) / temperature, F.cosine_similarity(z, far) / temperature
    return F.softplus(b - a).mean()  # -log(e^a / (e^a + e^b))


class Contrast:
    """The term for one fit; it listens to what the module computes."""

    def __init__(self, weights: tuple[float, float], work: Work, params: Update, ctx: FitContext) -> None:
        self.mu, self.temperature = weights
        self.others: list[_Listener] = []
        if ctx.state is None:
            return
        if not isinstance(ctx.state, Update):
            raise MisuseError("MOON's state is the client's previous params, an Update")
        self.others = [
            _Listener(work.net.loaded(p).to(work.net.device).eval())
            for p in (params, work.net.check(ctx.state))
        ]
        self.mine = _Listener(work.module)

    def term(self, x: Tensor) -> Any:
        """mu times the term for the batch just computed."""
        if not self.others:
            return 0.0
        with torch.no_grad():
            near, far = (other(x) for other in self.others)
        return self.mu * contrast(self.mine.z, near, far, self.temperature)

    def close(self) -> None:
        """Stop listening."""
        if self.others:
            self.mine.handle.remove()


class _Listener:
    """The representation a module last computed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.z = torch.empty(0)
        self.handle = last_linear(module).register_forward_pre_hook(self._hear)

    def _hear(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.z = inputs[0].flatten(1)

    def __call__(self, x: Tensor) -> Tensor:
        self.module(x)
        return self.z
