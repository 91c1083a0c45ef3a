"""What is seen of one round's updates, and by whom: the material of attacks.

    sent        each update as it left its client     the coordinator, where sums are plain
    summed      their sum                             the coordinator, where the sum is secure
    released    the sum, with noise, as a step        whoever reads the models

All of it is made by the code that runs a job; only the masks are left out, which a sum is free of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.aggregate import Reply, Sum, Total, fold, points
from ..core.edge import Task, contribute
from ..core.message import Contribution
from ..core.rng import Rng
from ..core.transform import Context
from ..core.update import Update
from ..learn.algorithm import Algorithm
from ..learn.integers import share_of
from ..privacy import dp, noise

Made = Mapping[int, Contribution]


def sent(algorithm: Algorithm, made: Made, key: Rng) -> dict[int, Reply]:
    """Each client's reply, after its side of the chain; they weigh the same where the job says so."""
    pairs = [
        (c, replace_weight(m, float(m.weight > 0)) if algorithm.weigh == "equal" else m)
        for c, m in made.items()
    ]
    like = pairs[0][1].update
    task = Task(0, key, tuple(made), (-1,) * len(made), like.zeros(), cohort=tuple(made))
    answer, _ = contribute(pairs, algorithm.chain, {}, None, task, key)
    return dict(answer.replies)


def replace_weight(made: Contribution, weight: float) -> Contribution:
    """The same contribution with another weight."""
    return Contribution(made.update, weight, steps=made.steps)


def summed(algorithm: Algorithm, made: Made, key: Rng, members: int = 0) -> Total:
    """The sum of their replies; under a secure sum through its integers, with the noise of each client.

    `members`: who began the secure sum, where some were lost on the way; no fewer than came.
    """
    replies = sent(algorithm, made, key)
    if algorithm.exchange.shows == "sum":
        return _integers(algorithm, replies, key, max(members, len(replies), 2))
    heaviest = max(1.0, *(reply.weight for reply in replies.values()))
    rule = Sum(points(_widest(replies), len(replies), heaviest))
    return rule.finish(fold(rule, list(replies.items())))


def released(algorithm: Algorithm, made: Made, key: Rng, *, population: int, members: int = 0) -> Update:
    """What the round adds to the model, float64, of `population` clients in the job."""
    total = summed(algorithm, made, key, members)
    chain = algorithm.chain
    if algorithm.private:
        known = algorithm.exchange.shows == "sum"  # then the clients have added the noise
        secret = key.at("secret").generator().bytes(noise.KEY)
        chain = dp.keyed(chain, None if known else dp.sum_key(secret, 0, tuple(made), total.update))
    ctx = Context(key.at("back"), 0, total.weight, total.count, population)
    step, _ = chain.back(total.update, chain.start(total.update.zeros(), "back"), ctx)
    return step


def _integers(algorithm: Algorithm, replies: Mapping[int, Reply], key: Rng, members: int) -> Total:
    exchange: Any = algorithm.exchange
    heaviest = max(reply.weight for reply in replies.values()) or 1.0
    layout = next(iter(replies.values())).update.layout
    scale = exchange.scale(algorithm, members, heaviest, layout.size, 0)
    crew = 1 if scale.noise is None else scale.noise.crew(members)
    total = np.zeros(scale.layout(layout).size, np.uint64)
    for client, reply in replies.items():
        mine = key.at("secure", client)
        its = mine.at("noise").generator().bytes(noise.KEY)
        total += scale.out(reply.update, reply.weight, mine, share_of(its, crew))
    return scale.back(total & np.uint64((1 << scale.bits) - 1), layout, len(replies))  # type: ignore[no-any-return]


def _widest(replies: Mapping[int, Reply]) -> Update:
    """The largest magnitude that anybody has at each place."""
    first = next(iter(replies.values())).update
    most = np.max([np.abs(reply.update.buffer) for reply in replies.values()], axis=0)
    return Update(first.layout, most.astype(first.buffer.dtype))


__all__ = ["Made", "released", "replace_weight", "sent", "summed"]
