"""The learner of a job file that is a plan: what stands in the file, and what travels instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError


def planned(table: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The learner's values if it is a plan, else None."""
    learner = table.get("learner")
    if isinstance(learner, Mapping) and learner.get("name") == "plan":
        return learner
    return {"name": "plan"} if learner == "plan" else None


def travels(table: Mapping[str, Any]) -> None:
    """Raise ConfigError for a plan named by a file: whoever is sent the job would read one of its own."""
    learner = planned(table)
    if learner is not None and ("file" in learner or not learner.get("sha256")):
        raise ConfigError(
            "a plan travels by its SHA-256 and never by a file's name: submit it by `atoll submit` or"
            " at.connect(...).submit",
            "$.learner.file",
        )
