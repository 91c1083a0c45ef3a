"""Bounding what one contribution can change, the first half of differential privacy.

McMahan, Ramage, Talwar, Zhang 2018, "Learning differentially private recurrent language models",
§2.1, flat clipping: Δ <- Δ min(1, S / ||Δ||₂) over the whole update.
"""

from __future__ import annotations

from math import isfinite

from ..core.errors import ConfigError
from ..core.registry import part
from ..core.transform import Context, State, Transform, transform
from ..core.update import Update

SLACK = 1 - 2.0**-20  # rounding each entry to float32 may not lift the norm over its bound


@part("transform")
def clip(norm: float) -> Transform:
    """Scale an update down until its L2 norm over all leaves is at most `norm` > 0.

    Updates within the bound pass untouched. It bounds what one client adds, and hides nothing.
    """
    if not norm > 0:
        raise ConfigError(f"norm must be above 0, got {norm}")

    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        length = update.norm()
        within = length <= norm or not isfinite(length)  # the aggregator refuses what is not finite
        return (update if within else update.scale(norm * SLACK / length)), state

    return transform(f"clip({norm:g})", out, sets_bound=float(norm), whole=True)
