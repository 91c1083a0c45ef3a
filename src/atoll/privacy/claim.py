"""What a job promises about privacy, and what keeps the promise: solved once, written into the job.

    claim = solved(Claim(epsilon=2.0, delta=1e-5, clip=1.0, sigma=1.0), cohort, rounds=60)
    claim.sigma                 the noise multiplier that the promise needs

The neighbours of `unit` "client" are two federations, one of which has one client more; of "example", two of
which one has one row more, at whichever site. Where updates come without rounds, in buffers, they do the same
at the same times, and in one of them one client's updates are zeros.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil, isfinite
from typing import Any, Literal

from ..core.errors import ConfigError, PrivacyError
from .accountant import Placement, Plan, Release, Sampling, cost, plan, replaced

REPLACED = 2.0  # clips: how far two updates of one client can be apart
TOLERANCE = 1e-3  # of ε: two machines' arithmetic


@dataclass(frozen=True, slots=True)
class Claim:
    """(epsilon, delta) for each `unit`, over the whole run: updates are clipped to `clip`, and `sigma` times
    that much Gaussian noise is added to each round's sum. `population`: clients it was solved for, where
    that matters. `noise`: who adds it: the coordinator ("central"), the clients under a secure sum
    ("distributed"), or every client to its own update ("local"), which then counts as replaced by another.
    `rate`: of unit "example", the chance of every row to be in a round; there `population` is the rows of all
    sites together, and rows are clipped. `adapt`: after the first round the clip follows the lengths of
    updates, so that this share of them is shorter (learn/adaptive.py).

    Raises ConfigError for values that mean nothing.
    """

    epsilon: float
    delta: float
    clip: float
    sigma: float
    unit: Literal["client", "example"] = "client"
    population: int | None = None
    noise: Placement = "central"
    rate: float | None = None
    adapt: float | None = None

    def __post_init__(self) -> None:
        if self.noise not in ("central", "distributed", "local"):
            text = f'noise is "central", "distributed" or "local", got {self.noise!r}'
            raise ConfigError(text, "$.privacy.noise")
        if self.unit not in ("client", "example"):
            raise ConfigError(
                f'unit is "client" (whole clients are hidden) or "example" (single rows), got {self.unit!r}',
                "$.privacy.unit",
            )
        self._check_rate()
        self._check_adapt()
        for name in ("epsilon", "clip", "sigma"):
            value = getattr(self, name)
            if not (value > 0 and isfinite(value)):
                raise ConfigError(f"{name} must be above 0, got {value}", f"$.privacy.{name}")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta is above 0 and below 1, got {self.delta}", "$.privacy.delta")
        if self.population is not None and self.delta >= 1 / self.population:
            raise ConfigError(
                f"delta {self.delta:g} is not below 1/{self.population}: it would allow one client's data to"
                " be published whole",
                "$.privacy.delta",
            )

    def _check_rate(self) -> None:
        if self.unit == "client":
            if self.rate is not None:
                raise ConfigError(
                    'rate is the chance of a row, of unit "example": clients are drawn by the cohort, as in'
                    " poisson(rate)",
                    "$.privacy.rate",
                )
        elif self.rate is None or not 0 < self.rate <= 1 or not self.population:
            raise ConfigError(
                'unit "example" needs rate, the chance of every row to be in a round (above 0, at most 1),'
                " and population, the rows of all sites together",
                "$.privacy.rate",
            )

    def _check_adapt(self) -> None:
        if self.adapt is None:
            return
        if self.unit == "example":
            raise ConfigError("adapt is for clips of whole updates, and not of rows", "$.privacy.adapt")
        if not 0 < self.adapt < 1:
            raise ConfigError(
                f"adapt is the share of updates that the clip leaves alone, between 0 and 1: {self.adapt}",
                "$.privacy.adapt",
            )

    def values(self) -> dict[str, Any]:
        """Its values, as a job file's table has them."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def release(self, cohort: Any, rounds: int) -> Release:
        """All of a run's sums. Raises ConfigError for a cohort that nobody can account."""
        if self.rate is not None:
            if drawn(cohort, self.population)[0] != 1:
                raise ConfigError(
                    'rows are drawn from all clients: unit "example" goes with everyone()', "$.cohort"
                )
            return Release(self.sigma, self.rate, rounds, "poisson", None, self.noise)
        if self.noise == "local":  # the coordinator sees whose update it is: sampling hides nobody
            return Release(self.sigma / REPLACED, 1.0, rounds, "all", None, self.noise)
        rate, sampling = drawn(cohort, self.population)
        return Release(self.sigma, rate, rounds, sampling, self.population, self.noise)

    def neighbours(self, cohort: Any) -> str:
        """What two worlds differ in that nobody can tell apart: "client", "example", or one for another."""
        local = self.noise == "local" and self.unit == "client"
        return f"{self.unit} replaced" if local or replaced(self.release(cohort, 1)) else self.unit

    def holds(self, clients: int, rows: int | None, cohort: Any) -> None:
        """Raise PrivacyError where so few clients or rows, or another number of clients, were not reckoned
        with.
        """
        members = clients if self.unit == "client" else rows or self.population or 1
        if self.delta >= 1 / members:
            raise PrivacyError(
                f"delta {self.delta:g} is not below 1/{members}: it would allow one {self.unit}'s data to be"
                " published whole; lower it"
            )
        if self.unit == "example" or clients == self.population:
            return
        if drawn(cohort, self.population)[1] == "fixed":
            raise PrivacyError(
                f"the promise was solved for samples of {self.population} clients, and there are {clients}:"
                f" give population = {clients}, or use poisson(rate)"
            )

    def cost(self, cohort: Any, rounds: int) -> Plan:
        """What the run costs, as the accountant has it."""
        return cost(self.release(cohort, rounds), self.delta, seen=self.unit == "client")

    def check(self, cohort: Any, rounds: int) -> Plan:
        """`cost`, if the claim is true of it. Raises PrivacyError where the noise is too little for it."""
        found = self.cost(cohort, rounds)
        if found.epsilon > self.epsilon * (1 + TOLERANCE):
            raise PrivacyError(
                f"the job claims epsilon {self.epsilon:g}, and its noise of sigma {self.sigma:g} gives"
                f" {found.epsilon:.4g} in {rounds} rounds: leave sigma out, and it is solved for"
            )
        return found


def drawn(cohort: Any, population: int | None) -> tuple[float, Sampling]:
    """The rate and kind of a cohort's sampling. Raises ConfigError for one that has none."""
    if not hasattr(cohort, "drawn"):
        raise ConfigError(
            f"how {type(cohort).__name__} draws clients gives no privacy that could be accounted: use"
            ' poisson(rate), sample(...) without `over` and by="uniform", or everyone()',
            "$.cohort",
        )
    found: tuple[float, Sampling] = cohort.drawn(population)
    return found


def solved(claim: Claim, cohort: Any, rounds: int) -> Claim:
    """The claim with the least sigma that keeps it, to four digits. Raises ConfigError where none does."""
    asked = replace(claim, sigma=1.0).release(cohort, rounds)
    made = plan(
        epsilon=claim.epsilon,
        delta=claim.delta,
        rate=asked.rate,
        rounds=rounds,
        sampling=asked.sampling,
        population=asked.population,
        noise=claim.noise,
    )
    sensitivity = REPLACED if claim.noise == "local" and claim.unit == "client" else 1.0
    return replace(claim, sigma=ceil(made.release.sigma * sensitivity * 1e4) / 1e4)
