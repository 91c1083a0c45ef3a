"""How much privacy a sequence of noisy sums costs, and which noise, sampling or length a budget allows.

    epsilon([Release(sigma=1.1, rate=0.01, times=1000)], delta=1e-5)      what it costs
    plan(epsilon=2.0, delta=1e-5, rate=0.1, rounds=60)                     the sigma that a budget needs

A release is a sum to which Gaussian noise is added, `sigma` times the most that one member can change it.
Where everybody takes part the cost is exact (Balle, Wang 2018). For Poisson sampling it is dp-accounting's
by privacy loss distributions, a tight upper bound (Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022,
"Connect the dots: tighter discrete approximations of privacy loss distributions"); for samples of a fixed
size without replacement by Rényi divergences (Wang, Balle, Kasiviswanathan 2019, "Subsampled Rényi
differential privacy and analytical moments accountant"). Noise of whole numbers that clients add is
accounted by its published bound (discrete.py), through Rényi divergences, and without any amplification:
members see who takes part. Noise of each client's own is that of a sum of one, which the coordinator sees.

Neighbours differ in one member who is there or not. A sample of fixed size has neighbours in which one is
replaced: that changes a sum by twice as much, and is accounted so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp, expm1, floor, isfinite, sqrt
from typing import Any, Literal, TypeAlias

from ..core.errors import ConfigError
from .discrete import BLUR

Sampling: TypeAlias = Literal["all", "poisson", "fixed"]
Placement: TypeAlias = Literal["central", "distributed", "local"]
CLOSE = 1e-4  # relative: how near a solved value is to the one that would use the budget up
_ORDERS = (*range(2, 64), 96, 128, 192, 256, 512)  # whole ones are quick
_LEAST, _MOST = 0.05, 1e4  # of a sigma that is solved for


@dataclass(frozen=True, slots=True)
class Release:
    """A noisy sum over members, `times` times. `noise`: a server's, of whole numbers by the clients under
    their masks, or each client's own.

    `sigma`: the noise's standard deviation over the sum's sensitivity. `sampling`: who is in it: "all";
    "poisson", each member by a coin of its own with probability `rate`; "fixed", a sample of
    `rate * population` of them without replacement. Amplification by sampling holds only for who cannot
    see who was drawn.

    Raises ConfigError for values that mean nothing.
    """

    sigma: float
    rate: float = 1.0
    times: int = 1
    sampling: Sampling = "poisson"
    population: int | None = None
    noise: Placement = "central"

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and isfinite(self.sigma)):
            raise ConfigError(f"sigma is a noise multiplier above 0, got {self.sigma}")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"a sampling rate is above 0 and at most 1, got {self.rate}")
        if self.times < 1:
            raise ConfigError(f"a release happens at least once, got {self.times}")
        if self.sampling == "all" and self.rate != 1:
            raise ConfigError(f"where all take part the rate is 1, got {self.rate}")
        if self.sampling == "fixed" and self.rate < 1 and not self.population:
            raise ConfigError("a sample of a fixed size is accounted with the population it is drawn from")

    def __str__(self) -> str:
        drawn = {
            "all": "of all",
            "poisson": f"of each with probability {self.rate:g}" if self.rate < 1 else "of all",
            "fixed": f"of a fixed {self.rate:g} of {self.population} (of whom one may be another)",
        }[self.sampling]
        kind = {
            "central": "Gaussian noise",
            "distributed": "discrete Gaussian noise by the clients,",
            "local": "Gaussian noise by each client,",
        }[self.noise]
        return f"{self.times} x a sum {drawn}, {kind} of {self.sigma:g} sensitivities"


def epsilon(releases: Sequence[Release], delta: float) -> float:
    """The ε of all these releases together at `delta`; 0 for none. Raises ConfigError for another δ."""
    _check_delta(delta)
    if not releases:
        return 0.0
    if all(r.rate == 1 and r.noise != "distributed" for r in releases):
        return _gaussian_epsilon(_together(releases), delta)
    return float(_accountant(releases).get_epsilon(delta))


def delta(releases: Sequence[Release], epsilon: float) -> float:
    """The δ of all these releases together at `epsilon` >= 0."""
    if not epsilon >= 0:
        raise ConfigError(f"epsilon is at least 0, got {epsilon}")
    if not releases:
        return 0.0
    if all(r.rate == 1 and r.noise != "distributed" for r in releases):
        return _gaussian_delta(_together(releases), epsilon)
    return float(_accountant(releases).get_delta(epsilon))


def curve(release: Release, orders: Sequence[float]) -> tuple[float, ...]:
    """The Rényi divergences of a release at these orders, each above 1; infinite where that is all one knows.

    Its neighbours are those of the release (`replaced`).
    """
    if release.rate == 1:
        rho = release.times * (1 / release.sigma**2 + (BLUR if release.noise == "distributed" else 0)) / 2
        return tuple(a * rho for a in orders)
    d = _library()
    relation = d.NeighboringRelation
    made = d.rdp.RdpAccountant(
        orders=list(orders),
        neighboring_relation=relation.REPLACE_ONE if replaced(release) else relation.ADD_OR_REMOVE_ONE,
    )
    made.compose(_event(d, release, replaced=replaced(release)), release.times)
    return tuple(map(float, made.rdp))


def replaced(release: Release) -> bool:
    """Whether its neighbours differ in one member that is another one, and not in one more."""
    return release.sampling == "fixed" and release.rate < 1


def _together(releases: Sequence[Release]) -> float:
    """The sigma of the one sum of everybody that tells as much as all of these."""
    return 1 / sqrt(sum(r.times / r.sigma**2 for r in releases))


def _gaussian_delta(sigma: float, epsilon: float) -> float:
    """Balle, Wang 2018, "Improving the Gaussian mechanism for differential privacy", thm 8: exact."""
    _library()
    from scipy.special import log_ndtr

    above = log_ndtr(0.5 / sigma - epsilon * sigma)
    below = epsilon + log_ndtr(-0.5 / sigma - epsilon * sigma)
    return float(-expm1(below - above) * exp(above))


def _gaussian_epsilon(sigma: float, delta: float) -> float:
    """Its inverse, rounded up."""
    low, high = 0.0, 1.0
    while _gaussian_delta(sigma, high) > delta:
        low, high = high, 2 * high
    if low == 0 and _gaussian_delta(sigma, 0) <= delta:
        return 0.0
    while high - low > CLOSE / 100 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(sigma, middle) > delta else (low, middle)
    return high


def advantage(epsilon: float, delta: float) -> float:
    """The most by which anybody can tell a member's presence better than a coin, 0 to 1.

    Humphries et al. 2023, "Investigating membership inference attacks under data dependencies", thm 1.
    """
    if epsilon > 700:
        return 1.0
    return min(1.0, (exp(epsilon) - 1 + 2 * delta) / (exp(epsilon) + 1))


def _check_delta(value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"delta is a probability above 0 and below 1, got {value}")


def _accountant(releases: Sequence[Release]) -> Any:
    """dp-accounting's, fed with these releases."""
    d = _library()
    fixed = any(map(replaced, releases))
    if all(r.noise == "distributed" for r in releases):
        made = d.rdp.RdpAccountant()
    elif fixed:
        made = d.rdp.RdpAccountant(neighboring_relation=d.NeighboringRelation.REPLACE_ONE)
    else:
        made = d.pld.PLDAccountant()
    for r in releases:
        made.compose(_event(d, r, replaced=fixed), r.times)
    return made


