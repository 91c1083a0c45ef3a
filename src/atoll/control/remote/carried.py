"""A learner that no name stands for travels as a plan: exported here, followed where the rows are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...adapt.plan import Plan
from ...adapt.plan_learner import PlanLearner
from ...adapt.plan_table import planned
from ...adapt.torch import TorchLearner
from ...core.errors import ConfigError


def plan_of(learner: Any, row: Callable[[], tuple[int, ...]], seed: int) -> Plan | None:
    """The plan of a learner that has one: PyTorch's is made now, for rows of the shape `row()`."""
    if isinstance(learner, PlanLearner):
        if learner.plan is None:
            raise ConfigError("the learner's plan is not here: make it from its file", "$.learner")
        return learner.plan
    return learner.plan(row(), seed=seed) if isinstance(learner, TorchLearner) else None


def named(learner: Any, plan: Plan) -> PlanLearner:
    """The learner by its plan's name, as it stands in a job file."""
    known = isinstance(learner, PlanLearner)
    return PlanLearner(None, plan.sha256, learner.lr if known else None, learner.epochs if known else None)


def file_of(table: dict[str, Any]) -> Plan | None:
    """The plan of a job file's learner, whose `file` then no longer stands there."""
    learner = planned(table)
    if learner is None or "file" not in learner:
        return None
    table["learner"] = {key: value for key, value in learner.items() if key != "file"}
    return Plan.read(str(learner["file"]))


def row_of(nodes: Sequence[Mapping[str, Any]], data: Any) -> tuple[int, ...]:
    """The shape of one row, as a site that holds the data says. Raises ConfigError where none does."""
    name = data.get("name") if isinstance(data, Mapping) else data
    for node in nodes:
        shape = node.get("info", {}).get("data", {}).get(name, {}).get("shape")
        if shape is not None:
            return tuple(int(n) for n in shape)
    raise ConfigError(
        f"no site has said yet how wide rows of {name!r} are: say so, as in row=(28, 28)", "$.data.name"
    )
