"""Is the promise of privacy kept? A canary's presence is guessed from a round's noisy sum, many times over.

Nasr, Songi, Thakurta, Papernot, Carlini 2021, "Adversary instantiation: lower bounds for differentially
private machine learning": the canary is an update of exactly the clip's length against everybody else's, the
guess a threshold on the sum's projection, and its error rates have Clopper-Pearson bounds. Nasr, Hayes,
Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis 2023, "Tight auditing of differentially private machine
learning", §4: of all Gaussian noises, those that make errors so rare add at most a certain sigma,

    rate q     1 - FNR <= (1 - q) FPR + q Φ(Φ⁻¹(FPR) + 1 / sigma)

and the ε of that sigma over all rounds is a lower bound that comes near the truth. What enters the sum is
linear in the canary, so that a small vector through the job's own clip, noise and exchange is as good as its
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext
from ..core.rng import Rng
from ..core.transform import Context, chain
from ..core.update import Update
from ..data.examples import Examples
from ..job import Job
from ..learn.algorithm import Algorithm
from ..learn.dense import softmax
from ..privacy import accountant, dp
from ..privacy.claim import Claim
from ..privacy.graph import threshold
from .watch import released

WIDTH = 8  # numbers in a canary
LONG = 1000.0  # clips: what is clipped away shows
NORMAL = NormalDist()
SURE = 1 - 1e-12  # of a guess


@dataclass(frozen=True)
class Audit:
    """What was found: with `confidence`, the run's ε is at least `epsilon`, if its noise is Gaussian, and
    that of one round at least `once`, whatever it is. `claim`: the ε that is promised.

    `false_alarms`, `misses`: of `runs` guesses without the canary, and as many with it.
    """

    claim: float
    epsilon: float
    once: float
    false_alarms: int
    misses: int
    runs: int
    confidence: float

    @property
    def kept(self) -> bool:
        """Whether nothing contradicts the promise."""
        return self.epsilon <= self.claim


def audit(job: Job, runs: int = 500, confidence: float = 0.95, seed: int = 0) -> Audit:
    """Attack the job's promise of privacy, in `runs` rounds without a canary and as many with it.

    A promise that is true is found broken once in 1 / (1 - confidence) audits, at most. Raises ConfigError
    for a job that promises nothing, too few runs or another confidence.
    """
    claim = job.privacy
    if claim is None:
        raise ConfigError("there is no promise to audit: job.private(epsilon=..., delta=..., clip=...)")
    if runs < 1 or not 0 < confidence < 1:
        raise ConfigError(f"an audit takes runs >= 1 and a confidence in (0, 1), got {runs}, {confidence}")
    score = (_rows if claim.unit == "example" else _clients)(job, claim)
    key = Rng.of(seed).at("audit")
    without = np.array([score(0, key.at("without", i)) for i in range(runs)])
    present = np.array([score(1, key.at("with", i)) for i in range(runs)])
    alarms, misses = int((without > 0.5).sum()), int((present <= 0.5).sum())
    fpr, fnr = (most(n, runs, (1 - confidence) / 2) for n in (alarms, misses))
    found = _whole(job, claim, distance(fpr, fnr, claim.rate or 1.0))
    return Audit(claim.epsilon, found, lowest(fpr, fnr, claim.delta), alarms, misses, runs, confidence)


def most(errors: int, runs: int, beyond: float) -> float:
    """Clopper and Pearson 1934: the largest rate at which so few errors still have the chance `beyond`."""
    if errors >= runs:
        return 1.0
    low, high = errors / runs, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if binomial(runs, middle)[: errors + 1].sum() > beyond else (low, middle)
    return high


def binomial(n: int, p: float) -> NDArray[np.float64]:
    """P[Binomial(n, p) = 0, 1 ... n], 0 < p < 1."""
    k = np.arange(n + 1)
    return np.asarray(np.exp(_ways(n) + k * log(p) + (n - k) * log1p(-p)))


@lru_cache(maxsize=8)
def _ways(n: int) -> NDArray[np.float64]:
    """log (n choose 0, 1 ... n)."""
    logs = np.array([lgamma(i + 1) for i in range(n + 1)])
    return np.asarray(logs[-1] - logs - logs[::-1])


def distance(fpr: float, fnr: float, rate: float = 1.0, times: int = 1) -> float:
    """The least 1 / sigma that allows guesses as good as these error rates, by the sum of so many rounds with
    the canary in each at this `rate`; 0 for any noise at all.
    """
    if not (0 < fpr < 1 and 1 - fnr > fpr):
        return 0.0
    base = NORMAL.inv_cdf(fpr)
    if rate == 1:
        return (NORMAL.inv_cdf(min(1 - fnr, SURE)) - base) / sqrt(times)
    chances = binomial(times, rate)
    often = np.flatnonzero(chances > 1e-15)
    never = float(chances[0])
    wanted = min(1 - fnr, never * fpr + (1 - never) * SURE)
    low, high = 0.0, 1.0
    while _hit(base, high, times, often, chances) < wanted:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _hit(base, middle, times, often, chances) < wanted else (low, middle)
    return low


def _hit(base: float, near: float, times: int, often: NDArray[Any], chances: NDArray[Any]) -> float:
    """How often a guess is right that the canary is there: n times in `times` rounds, with these chances."""
    return float(sum(chances[n] * NORMAL.cdf(base + n * near / sqrt(times)) for n in often))


def lowest(fpr: float, fnr: float, delta: float) -> float:
    """The least ε of any mechanism that makes so few errors (Kairouz, Oh, Viswanath 2015)."""
    odds = [(1 - miss - delta) / alarm for alarm, miss in ((fpr, fnr), (fnr, fpr)) if alarm > 0]
    return max([0.0, *(log(o) for o in odds if o > 0)])


def _whole(job: Job, claim: Claim, near: float) -> float:
    """The ε of all rounds whose noise leaves a canary so far off, in deviations."""
    if near <= 0:
        return 0.0
    return accountant.epsilon([replace(claim.release(job.cohort, job.rounds), sigma=1 / near)], claim.delta)


# -- the guesses: a number that is about 0 without the canary, and 1 with it -------------------


def _clients(job: Job, claim: Claim) -> Callable[[int, Rng], float]:
    """Whole clients: everybody points one way, the canary against them, all far beyond the clip.

    Of a secure sum so many are lost that the noise of the others only just suffices; the canary without
    anything to say sends zeros, for its noise is there either way.
    """
    algorithm, summed = bare(job.trained), job.exchange.shows == "sum"
    members = max(4, getattr(job.exchange, "least", 2)) if summed else 0
    others = threshold(members) - 1 if summed else 2
    way = Update.of({"w": np.full(WIDTH, WIDTH**-0.5)})
    there, against = Contribution(way.scale(LONG * claim.clip)), Contribution(way.scale(-LONG * claim.clip))
    nothing = Contribution(way.zeros())
    population = claim.population or others + 1
    over = share(algorithm, way, population)

    def score(present: int, key: Rng) -> float:
        made = dict.fromkeys(range(others), there)
        if present or summed:
            made[others] = against if present else nothing
        seen = released(algorithm, made, key, population=population, members=members)
        return others - float(seen.buffer @ way.buffer) / (over * claim.clip)

    return score


def _rows(job: Job, claim: Claim) -> Callable[[int, Rng], float]:
    """Single rows: one far out, at one site, which the round's coins may draw."""
    algorithm, members = bare(job.trained), max(4, getattr(job.exchange, "least", 2))
    wrap: Any = job.trained.wrap
    learner = wrap(softmax(features=WIDTH // 2 - 1, outputs=2))
    params = learner.init(Rng.of(0).generator())
    row = Examples(np.full((1, WIDTH // 2 - 1), LONG * max(1.0, claim.clip)), [0])
    way: Update = learner.learner.clipped(params, row, 1.0)
    over = share(algorithm, way, 1)
    sites = threshold(members) if job.exchange.shows == "sum" else 2

    def score(present: int, key: Rng) -> float:
        datas = [row if present and site == 0 else row[:0] for site in range(sites)]
        ctxs = [FitContext(key.at("rows", site), client=site) for site in range(sites)]
        made = dict(enumerate(learner.fit_many(params, datas, ctxs)))
        seen = released(algorithm, made, key, population=sites, members=members)
        return float(seen.buffer @ way.buffer) / (over * claim.clip)

    return score


def bare(algorithm: Algorithm) -> Algorithm:
    """Only what an update meets from its clip to the noisy mean: the rest sees no more than that."""
    steps = (
        s
        for s in algorithm.chain.steps
        if s.averages or s.sets_bound is not None or isinstance(s, dp.Gaussian)
    )
    return replace(algorithm, chain=chain(*steps))


def share(algorithm: Algorithm, like: Update, population: int) -> float:
    """What the mean makes of 1."""
    step = next(s for s in algorithm.chain.steps if s.averages)
    ctx = Context(Rng.of(0), weight=population, count=population, population=population)
    ones = like.map(lambda buffer: np.ones(len(buffer)))
    return float(step.back(ones, None, ctx)[0].buffer[0])


__all__ = ["Audit", "audit", "bare", "binomial", "distance", "lowest", "most", "share"]