def _event(d: Any, r: Release, *, replaced: bool) -> Any:
    sigma = r.sigma / 2 if replaced else r.sigma
    if r.noise == "distributed":
        return d.GaussianDpEvent(1 / sqrt(1 / sigma**2 + BLUR))  # of the same concentrated privacy
    noise = d.GaussianDpEvent(sigma)
    if r.rate == 1:
        return noise
    if r.sampling == "fixed":
        size = round(r.rate * (r.population or 0))
        return d.SampledWithoutReplacementDpEvent(r.population, max(1, size), noise)
    if replaced:
        raise ConfigError("Poisson samples and samples of a fixed size are not accounted together")
    return d.PoissonSampledDpEvent(r.rate, noise)


def _library() -> Any:
    try:
        import dp_accounting
        from dp_accounting import pld, rdp  # noqa: F401  submodules that are used
    except ImportError:
        raise ConfigError("privacy is accounted by dp-accounting: pip install 'atoll-fl[private]'") from None
    return dp_accounting


@dataclass(frozen=True, slots=True)
class Plan:
    """A composition and its cost. `epsilon`: towards who sees the models, not who was drawn; `known`: towards
    who also knows who took part, for whom sampling hides nobody. Where clients add the noise both are the
    same: nobody sees a sum without it.
    """

    release: Release
    delta: float
    epsilon: float
    known: float

    def __str__(self) -> str:
        if self.release.noise != "central":
            return f"{self.release}\nepsilon {self.epsilon:.4g} at delta {self.delta:g} towards everybody"
        if self.release.rate < 1 and self.known == self.epsilon:
            return (
                f"{self.release}\n"
                f"epsilon {self.epsilon:.4g} at delta {self.delta:g} towards whoever sees the models and does"
                " not know who was drawn"
            )
        return (
            f"{self.release}\n"
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} towards whoever sees the models\n"
            f"epsilon {self.known:.4g} towards the coordinator, which knows who took part"
        )


