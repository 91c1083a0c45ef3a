"""What federated learning is measured against: each site alone, and all data in one place.

Both use the job's own learner, rounds and seed. Pooling is for comparison on data that may be
pooled, as in a simulation; nothing here runs on real sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .core.message import FitContext
from .core.rng import Rng
from .core.update import Update
from .job import Job
from .learn.algorithm import fedavg
from .learn.local import measure
from .learn.select import Everyone
from .learn.stop import lower_is_better
from .run import Run, simulate


@dataclass(frozen=True)
class Scores:
    """One way to train: `pooled` metrics on the pooled test rows (for sites alone, their mean),
    `sites` each site's metrics on its own test rows.
    """

    pooled: Mapping[str, float]
    sites: Mapping[int, Mapping[str, float]]

    def over_sites(self, metric: str) -> Spread:
        """How `metric` is spread over the sites."""
        values = [m[metric] for m in self.sites.values() if metric in m]
        return spread(values, lower_is_better=lower_is_better(metric))


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation, and the mean of the worst tenth (at least one site)."""

    mean: float
    deviation: float
    worst: float


def spread(values: Sequence[float], *, lower_is_better: bool = False) -> Spread:
    """The spread of one metric over sites; NaN where there are none."""
    if not values:
        return Spread(float("nan"), float("nan"), float("nan"))
    ranked = sorted(values, reverse=lower_is_better)
    tenth = ranked[: max(1, len(ranked) // 10)]
    return Spread(float(np.mean(values)), float(np.std(values)), float(np.mean(tenth)))


def scores(run: Run) -> Scores:
    """A federated run's own."""
    return Scores(run.metrics, run.sites)


def pooled(job: Job, data: Any, seed: int = 0) -> Scores:
    """The same training on all rows together."""
    run = simulate(_single(_sized(job, data)), [data.pooled()], seed)
    sites = {k: _metrics(run, run.params, rows, seed) for k, rows in enumerate(data.tests) if len(rows)}
    return Scores(_metrics(run, run.params, data.test, seed) if data.test is not None else {}, sites)


def alone(job: Job, data: Any, seed: int = 0) -> Scores:
    """The same training at each site by itself; empty sites are left out."""
    sites, found = {}, []
    for k, rows in enumerate(data):
        if not len(rows):
            continue
        run = simulate(_single(_sized(job, data)), [rows], seed)
        if data.tests and len(data.tests[k]):
            sites[k] = _metrics(run, run.params, data.tests[k], seed)
        if data.test is not None:
            found.append(_metrics(run, run.params, data.test, seed))
    names = found[0] if found else {}
    return Scores({name: float(np.mean([m[name] for m in found])) for name in names}, sites)


def cross_site(run: Run, models: Mapping[Any, Update], data: Any) -> dict[Any, dict[int, dict[str, float]]]:
    """Every model on every site's own test rows: model -> site -> metrics. No data move."""
    return {
        name: {k: _metrics(run, params, rows, run.seed) for k, rows in enumerate(data.tests) if len(rows)}
        for name, params in models.items()
    }


def _single(job: Job) -> Job:
    return job.replace(
        algorithm=fedavg(), cohort=Everyone(), sites=False, stop=None, topology=type(job.topology)()
    )


def _sized(job: Job, data: Any) -> Job:
    learner: Any = job.learner
    return (
        job.replace(learner=learner.sized(data.features, data.outputs)) if hasattr(learner, "sized") else job
    )


def _metrics(run: Run, params: Update, rows: Any, seed: int) -> dict[str, float]:
    found = measure(run.learner, params, rows, FitContext(Rng.of(seed).at("test"), client=-1))
    return {name: metric.value for name, metric in found.items()}
