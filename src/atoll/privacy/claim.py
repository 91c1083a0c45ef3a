"""What a job promises about privacy, and what keeps the promise: solved once, written into the job.

    claim = solved(Claim(epsilon=2.0, delta=1e-5, clip=1.0, sigma=1.0), cohort, rounds=60)
    claim.sigma                 the noise multiplier that the promise needs

The neighbours of `unit` "client" are two federations, one of which has one client more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil, isfinite
from typing import Any, Literal

from ..core.errors import ConfigError, PrivacyError
from .accountant import Placement, Plan, Release, Sampling, cost, plan

TOLERANCE = 1e-3  # of ε: two machines' arithmetic


@dataclass(frozen=True, slots=True)
class Claim:
    """(epsilon, delta) for each `unit`, over the whole run: updates are clipped to `clip`, and `sigma` times
    that much Gaussian noise is added to each round's sum. `population`: clients it was solved for, where
    that matters. `noise`: who adds it: the coordinator ("central"), or the clients under a secure sum
    ("distributed").

    Raises ConfigError for values that mean nothing.
    """

    epsilon: float
    delta: float
    clip: float
    sigma: float
    unit: Literal["client"] = "client"
    population: int | None = None
    noise: Placement = "central"

    def __post_init__(self) -> None:
        if self.noise not in ("central", "distributed"):
            raise ConfigError(f'noise is "central" or "distributed", got {self.noise!r}', "$.privacy.noise")
        if self.unit != "client":
            raise ConfigError(
                f'unit is "client": whole clients are hidden, got {self.unit!r}', "$.privacy.unit"
            )
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

    def values(self) -> dict[str, Any]:
        """Its values, as a job file's table has them."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def release(self, cohort: Any, rounds: int) -> Release:
        """All of a run's sums. Raises ConfigError for a cohort that nobody can account."""
        rate, sampling = drawn(cohort, self.population)
        return Release(self.sigma, rate, rounds, sampling, self.population, self.noise)

    def holds(self, clients: int, cohort: Any) -> None:
        """Raise PrivacyError where so few clients, or another number of them, were not reckoned with."""
        if self.delta >= 1 / clients:
            raise PrivacyError(
                f"delta {self.delta:g} is not below 1/{clients}: it would allow one client's data to be"
                " published whole; lower it"
            )
        if drawn(cohort, self.population)[1] == "fixed" and clients != self.population:
            raise PrivacyError(
                f"the promise was solved for samples of {self.population} clients, and there are {clients}:"
                f" give population = {clients}, or use poisson(rate)"
            )

    def cost(self, cohort: Any, rounds: int) -> Plan:
        """What the run costs, as the accountant has it."""
        return cost(self.release(cohort, rounds), self.delta)

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
    rate, sampling = drawn(cohort, claim.population)
    made = plan(
        epsilon=claim.epsilon,
        delta=claim.delta,
        rate=rate,
        rounds=rounds,
        sampling=sampling,
        population=claim.population,
        noise=claim.noise,
    )
    return replace(claim, sigma=ceil(made.release.sigma * 1e4) / 1e4)