@lru_cache(64)
def cost(release: Release, delta: float, *, seen: bool = True) -> Plan:
    """What a release costs towards both, of the same neighbours (`replaced`). `seen`: whether the coordinator
    knows who was drawn; of rows only their site does.
    """
    known = Release(release.sigma / (2 if replaced(release) else 1), 1.0, release.times, "all")
    total = epsilon([release], delta)
    same = release.rate == 1 or release.noise != "central" or not seen
    most = total if same else epsilon([known], delta)
    return Plan(release, delta, min(total, most), most)  # who knows less is told no more; bounds are loose


def plan(
    *,
    delta: float,
    epsilon: float | None = None,
    sigma: float | None = None,
    rate: float | None = None,
    rounds: int | None = None,
    sampling: Sampling = "poisson",
    population: int | None = None,
    noise: Placement = "central",
) -> Plan:
    """The composition in which one of epsilon, sigma, rate and rounds was left out: that one is solved for.

    A solved sigma is the least, a solved rate or number of rounds the most, whose ε is not above `epsilon`;
    solved to 1e-4 and always on the safe side.

    Raises ConfigError where not exactly one is missing, or where no value would do.
    """
    given = {"epsilon": epsilon, "sigma": sigma, "rate": rate, "rounds": rounds}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        raise ConfigError(
            "give three of epsilon, sigma, rate and rounds, and the fourth is solved for;"
            f" missing: {', '.join(missing) or 'none'}"
        )
    _check_delta(delta)
    if epsilon is None:
        drawn = _drawn(sampling, rate)
        return cost(Release(sigma or 0, rate or 0, rounds or 0, drawn, population, noise), delta)
    if not (epsilon > 0 and isfinite(epsilon)):
        raise ConfigError(f"epsilon is above 0, got {epsilon}")

    def made(sigma_: float, rate_: float, times_: int) -> Release:
        return Release(sigma_, rate_, times_, _drawn(sampling, rate_), population, noise)

    if sigma is None:
        q, t = rate or 0, rounds or 0
        found = _boundary(lambda x: made(1 / x, q, t), epsilon, delta, 1 / _MOST, 1 / _LEAST)
        if found is None:
            raise ConfigError(f"no noise gives epsilon {epsilon:g} at delta {delta:g}: raise one of them")
        return cost(made(1 / found, q, t), delta)
    if rate is None:
        t, least = rounds or 0, 1 / population if population else 1e-6
        found = _boundary(lambda x: made(sigma, x, t), epsilon, delta, least, 1.0)
        if found is None:
            raise ConfigError(f"sigma {sigma:g} spends more than epsilon {epsilon:g} at any rate: raise it")
        return cost(made(sigma, found, t), delta)
    q = rate or 0
    found = _boundary(lambda x: made(sigma, q, floor(x)), epsilon, delta, 1.0, 2.0**24)
    if found is None:
        raise ConfigError(f"one release of sigma {sigma:g} spends more than epsilon {epsilon:g}: raise sigma")
    return cost(made(sigma, q, floor(found)), delta)


