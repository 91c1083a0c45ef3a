"""Exact statistics of a federation: what `describe` says of pooled rows, without pooling them.

    print(at.statistics(sites))
    at.statistics(sites, quantiles=(0.5,), bins=20).histogram

Counts, means, variances and covariances equal the pooled ones to rounding (learn/moments.py);
quantiles, smallest and largest values are exact, with a rank error of 0 (learn/order.py). All of
it comes from sums over sites, asked through ordinary jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .core.errors import ConfigError, DataError
from .core.transform import Transform
from .data import Examples, Sites
from .data.contract import Contract
from .data.pipeline import Encode, Fill, Pipeline, Recipe, Scale
from .job import Job
from .learn.categories import Categories
from .learn.exact import Still, exact
from .learn.figures import Figures, figures, summed
from .learn.histogram import Bins
from .learn.moments import Magnitude, Moments, Pooled
from .learn.order import DIGITS, Order, descend
from .learn.select import Everyone
from .run import Run, simulate

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Columns of a federation; arrays are (d,) in the order of `names` unless said otherwise.

    `count`, `missing`: cells with and without a value. `covariance`, `correlation`: (d, d), over
    the rows that have both columns. `quantiles`: share -> (d,). `edges` (d, bins + 1) and
    `histogram` (d, bins): bins as in numpy. `std`, `variance`, `covariance` divide by n - 1.
    A figure of a column without values is NaN.
    """

    names: tuple[str, ...]
    count: Floats
    missing: Floats
    mean: Floats
    covariance: Floats
    min: Floats
    max: Floats
    quantiles: dict[float, Floats]
    edges: Floats
    histogram: Floats
    runs: tuple[Run, ...] = field(default=(), repr=False)

    @property
    def variance(self) -> Floats:
        """The diagonal of the covariance."""
        return self.covariance.diagonal()

    @property
    def std(self) -> Floats:
        """The root of the variance."""
        return np.sqrt(self.variance)

    @property
    def correlation(self) -> Floats:
        """(d, d), Pearson's; NaN for a column that does not vary."""
        spread = np.where(self.std > 0, self.std, np.nan)
        return np.asarray(np.clip(self.covariance / spread[:, None] / spread, -1.0, 1.0))

    def __str__(self) -> str:
        """A table with one line for each column."""
        shares = {q: f"p{100 * q:g}" for q in self.quantiles}
        titles = ["", "count", "missing", "mean", "std", "min", *shares.values(), "max"]
        figures = [self.mean, self.std, self.min, *self.quantiles.values(), self.max]
        lines = [titles]
        for j, name in enumerate(self.names):
            counts = [f"{self.count[j]:.0f}", f"{self.missing[j]:.0f}"]
            lines.append([name, *counts, *(f"{figure[j]:.5g}" for figure in figures)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
        )


def statistics(
    sites: Any,
    names: Sequence[str] = (),
    *,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
    bins: int = 10,
) -> Statistics:
    """Pooled statistics of the columns of `sites`: Sites, or a sequence of Examples or (n, d) arrays.

    `names`: of the columns; the data's own by default. `quantiles`: shares in 0..1. `bins`: of
    the histogram, 0 for none. NaN is missing. Of Sites the training rows are taken.
    Raises ConfigError for a wrong share or number of bins, DataError for names that do not fit, and
    QuorumError, with the site's reason, where cells are infinite or columns differ.
    """
    columns, names = _columns(sites, names)
    if bins < 0:
        raise ConfigError(f"bins must be at least 0, got {bins}")
    shares = (0.0, *quantiles, 1.0)
    order, ordered = order_statistics(sites, columns, shares)
    pooled, looks = moments(sites, columns)
    low, high = order[:, 0], order[:, -1]
    edges = np.stack([_edges(a, b, bins) for a, b in zip(low, high, strict=True)])
    counted = [ask(Bins(edges), sites)] if bins else []
    return Statistics(
        names,
        ordered.params["count"],
        ordered.params["missing"],
        pooled.mean,
        pooled.covariance(),
        low,
        high,
        {q: order[:, i + 1] for i, q in enumerate(quantiles)},
        edges,
        counted[0].params["counts"] if counted else np.zeros((columns, 0)),
        (ordered, *looks, *counted),
    )


def ask(
    learner: Any, sites: Any, *steps: Transform, rounds: int = 1, seed: int = 0, still: Still | None = None
) -> Run:
    """The run of an exact method: sums of all sites, stepped on by `steps`, for some rounds."""
    return simulate(
        Job(learner, exact(*steps, still=still), rounds=rounds, max_weight=1.0), list(sites), seed
    )


def order_statistics(sites: Any, columns: int, quantiles: Sequence[float]) -> tuple[Floats, Run]:
    """The exact quantiles of each column, (columns, quantiles)."""
    learner = Order(columns, tuple(quantiles))
    run = ask(learner, sites, descend(quantiles), rounds=DIGITS)
    return learner.values(run.params), run


def moments(sites: Any, columns: int) -> tuple[Pooled, tuple[Run, ...]]:
    """Counts, means and covariances in three looks: how large, roughly where, exactly."""
    frame, looks = _frame(sites, columns)
    fine = Moments(columns, *frame)
    last = ask(fine, sites)
    return fine.pooled(last.params), (*looks, last)


def _frame(sites: Any, columns: int) -> tuple[tuple[Floats, Floats], tuple[Run, ...]]:
    """A shift near each column's mean and a scale above its spread, from two looks."""
    size = ask(Magnitude(columns), sites)
    rough = Moments(columns, scale=Magnitude.scale(size.params), cross=False)
    looked = ask(rough, sites)
    return rough.spread(looked.params), (size, looked)


def standardise(sites: Sites, by: Literal["column", "all"] = "column") -> Sites:
    """The same clients with every column centred and scaled by the federation's exact figures.

    Each column less its pooled mean, in units of its pooled standard deviation ("column"; one that
    does not vary becomes 0), or of one deviation for all columns ("all", for pixels). Test rows
    are changed alike, by what training rows say. Centring helps most where clients see different
    labels: it takes out the direction in which all of them agree. Raises ConfigError for another `by`.
    """
    if by not in ("column", "all"):
        raise ConfigError(f'expected "column" or "all", got {by!r}', "$.standardise")
    columns, _ = _columns(sites, ())
    frame, _ = _frame(sites, columns)
    fine = Moments(columns, *frame, cross=False)
    mean, deviation = fine.each(ask(fine, sites).params)
    if by == "all":
        deviation = np.full(columns, np.sqrt(np.mean(deviation**2)))
    unit = np.where(deviation > 0, deviation, 1.0)

    def change(x: Any) -> Any:
        flat = (x.reshape(len(x), columns) - mean) / unit
        return flat.reshape(x.shape).astype(x.dtype)

    def changed(rows: Examples) -> Examples:
        return Examples(change(rows.x), rows.y, rows.names)

    test = None if sites.test is None else changed(sites.test)
    return replace(sites, x=change(sites.x), tests=tuple(map(changed, sites.tests)), test=test)


def fit_pipeline(
    sites: Any,
    contract: Contract,
    *,
    fill: Fill = "mean",
    scale: Scale = "standard",
    encode: Encode = "onehot",
) -> Pipeline:
    """The pipeline of a contract by exact figures of all sites' raw rows; only sums travel.

    `sites`: Sites, Examples or (n, d) arrays of raw rows, NaN missing, or of windows (n, size, d), whose
    readings are the rows then. `fill`: what a missing cell becomes: the mean, the median, or the middle of
    the contract's range. `scale`: less the mean in units of the standard deviation, the contract's range to
    -1..1, or none. `encode`: a category as a column for each value, or as its place. Raises ConfigError for
    another word or a range that the contract lacks, DataError for rows of another number of columns,
    QuorumError, with the reason, where a site cannot answer.
    """
    recipe = Recipe(fill, scale, encode)
    recipe.check(contract)
    columns, _ = _columns(sites, contract.features, windows=True)
    learner = Figures(columns, recipe.moments, recipe.median)
    looks = max(1, len(learner.looks))
    run = simulate(Job(learner, figures(learner, strict=True), rounds=looks, max_weight=1.0), list(sites))
    return recipe.made(contract, *learner.read(run.params))


def fitting(job: Job, contract: Contract, recipe: Recipe) -> Job:
    """The job that finds a pipeline's figures at the members of another job, summed as its updates are.

    Raises ConfigError where they cannot be: under a promise of privacy, or as encrypted sums.
    """
    if job.privacy is not None:
        raise ConfigError(
            "the job promises privacy, and no noise covers the figures that its pipeline takes of rows: use"
            ' pipeline = "range", or figures that are known without these rows',
            "$.data.pipeline",
        )
    learner = Figures(len(contract.features), recipe.moments, recipe.median)
    return job.replace(
        learner=learner,
        algorithm=figures(learner),
        cohort=Everyone(),
        rounds=max(1, len(learner.looks)),
        stop=None,
        sites=False,
        max_weight=1.0,
        exchange=summed(job.exchange),
        compression="none",
    )


def tallies(sites: Any, columns: int) -> tuple[list[dict[Any, int]], Run]:
    """For each column how many rows hold each of its values."""
    run = ask(Categories(columns), sites)
    found = run.history[-1]["train"]
    return [found[str(j)] for j in range(columns)], run


def classes(sites: Any) -> tuple[Any, ...]:
    """Every label that some site has, in order, told by one round of tallies of `y`."""
    (tally,), _ = tallies([np.asarray(site.y)[:, None] for site in sites], 1)
    return tuple(tally)


def _columns(sites: Any, names: Sequence[str], *, windows: bool = False) -> tuple[int, tuple[str, ...]]:
    """How many columns the first site has, and their names. Raises DataError for another number of names."""
    if not len(sites):
        raise ConfigError("there are no clients: the data has no sites", "$.data")
    x = np.asarray(getattr(sites[0], "x", sites[0]))
    columns = int(np.prod(x.shape[2:] if windows and x.ndim == 3 else x.shape[1:], dtype=np.int64))
    own = tuple(names) or tuple(getattr(sites[0], "names", ())) or tuple(f"x{j}" for j in range(columns))
    if len(own) != columns:
        raise DataError(f"{len(own)} names for {columns} columns")
    return columns, own


def _edges(low: float, high: float, bins: int) -> Floats:
    """(bins + 1,) as numpy.histogram draws them; around a single value, 0..1 without any."""
    if np.isnan(low):
        low, high = 0.0, 1.0
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)
