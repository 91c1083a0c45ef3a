"""A learner that trains in no time: what is left of a round is what the platform costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from atoll.core.message import Contribution, FitContext
from atoll.core.registry import part
from atoll.core.update import Update


@dataclass(frozen=True)
class Instant:
    """`size` float32 numbers; fit answers with one fixed change at once."""

    size: int

    def init(self, rng: np.random.Generator) -> dict[str, Any]:
        """A model like any other: numbers that do not compress."""
        return {"w": rng.random(self.size, np.float32)}

    @cached_property
    def change(self) -> Update:
        """What every fit answers."""
        return Update.of({"w": np.random.default_rng(1).random(self.size, np.float32) * np.float32(1e-3)})

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """The fixed change."""
        return Contribution(self.change, 10.0)

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> dict[str, float]:
        """Nothing worth knowing."""
        return {"loss": 0.0}


@part("learner")
def instant(size: int) -> Instant:
    """A model of `size` numbers that a client trains in no time."""
    return Instant(size)