def _drawn(sampling: Sampling, rate: float | None) -> Sampling:
    return "all" if rate == 1 and sampling == "poisson" else sampling


def _boundary(
    made: Callable[[float], Release], budget: float, delta: float, low: float, high: float
) -> float | None:
    """The most x in [low, high] whose release costs no more than `budget`, to CLOSE; None for none.

    Rényi divergences are quick and cost no less, so their answer is where the search begins.
    """
    quick = _search(lambda x: _quick(made(x), delta) - budget, low, high)
    if quick is None:
        quick = low
    return _search(lambda x: epsilon([made(x)], delta) - budget, quick, high, step=1.25)


def _search(excess: Callable[[float], float], low: float, high: float, step: float = 16.0) -> float | None:
    """Where an increasing function turns positive, from below: steps up, then false position (Illinois)."""
    at = excess(low)
    if at > 0:
        return None
    while low < high:
        far = min(high, low * step)
        above = excess(far)
        if above > 0:
            break
        low, at = far, above
    else:
        return low
    last = 0
    while far / low > 1 + CLOSE:
        middle = low * (far / low) ** min(max(at / (at - above), 0.02), 0.98)
        value = excess(middle)
        if value > 0:
            far, above, at, last = middle, value, at / 2 if last > 0 else at, 1
        else:
            low, at, above, last = middle, value, above / 2 if last < 0 else above, -1
        if 0 >= value > -CLOSE:
            break
    return low


def _quick(r: Release, delta: float) -> float:
    """An upper bound of its cost, in a millisecond."""
    d = _library()
    if r.rate == 1 or r.sampling == "fixed" or r.noise == "distributed":
        return epsilon([r], delta)
    made = d.rdp.RdpAccountant(orders=_ORDERS)
    made.compose(_event(d, r, replaced=False), r.times)
    return float(made.get_epsilon(delta))


def warnings(made: Plan, population: int, size: int | None = None) -> list[str]:
    """What a planner should hear before it spends anything; `size`: numbers in the model, if known.

    The noise on the mean has a standard deviation of sigma * clip / (rate * population) in every number:
    its length over the whole model against the clip says how much of a step is noise.
    """
    found = []
    if made.delta >= 1 / population:
        found.append(
            f"delta {made.delta:g} is not below 1/{population}: it would allow one member's data to be"
            " published whole"
        )
    r = made.release
    expected = r.rate * population
    if expected < 1:
        found.append(f"a sample of {r.rate:g} of {population} is empty most of the time")
    if size:
        ratio = r.sigma * sqrt(size) / expected
        if ratio > _LOUD:
            needed = ceil(r.sigma * sqrt(size) / _LOUD / r.rate)
            found.append(
                f"in every step the noise is {ratio:.2g} times as long as the longest update that the clip"
                f" allows; at {_LOUD:g} MNIST's digits lost 12 points, at 20 half of all. About {needed}"
                " members would do, or a smaller model, more sampling, a larger epsilon"
            )
    elif expected / r.sigma < _FEW:
        found.append(
            f"a round's {expected:.3g} members stand against noise of {r.sigma:.3g} of them in every number:"
            " expect a model that is worth little; give more members, or a larger epsilon"
        )
    return found


_LOUD = 6.0  # noise over clip, measured: docs/explanation/privacy.md
_FEW = 15.0  # members over sigma, the same for a model of 8,000 numbers


__all__ = ["Plan", "Release", "advantage", "cost", "curve", "delta", "epsilon", "plan", "warnings"]
