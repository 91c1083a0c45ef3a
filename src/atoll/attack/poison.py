"""Clients that poison a job: what they train on, and what they send.

An attack is a value of two functions, of which it has one or both. `rows` changes the data an attacker
trains on. `send` sees the updates of all honest clients of the round, as they leave them, and says what the
attackers send: nobody can know more. So attacks are as strong as they are in papers, and pass whatever
the honest clients' chain does (momentum, compression, clip) without having to follow it.

`poison(job, attackers, attack)` is the job with liars in it, for simulation: its exchange lets the liars
speak as updates leave their clients (lying.py), then does what it did.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext, fit_many
from ..core.update import Update
from ..job import Job, Tree
from ..learn.local import CHUNK
from ..learn.wrapped import Wrapped
from .lying import Lying, Send

Train: TypeAlias = Callable[[Any, Any, np.random.Generator], Any]


@dataclass(frozen=True)
class Attack:
    """`rows(data, learner, rng) -> data`: what an attacker trains on. `send(honest, own, rng) -> (a, d)`:
    what the a attackers send, of the honest updates (h, d) and those (a, d) they have made themselves.

    `trigger(data) -> data`: test rows that a backdoor makes the model answer wrongly, with the wrong answers.
    """

    name: str
    rows: Train | None = None
    send: Send | None = None
    trigger: Callable[[Any], Any] | None = None


def poison(job: Job, attackers: Collection[int], attack: Attack) -> Job:
    """The job with the clients `attackers` carrying out `attack`; for `simulate`.

    What a promise of privacy asks of honest clients they do; the poisoned job itself promises nothing. Its
    tree becomes flat, which changes no sum, and lets attackers know everybody's update. Where a world asks
    clients one by one, an attacker's own stands for all. Raises ConfigError for integers made in the open.
    """
    algorithm, liars = job.trained, frozenset(attackers)
    if any(part.gives == "ring" for part in algorithm.chain.steps):
        raise ConfigError("attackers speak in real numbers: leave ring out to see what poison does")
    wrap = algorithm.wrap

    def misled(learner: Any) -> Any:
        return Misled(wrap(learner) if wrap is not None else learner, liars, attack.rows)

    return job.replace(
        privacy=None,
        algorithm=replace(algorithm, wrap=misled),
        exchange=Lying(job.exchange, liars, attack.send),
        topology=Tree(),
    )


@dataclass(frozen=True)
class Misled(Wrapped):
    """Local training in which the `liars` see other rows. All clients are trained in one call, for what liars
    say depends on what the others send.
    """

    liars: frozenset[int] = frozenset()
    rows: Train | None = None
    chunk: ClassVar[int] = 1 << 30

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        size = getattr(self.learner, "chunk", None) or max(1, CHUNK // max(params.buffer.nbytes, 1))
        made: list[Contribution] = []
        for first in range(0, len(ctxs), size):
            some = slice(first, first + size)
            seen = [self._seen(data, ctx) for data, ctx in zip(datas[some], ctxs[some], strict=True)]
            made += fit_many(self.learner, params, seen, ctxs[some])
        return made

    def _seen(self, data: Any, ctx: FitContext) -> Any:
        if self.rows is None or ctx.client not in self.liars:
            return data
        return self.rows(data, self.learner, ctx.key.at("poison").generator())


def changed(data: Any, **values: Any) -> Any:
    """The same rows with another x or y."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return replace(data, **values)
    made = copy.copy(data)
    for name, value in values.items():
        setattr(made, name, value)
    return made
