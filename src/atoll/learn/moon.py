"""MOON: a contrastive term keeps a client's representation near the global model's.

Li, He, Song 2021, "Model-contrastive federated learning", eq. 3: to the local loss comes

    mu * -log( e^{cos(z, z_glob)/T} / (e^{cos(z, z_glob)/T} + e^{cos(z, z_prev)/T}) )

Representations belong to the network, so the term is the learner's: it must have
`contrastive(mu, temperature)`.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import ConfigError
from ..core.registry import part
from .algorithm import Algorithm
from .server import positive


@part("algorithm")
def moon(mu: float = 1.0, temperature: float = 0.5) -> Algorithm:
    """Contrast local representations with the global ones (Li et al. 2021, eq. 3).

    Needs a learner that knows representations, such as `torch_learner`.
    """
    if not mu >= 0:
        raise ConfigError(f"mu must be at least 0, got {mu}")
    positive(temperature=temperature)

    def wrap(learner: Any) -> Any:
        if not hasattr(learner, "contrastive"):
            raise ConfigError(
                f"moon contrasts a network's representations, and {type(learner).__name__} does not show any:"
                " use torch_learner, or give your learner contrastive(mu, temperature)"
            )
        return learner.contrastive(mu, temperature)

    return Algorithm("moon", wrap=wrap, values={"mu": mu, "temperature": temperature})
