"""Clients that poison a job: what they train on, and what they send.

An attack is a value of two functions, of which it has one or both. `rows` changes the data an attacker
trains on. `send` sees the updates of all honest clients of the round, as they left them, and says what the
attackers send: nobody can know more. So attacks are as strong as they are in papers, and pass whatever
the honest clients' chain does (momentum, compression) without having to follow it.

`poison(job, attackers, attack)` is the job with liars in it, for simulation: its rule first lets the liars
speak, then does what it did. Whatever a rule or the exact sum refuses (NaN) is left out, as a gate would.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from ..core.aggregate import Aggregator, Points, Reply, Total
from ..core.errors import ConfigError, ProtocolError, QuorumError
from ..core.message import Contribution, FitContext, fit_many
from ..core.rng import Rng
from ..core.update import Array, Update
from ..job import Job
from ..learn.algorithm import Algorithm
from ..learn.wrapped import Wrapped

Train: TypeAlias = Callable[[Any, Any, np.random.Generator], Any]
Send: TypeAlias = Callable[[Array, Array, np.random.Generator], Array]
Kept: TypeAlias = tuple[tuple[int, Reply], ...]


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

    Raises ConfigError for a job that promises privacy: its noise is sized for sums nobody tampers with.
    """
    if job.trained.private:
        raise ConfigError("leave the promise of privacy out to see what poison does: its sums take no rule")
    algorithm: Algorithm = job.algorithm
    liars, wrap = frozenset(attackers), algorithm.wrap

    def misled(learner: Any) -> Any:
        inner = wrap(learner) if wrap is not None else learner
        return Misled(inner, liars, attack.rows) if attack.rows is not None else inner

    rule: Any = algorithm.rule
    if attack.send is not None:
        rule = Poisoned(rule, liars, attack.send)
    return job.replace(algorithm=replace(algorithm, wrap=misled, rule=rule))


@dataclass(frozen=True)
class Misled(Wrapped):
    """Local training in which the `liars` see other rows."""

    liars: frozenset[int] = frozenset()
    rows: Train | None = None

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        assert self.rows is not None  # noqa: S101  made with some
        seen = [
            self.rows(data, self.learner, ctx.key.at("poison").generator())
            if ctx.client in self.liars
            else data
            for data, ctx in zip(datas, ctxs, strict=True)
        ]
        return fit_many(self.learner, params, seen, ctxs)


@dataclass(frozen=True)
class Poisoned:
    """An aggregator that keeps every reply, replaces those of the `liars`, and hands all to `inner`."""

    inner: Aggregator
    liars: frozenset[int]
    send: Send
    key: Rng = field(default_factory=lambda: Rng.of(0))
    sees: ClassVar[Literal["sum", "each"]] = "each"
    rings: ClassVar[bool] = False

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Poisoned:
        """This round's."""
        return replace(self, inner=self.inner.at(points, cohort, key), key=key.at("poison"))

    def lift(self, peer: int, reply: Reply) -> Kept:
        """One reply, kept; an honest one must be one that `inner` takes."""
        if peer not in self.liars:
            self.inner.lift(peer, reply)
        return ((peer, reply),)

    def merge(self, a: Kept, b: Kept) -> Kept:
        """Both, by client id."""
        return tuple(sorted(a + b, key=lambda kept: kept[0]))

    def finish(self, partial: Kept) -> Total:
        """`inner`'s total of what honest clients sent and liars say they did."""
        lifted = []
        for peer, reply in self._said(partial):
            try:
                lifted.append(self.inner.lift(peer, reply))
            except ProtocolError:
                if peer not in self.liars:
                    raise
        if not lifted:
            raise QuorumError("every update of this round came from attackers, and none was taken")
        return self.inner.finish(reduce(self.inner.merge, lifted))

    def _said(self, partial: Kept) -> list[tuple[int, Reply]]:
        own = [reply for peer, reply in partial if peer in self.liars]
        honest = [reply for peer, reply in partial if peer not in self.liars and reply.weight > 0]
        if not own or not honest:
            return list(partial)
        layout, dtype = own[0].update.layout, own[0].update.buffer.dtype
        sent = iter(self.send(_matrix(honest), _matrix(own), self.key.generator()))
        with np.errstate(over="ignore"):
            return [
                (p, replace(r, update=Update(layout, next(sent).astype(dtype))) if p in self.liars else r)
                for p, r in partial
            ]


def _matrix(replies: Sequence[Reply]) -> Array:
    return np.stack([reply.update.buffer for reply in replies]).astype(np.float64)


def changed(data: Any, **values: Any) -> Any:
    """The same rows with another x or y."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return replace(data, **values)
    made = copy.copy(data)
    for name, value in values.items():
        setattr(made, name, value)
    return made
