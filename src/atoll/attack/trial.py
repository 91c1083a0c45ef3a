"""What each attack does to a job, without a rule and with one: `atoll attack poison job.toml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.aggregate import Sum
from ..core.errors import ConfigError, ProtocolError, QuorumError
from ..core.message import FitContext
from ..core.rng import Rng
from ..job import Job
from ..learn.algorithm import Algorithm
from ..learn.defend import recommended
from ..learn.exchange import plain_sum
from ..learn.local import measure
from ..learn.robust import Buckets, Gather
from ..learn.rules.coordinate import median
from ..learn.secure import secure_sum
from ..run import Run, simulate
from .poison import Attack, poison


@dataclass(frozen=True)
class Trial:
    """One attack on one way to aggregate. `accuracy`: of the model, or None where training broke down.

    `kept`: its share of the accuracy without attackers. `success`: how often a backdoor's trigger works.
    `epsilon`: what the job promises each `unit`, a client or an example; None for no promise.
    """

    attack: str
    rule: str
    accuracy: float | None
    kept: float
    success: float | None = None
    unit: str | None = None
    epsilon: float | None = None


def ways(job: Job, share: float, clients: int | None = None) -> dict[str, Job]:
    """The job with the plain mean, and with its own rule, or the recommended one for that share of liars.

    A job that hides updates goes through its protections one by one: the plain mean, its secure sum, its
    promise, and all of it with its own rule over buckets, or buckets of two out of `clients` under the
    recommended rule (the median where they are too few for it); each client then adds as much noise as if its
    mate told its own. Raises ConfigError where it needs to know how many clients there are.
    """
    algorithm: Algorithm = job.algorithm
    plain = job.replace(algorithm=replace(algorithm, rule=Sum()))
    if job.privacy is None and job.exchange.shows == "each":
        if isinstance(algorithm.rule, Sum):
            algorithm = replace(algorithm, rule=Gather(recommended(share)), weigh="equal")
        return {"mean": plain, _name(algorithm): job.replace(algorithm=algorithm)}
    made = {"mean": plain.replace(privacy=None, exchange=plain_sum())}
    if job.exchange.shows == "sum":
        made["secure sum"] = plain.replace(privacy=None)
    if job.privacy is not None:
        made["noise"] = plain
    safe = job if isinstance(algorithm.rule, Buckets) else _bucketed(job, share, clients)
    return {**made, f"{_name(safe.algorithm)}, {safe.algorithm.rule.k} buckets": safe}


def _bucketed(job: Job, share: float, clients: int | None) -> Job:
    """The job with its updates summed in twos."""
    if clients is None:
        raise ConfigError("how many buckets there can be follows from the number of clients: give clients")
    liars, k = max(1, round(share * clients)), max(1, clients // 2)
    rule = recommended(liars) if k >= 2 * liars + 3 else median()
    algorithm = replace(job.algorithm, rule=Buckets(k, rule), weigh="equal")
    if job.privacy is None:
        return job.replace(algorithm=algorithm, exchange=secure_sum())
    exchange = secure_sum(largest=getattr(job.exchange, "largest", 16.0), colluders=1)
    claim = job.privacy
    return job.replace(algorithm=algorithm, privacy=None, exchange=plain_sum()).private(
        epsilon=claim.epsilon, delta=claim.delta, clip=claim.clip, unit=claim.unit,
        population=claim.population, rate=claim.rate, adapt=claim.adapt, exchange=exchange,
    )  # fmt: skip


def _name(algorithm: Algorithm) -> str:
    return str(getattr(algorithm.rule, "rule", algorithm.rule))


def attackers(clients: int, share: float, seed: int = 0) -> tuple[int, ...]:
    """Which clients lie: a share (0, 0.5) of them, at least one, drawn by the seed."""
    if not 0 < share < 0.5:
        raise ConfigError(f"the share of attackers is above 0 and below 0.5, got {share}")
    drawn = Rng.of(seed).at("attackers").generator().permutation(clients)
    return tuple(sorted(int(c) for c in drawn[: max(1, round(share * clients))]))


def trials(
    jobs: Mapping[str, Job],
    data: Any,
    attacks: Sequence[Attack],
    liars: Sequence[int],
    seed: int = 0,
    clean: float | None = None,
) -> Iterator[Trial]:
    """Each job without attackers, then under each attack; one after the other, as they come in.

    What an attack leaves is held against `clean`, by default the first job's accuracy while everybody is
    honest, so that the price of a rule counts as well. Raises ConfigError where no accuracy is measured.
    """
    for name, job in jobs.items():
        accuracy = _accuracy(_run(job, data, seed))
        if not accuracy:
            raise ConfigError(
                f"without attackers, the job with {name} gives no accuracy to hold others against"
            )
        clean = clean or accuracy
        yield Trial("none", name, accuracy, accuracy / clean, None, *_promise(job))
    for attack in attacks:
        for name, job in jobs.items():
            run = _run(poison(job, liars, attack), data, seed)
            accuracy = _accuracy(run)
            kept, success = (accuracy or 0.0) / (clean or 1.0), _success(run, data, attack)
            yield Trial(attack.name, name, accuracy, kept, success, *_promise(job))


def _promise(job: Job) -> tuple[str, float] | tuple[None, None]:
    return (None, None) if job.privacy is None else (job.privacy.unit, job.epsilon().epsilon)


def _run(job: Job, data: Any, seed: int) -> Run | None:
    """The finished run, None where training broke down."""
    central = getattr(data, "test", None) is not None
    try:
        return simulate(job.replace(every=job.rounds, stop=None, sites=not central), data, seed)
    except (ProtocolError, QuorumError):
        return None


def _accuracy(run: Run | None) -> float | None:
    return None if run is None else run.metrics.get("accuracy")


def _success(run: Run | None, data: Any, attack: Attack) -> float | None:
    """How often the trigger works, where there is one and rows to try it on."""
    test = getattr(data, "test", None)
    if run is None or attack.trigger is None or test is None:
        return None
    ctx = FitContext(Rng.of(run.seed).at("test"), client=-1)
    found = measure(run.learner, run.params, attack.trigger(test), ctx)
    return float(found["accuracy"].value)
