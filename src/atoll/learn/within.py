"""Fine-tuning within a quota: a node renews its model a piece at a time, and stops before the quota is spent.

A piece is one local training on a few of the node's rows. What has been reached is a value, on disk whenever
the caller keeps it, so a node that was killed goes on at the next piece and comes to the same params: each
piece is a function of the key, its number and the params before it. Who has less time comes less far, on the
same way.

`toward` goes a part of the way from the federation's model to what this made of it (Wortsman et al. 2022,
"Robust fine-tuning of zero-shot models": half-way, weights mostly answer better to a world that moves on than
at either end).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.message import FitContext, Learner
from ..core.rng import Rng
from ..core.update import Update
from .rows import Drawn


@dataclass(frozen=True, slots=True)
class Budget:
    """What renewing may cost: optimiser's `steps` >= 1, `seconds` > 0 of the clock, `passes` >= 1 over the
    rows. Raises ConfigError for less.
    """

    steps: int = 1000
    seconds: float = 60.0
    passes: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.seconds > 0 or self.passes < 1:
            raise ConfigError(f"a budget has steps, seconds and passes above 0, got {self}")


@dataclass(frozen=True, slots=True)
class Tuned:
    """How far it is: the `params` after `pieces`, what they took in `steps` and `seconds`, the longest one's
    seconds, and why it `stopped`: "" while it has not, else "rows", "steps" or "seconds".
    """

    params: Update
    pieces: int = 0
    steps: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    stopped: str = ""


def fine_tune_within(
    learner: Learner,
    so_far: Update | Tuned,
    rows: Any,
    budget: Budget,
    clock: Callable[[], float],
    *,
    key: Rng,
    round: int = 0,
    piece: int = 64,
    keep: Callable[[Tuned], None] = lambda tuned: None,
) -> Tuned:
    """Train the params on `rows` (`.x`, `.y`) until the budget or the rows are used up.

    `so_far`: params, or what an earlier call reached, with what it has spent. `clock`: seconds, as
    time.process_time gives a process's own. `round`: where schedules of the rate stand. `piece`: rows of a
    piece. `keep` sees each piece's end.
    A piece that might take the time beyond the budget, by the longest one yet, is not begun; the first one
    is. Momentum begins anew with each piece.
    """
    now = so_far if isinstance(so_far, Tuned) else Tuned(so_far)
    now, n = replace(now, stopped=""), len(rows)
    parts = -(-n // piece)
    while True:
        why = _over(now, budget, parts)
        if why:
            return replace(now, stopped=why)
        began = clock()
        turn, place = divmod(now.pieces, parts)
        order = key.at("order", turn).generator().permutation(n)
        here = order[place * piece : (place + 1) * piece]
        part = Drawn(np.asarray(rows.x)[here], np.asarray(rows.y)[here])
        made = learner.fit(now.params, part, FitContext(key.at("piece", now.pieces), round))
        took = max(0.0, clock() - began)
        now = Tuned(
            now.params + made.update,
            now.pieces + 1,
            now.steps + made.steps,
            now.seconds + took,
            max(now.longest, took),
        )
        keep(now)


def toward(first: Update, tuned: Update, reach: float) -> Update:
    """The params that lie `reach`, in (0, 1], of the way from the first ones to the others."""
    return first + (tuned - first).scale(reach)


def _over(now: Tuned, budget: Budget, parts: int) -> str:
    """Why no further piece is begun."""
    if now.pieces >= budget.passes * parts:
        return "rows"
    a_piece = now.steps / now.pieces if now.pieces else 0
    if now.steps + a_piece > budget.steps:
        return "steps"
    return "seconds" if now.seconds + now.longest > budget.seconds else ""
