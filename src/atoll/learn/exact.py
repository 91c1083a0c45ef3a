"""Exact methods: clients send sums, the server steps on their total, nothing is lost.

Many classical methods need the data only through sums over rows. If every site sends its own
(`Sum` adds them in fixed point, so in any order and tree), the result is the pooled one. A
learner of this kind contributes sums with weight 1 and may offer

    contributes(params) -> Update   zeros, laid out as its contributions
    bounds: Mapping[str, float]     the largest magnitude of each leaf of one contribution

and its algorithm is `exact(step)`: a transform that turns the total into the model's change. A
job gives it `max_weight=1`, which leaves all bits of the fixed point to the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from atoll.core.errors import ConfigError, QuorumError
from atoll.core.protocol import Party
from atoll.core.registry import part
from atoll.core.transform import Transform, chain, transform
from atoll.core.update import Update

from .algorithm import Algorithm, Roles
from .rounds import Plan, Progress, begin, evaluate, one_round

Still: TypeAlias = Callable[[Update, Update], bool]


@part("transform")
def total() -> Transform:
    """Leave the sum as it is: the contributions are sums, and their total is what is wanted."""
    return transform("total()", averages=True)


def exact(*steps: Transform, still: Still | None = None) -> Algorithm:
    """Sums of all clients, then `steps` on their total, until the model stands still.

    `still(before, after)`: whether a round left the model where it was; None runs all rounds.
    Every client must answer: a sum without one of them would be another number.
    """

    async def role(p: Party, plan: Plan) -> Progress:
        return await until_still(p, plan, still)

    return Algorithm("exact", chain(*steps, total()), weigh="equal", protocol=Roles(role, apart=False))


def close(tol: float) -> Still:
    """No number moved by more than `tol` >= 0, relative to the largest one or 1."""
    if not tol >= 0:
        raise ConfigError(f"tol must be at least 0, got {tol}")

    def still(before: Update, after: Update) -> bool:
        moved = np.abs(after.buffer - before.buffer).max(initial=0.0)
        return bool(moved <= tol * max(1.0, np.abs(after.buffer).max(initial=0.0)))

    return still


async def until_still(p: Party, plan: Plan, still: Still | None) -> Progress:
    """The coordinator: rounds of sums until the model stands still. Raises QuorumError without a site."""
    now: Progress = p.restored or begin(plan, p)
    while now.round < plan.rounds and not now.over:
        before = now.params
        now, record = await one_round(p, plan, now)
        complete(record)
        if still is not None and still(before, now.params):
            now = replace(now, over="the model stands still")
        if now.over or now.round == plan.rounds:
            record |= await evaluate(p, plan, now)
        await p.note({**record, "stop": now.over} if now.over else record)
        await p.checkpoint(now)
    return now


def complete(record: dict[str, Any]) -> None:
    """Raise QuorumError, with the reasons, unless everybody who was asked is in a round's sum."""
    missing = record["cohort"] - record["clients"]
    if missing:
        reasons = sorted({reason.strip().splitlines()[-1] for reason in record["failed"].values()})
        raise QuorumError(
            f"an exact sum needs every site, and {missing} of {record['cohort']} did not answer:"
            f" {'; '.join(reasons[:3])}"
        )
