"""One step a round on rows drawn by a coin each, every row's gradient clipped: privacy for single rows.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang 2016, "Deep learning with differential privacy",
alg. 1, over all sites at once: each sums the clipped gradients of the rows that its own coins drew, and the
coordinator's sum over sites is that of one lot from all rows. Noise of sigma times the clip hides one row
in it, and rows are not drawn by anything that the job's seed would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import CompositionError
from ..core.message import Contribution, FitContext
from ..core.update import Update
from .rows import Drawn
from .wrapped import Wrapped


@dataclass(frozen=True)
class PerRow:
    """Makes the learner that answers minus the sum of clipped gradients; `rate`: of each row's coin.

    Raises CompositionError for a learner that clips no single rows.
    """

    rate: float
    norm: float

    def __call__(self, learner: Any) -> Any:
        if not hasattr(learner, "clipped"):
            raise CompositionError(
                f"{type(learner).__name__} cannot clip the gradients of single rows, which"
                ' unit="example" needs: clipped(params, data, norm), as softmax, mlp and torch_learner have'
            )
        return _Clipping(learner, self.rate, self.norm)


@dataclass(frozen=True)
class _Clipping(Wrapped):
    rate: float
    norm: float

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        return [
            Contribution(self.learner.clipped(params, _lot(data, self.rate, ctx), self.norm))
            for data, ctx in zip(datas, ctxs, strict=True)
        ]


def _lot(data: Any, rate: float, ctx: FitContext) -> Drawn:
    """The rows that this round's coins draw."""
    x, y = np.asarray(data.x), np.asarray(data.y)
    if rate >= 1:
        return Drawn(x, y)
    coins = ctx.rng.random(len(y)) < rate
    return Drawn(x[coins], y[coins])
