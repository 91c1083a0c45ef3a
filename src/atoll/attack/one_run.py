"""Is the promise of privacy kept by a whole run? Many canaries, each in it by a coin, and one run.

Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", thm 5.2: of m canaries each is in
by a fair coin, r guesses are made and the rest abstains. Whatever the mechanism, if it is (ε, δ)-private

    P[right >= v] <= P[W >= v] + 2 m δ max_i P[v > W >= v - i] / i,     W ~ Binomial(r, e^ε / (1 + e^ε))

and the ε at which that reaches the error one accepts is a lower bound of the run's. r is settled before the
run: a tenth of the canaries, or as many as would contradict the promise if all were right, where so many are.

What that bound gives away for knowing nothing of the mechanism is much. A second one takes the noise to be
Gaussian, as audit.py does, with a guess for each canary: of all rounds together, not of one.

The job runs as it is, by simulate(): its cohorts, rounds, exchange and noise, with a model that has a weight
for every canary, and for data a row far out along it. What a server's optimiser makes of the noisy means is
left out, for it sees no more than they say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import ceil, exp, log, log1p
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError
from ..core.message import FitContext, fit_many
from ..core.rng import Rng
from ..core.transform import chain
from ..core.update import Update
from ..data.examples import Examples
from ..job import Job
from ..learn.dense import linear
from ..privacy import accountant
from ..privacy.claim import Claim
from ..privacy.graph import threshold
from ..run import simulate
from .audit import bare, binomial, distance, most, share
from .watch import released

Array: TypeAlias = NDArray[Any]
FAR, TARGET = 10.0, 1e3  # of a row, and in clips: far beyond every clip, wherever the weights are
CROWD, HIDDEN = 1000, 100  # canaries in one run, and in one of secure sums; more take more runs

LITTLE = 4  # times less noise than promised: whatever is less breaks it as well, and takes long to account


@dataclass(frozen=True)
class OneRun:
    """What was found: with `confidence`, the run's ε is at least `epsilon`, if its noise is Gaussian, and at
    least `proven`, whatever it is. `claim`: the ε that is promised.

    `right`: of `guesses` about `canaries`, the others abstain. `false_alarms`, `misses`: of a guess for each
    of those that were `out`, and in.
    """

    claim: float
    epsilon: float
    proven: float
    canaries: int
    guesses: int
    right: int
    out: int
    false_alarms: int
    misses: int
    confidence: float

    @property
    def kept(self) -> bool:
        """Whether nothing contradicts the promise."""
        return max(self.epsilon, self.proven) <= self.claim


def one_run(job: Job, canaries: int = CROWD, confidence: float = 0.95, seed: int = 0) -> OneRun:
    """Attack the job's promise of privacy with so many canaries: as one run, where it takes a thousand of
    them, or a hundred under secure sums of clients, and as several that hold them apart beyond that.

    A promise that is true is found broken once in 1 / (1 - confidence) audits, at most. Raises ConfigError
    for a job that promises nothing, noise of each client's own, too few canaries or another confidence.
    """
    claim = job.privacy
    if claim is None:
        raise ConfigError("there is no promise to audit: job.private(epsilon=..., delta=..., clip=...)")
    if claim.noise == "local":
        raise ConfigError("noise of each client's own is seen one by one: use audit, of one canary each time")
    if canaries < 2 or not 0 < confidence < 1:
        text = f"an audit takes canaries >= 2 and a confidence in (0, 1), got {canaries}, {confidence}"
        raise ConfigError(text)
    key = Rng.of(seed).at("one run")
    size = _crowd(job, claim, canaries)
    runs = [_scores(job, claim, size, key.at(i)) for i in range(ceil(canaries / size))]
    scores, there = (np.concatenate(part) for part in zip(*runs, strict=True))
    beyond = (1 - confidence) / 2  # of either bound
    m, inside = len(scores), int(there.sum())
    r = enough(m, claim.epsilon, beyond)
    right = hits(scores, there, r)
    alarms, misses = int((~there & (scores > 0.5)).sum()), int((there & (scores <= 0.5)).sum())
    fpr, fnr = most(alarms, m - inside, beyond / 2), most(misses, inside, beyond / 2)
    found, proven = _gaussian(job, claim, fpr, fnr), at_least(m, r, right, claim.delta, beyond)
    return OneRun(claim.epsilon, found, proven, m, r, right, m - inside, alarms, misses, confidence)


def chance(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The most that v or more right of r guesses about m canaries can be likely, of an (ε, δ) mechanism."""
    below = binomial(r, 1 / (1 + exp(-epsilon)))[:v]  # P[W = 0 … v - 1]
    steps = np.cumsum(below[::-1]) / np.arange(1, v + 1)
    return min(1.0, 1 - float(below.sum()) + 2 * m * delta * float(steps.max(initial=0.0)))


