"""What attacks leave of a job whose sums are secret and private; a part of `python -m bench robust`.

Forty clients share the 60,000 images of MNIST, alike (IID) or by Dirichlet(1), as oriented gradients of 7 x 7
pixels, features that use no data; softmax takes sixty steps over all rows. Single rows are hidden at ε <= 8,
δ 1e-5: each row's gradient is clipped, clients add the noise, each as much as if its mates in the bucket told
theirs. A fifth of liars meets buckets of 2, a tenth buckets of 3, with the recommended rule over the buckets'
means; every sum is a real secure sum of its bucket. Liars neither clip nor add noise, know what all honest
clients send, and with whom they are summed. A cell keeps its part of what the same promise reaches with one
secure sum over all, no rule and no liars. Steps, rounds and rule were chosen on seeds 11 to 13.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import atoll as at
from atoll.attack import Attack, attackers, trials
from atoll.data.divide import Partitioner

CLIENTS, ROUNDS = 40, 60
BUCKETS = {2: 0.2, 3: 0.1}  # members of a bucket, and the share of liars it meets
CONTROL = "secure sum"
SHOWN = ("foe",)  # attacks that the control is put to, once


@dataclass(frozen=True)
class Masked:
    """One run, as a cell of robust.py; `bucket`: members of each, 0 for one sum over all."""

    attack: str
    bucket: int
    share: float
    split: str
    seed: int
    unit: str
    epsilon: float
    accuracy: float | None
    kept: float
    success: float | None
    seconds: float


@cache
def images() -> at.Dataset:
    """MNIST as features."""
    return at.oriented_gradients(at.load_data("mnist"), cell=7)


def job(bucket: int) -> at.Job:
    """The one job, with secure sums in buckets of so many, or over all (0)."""
    algorithm = at.fedavgm(lr=200.0, momentum=0.9)
    exchange = at.secure_sum(largest=4096.0)
    if bucket:
        rule = at.recommended(round(BUCKETS[bucket] * CLIENTS))
        algorithm = replace(at.robust(rule, buckets=CLIENTS // bucket), chain=algorithm.chain)
        exchange = replace(exchange, least=bucket, colluders=bucket - 1)
    made = at.Job(at.softmax(), algorithm, rounds=ROUNDS, every=ROUNDS, sites=False, exchange=exchange)
    return made.private(epsilon=8.0, delta=1e-5, clip=0.1, unit="example", rate=1.0, population=60_000)


def cells(
    attacks: Sequence[Attack],
    splits: dict[str, Partitioner],
    seeds: Sequence[int],
    done: Sequence[Masked] = (),
) -> Iterator[Masked]:
    """Every cell that is not done, as it comes in."""
    kept = {(c.bucket, c.split, c.seed, c.attack): c for c in done}
    for seed in seeds:
        for split, by in splits.items():
            clean = kept.get((0, split, seed, "none"))
            for bucket in (0, *BUCKETS):
                wanted = [a for a in attacks if bucket or (a.name in SHOWN and (split, seed) == ("iid", 1))]
                left = [a for a in wanted if (bucket, split, seed, a.name) not in kept]
                if not left and (bucket or clean is not None):
                    continue
                before = None if clean is None else clean.accuracy
                for cell in _group(left, (bucket, split, seed), by, before):
                    clean = clean or cell
                    if (key := (bucket, split, seed, cell.attack)) not in kept:
                        kept[key] = cell
                        yield cell


def _group(
    attacks: Sequence[Attack], where: tuple[int, str, int], by: Partitioner, clean: float | None
) -> Iterator[Masked]:
    bucket, split, seed = where
    share = BUCKETS.get(bucket, 0.2)
    made = job(bucket)
    data = at.partition(images(), clients=CLIENTS, by=by, seed=seed, holdout=0)
    unit, epsilon = "example", round(made.epsilon().epsilon, 4)
    began = time.perf_counter()
    for t in trials({CONTROL: made}, data, attacks, attackers(CLIENTS, share, seed), seed, clean):
        now = time.perf_counter()
        kept, seconds = round(t.kept, 4), round(now - began, 2)
        yield Masked(
            t.attack, bucket, share, split, seed, unit, epsilon, t.accuracy, kept, t.success, seconds
        )
        began = now
