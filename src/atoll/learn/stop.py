"""When a run has converged, and which of its models to keep: one stated rule on one metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.registry import part

_DOWN = ("loss", "error", "mse", "mae", "rmse")
_FIRST = ("accuracy", "auc", "r2", "mse", "loss")


def lower_is_better(metric: str) -> bool:
    """Losses and errors fall, everything else rises."""
    return metric.endswith(_DOWN)


def main_metric(metrics: Iterable[str]) -> str:
    """The metric a person asks for first."""
    names = list(metrics)
    return next((n for n in _FIRST if n in names), next(iter(names), "loss"))


@dataclass(frozen=True)
class Stop:
    """See `early`."""

    metric: str
    patience: int
    by: float
    target: float | None

    @property
    def lower_is_better(self) -> bool:
        """As the function of that name says of its metric."""
        return lower_is_better(self.metric)

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` improves on `best` by more than the margin; NaN never does."""
        if best is None:
            return value == value  # noqa: PLR0124  false for NaN only
        return value < best - self.by if self.lower_is_better else value > best + self.by

    def over(self, value: float, rounds_without: int) -> str:
        """Why to stop now, empty to go on."""
        reached = self.target is not None and (
            value <= self.target if self.lower_is_better else value >= self.target
        )
        if reached:
            return f"{self.metric} reached {value:.4g}, the target is {self.target:g}"
        if rounds_without >= self.patience:
            return f"{self.metric} has not improved by more than {self.by:g} in {self.patience} evaluations"
        return ""


@part("stop")
def early(metric: str = "loss", patience: int = 10, by: float = 0.0, target: float | None = None) -> Stop:
    """Stop after `patience` evaluations that improve `metric` by no more than `by`, or at `target`.

    The model of the best evaluation is kept.
    """
    if patience < 1:
        raise ConfigError(f"patience must be at least 1, got {patience}")
    if by < 0:
        raise ConfigError(f"by must be at least 0, got {by}")
    return Stop(metric, patience, by, target)