def at_least(m: int, r: int, v: int, delta: float, beyond: float) -> float:
    """The ε below which v right guesses have no more than the chance `beyond`; 0 where there is none."""
    low, high = 0.0, 1.0
    while chance(m, r, v, high, delta) < beyond:
        high += 1
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if chance(m, r, v, middle, delta) < beyond else (low, middle)
    return low


def enough(m: int, epsilon: float, beyond: float) -> int:
    """How many guesses are made: if all are right, a promise of ε is broken, where m canaries can do that."""
    needed = ceil(log(beyond / 2) / -log1p(exp(-epsilon)))  # half of it for δ
    return max(2, ceil(m / 10), needed if needed <= m else 0)


def hits(scores: Array, there: Array, r: int) -> int:
    """How many are right of r guesses: in for the highest scores, out for the lowest."""
    order = np.argsort(scores, kind="stable")
    low, high = order[: r // 2], order[len(order) - (r - r // 2) :]
    return int((~there[low]).sum() + there[high].sum())


def _gaussian(job: Job, claim: Claim, fpr: float, fnr: float) -> float:
    """The ε of all rounds whose noise allows no fewer errors than these; a quarter of it at the least."""
    release = claim.release(job.cohort, job.rounds)
    rate = claim.rate or (1.0 if job.exchange.shows == "sum" else release.rate)
    near = distance(fpr, fnr, rate, job.rounds)
    if near <= 0:
        return 0.0
    return accountant.epsilon([replace(release, sigma=max(1 / near, release.sigma / LITTLE))], claim.delta)


def _crowd(job: Job, claim: Claim, canaries: int) -> int:
    """How many canaries are in a run: never so many that δ would allow one to be published."""
    if claim.unit == "client" and claim.release(job.cohort, 1).sampling == "fixed":
        return claim.population or canaries
    most = HIDDEN if claim.unit == "client" and job.exchange.shows == "sum" else CROWD
    return max(2, min(canaries, most, ceil(1 / claim.delta) - 1))


def _scores(job: Job, claim: Claim, size: int, key: Rng) -> tuple[Array, NDArray[np.bool_]]:
    """One run: a number for each canary, about 0 without it and 1 with it, and which there were."""
    there = key.at("coins").generator().random(size) < 0.5
    rows = Examples(FAR * np.eye(size), np.full(size, TARGET * max(1.0, claim.clip)))
    if claim.unit == "example":
        sites = max(2, getattr(job.exchange, "least", 2))
        data = [rows[i::sites][there[i::sites]] for i in range(sites)]
    else:
        data = [rows[i : i + there[i]] for i in range(size)]
    hidden = claim.unit == "client" and job.exchange.shows == "sum"
    return (_sums if hidden else _models)(job, claim, data, key.at("run")), there


def _models(job: Job, claim: Claim, data: Sequence[Examples], key: Rng) -> Array:
    """What a run's model says of each canary."""
    means = chain(*(step for step in job.algorithm.chain.steps if step.averages))
    size = data[0].x.shape[1]
    plain = job.replace(
        learner=linear(size, 1, dtype="float64"),
        algorithm=replace(job.algorithm, chain=means),
        every=job.rounds,
        stop=None,
    )
    run = simulate(plain, data, int(key.generator().integers(2**31)))
    people = (claim.population or 1) if claim.unit == "example" else size
    return _weights(run.params, size) * people / (job.rounds * claim.clip)


def _sums(job: Job, claim: Claim, data: Sequence[Examples], key: Rng) -> Array:
    """What all rounds' sums say of each canary, where they are secure: masks of a thousand would take hours,
    and a sum is free of them. So many clients more were lost that the noise of these only just suffices.
    """
    algorithm, size = bare(job.trained), len(data)
    learner: Any = linear(size, 1, dtype="float64")
    learner = algorithm.wrap(learner) if algorithm.wrap else learner
    params = Update.of(learner.init(key.generator()))
    made = dict(
        enumerate(fit_many(learner, params, data, [FitContext(key.at(i), client=i) for i in range(size)]))
    )
    members = next(n for n in count(size) if threshold(n) >= size)
    steps = (
        released(algorithm, made, key.at("round", t), population=size, members=members)
        for t in range(job.rounds)
    )
    total = sum(_weights(step, size) for step in steps)
    return np.asarray(total / (job.rounds * claim.clip * share(algorithm, params, size)))


def _weights(params: Mapping[str, Any], size: int) -> Array:
    return np.asarray(next(leaf for leaf in params.values() if leaf.size == size), np.float64).ravel()


__all__ = ["OneRun", "at_least", "chance", "enough", "hits", "one_run"]
