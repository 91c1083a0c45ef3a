"""Rules that look at each update, or at sums of a few, instead of the sum of all.

`Gather(rule)` keeps every update for the rule; `Buckets(k, rule)` sums inside k random buckets and
applies the rule over their means. Both are aggregators (core/aggregate.py): tree and flat agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from ..core.aggregate import Partial, Points, Reply, Sum, Total, other_leaves
from ..core.errors import MisuseError, ProtocolError
from ..core.metrics import merge_all, tally
from ..core.rng import Rng
from ..core.update import Array, Layout, Update

Rule: TypeAlias = Callable[[Array], Array]
Kept: TypeAlias = tuple[tuple[int, Reply], ...]


@dataclass(frozen=True)
class Gather:
    """Every update kept until the end, then `rule(U)`: U (n, d) float64, rows by client id -> (d,).

    The rule's answer stands for the mean update. Memory grows with the cohort: n * d * 8 bytes.
    """

    rule: Rule
    sees: ClassVar[Literal["sum", "each"]] = "each"
    rings: ClassVar[bool] = False
    points: Points | None = None

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Gather:
        """This round's: with the leaves that its updates must have."""
        return Gather(self.rule, points)

    def lift(self, peer: int, reply: Reply) -> Kept:
        """One kept reply. Raises ProtocolError for other leaves, or numbers that are not finite."""
        if self.points is not None and reply.update.layout != self.points.layout:
            raise other_leaves(peer, reply.update, self.points.layout)
        if not reply.update.finite():
            raise ProtocolError(f"client {peer}'s update is not finite: its training diverged")
        return ((peer, reply),)

    def merge(self, a: Kept, b: Kept) -> Kept:
        """Both, by client id, whatever the order they came in."""
        return tuple(sorted(a + b, key=lambda kept: kept[0]))

    def finish(self, partial: Kept) -> Total:
        """The rule over all updates of weight above 0; MisuseError if it answers in another shape."""
        replies = [reply for _, reply in partial if reply.weight > 0]
        if not replies:
            raise MisuseError("every contribution of this round has weight 0: there is no mean to take")
        metrics = tally((reply.metrics, reply.weight) for reply in replies)
        matrix = np.stack([reply.update.buffer for reply in replies]).astype(np.float64)
        return Total(apply_rule(self.rule, matrix, replies[0].update.layout), 1.0, len(replies), metrics)


def apply_rule(rule: Rule, matrix: Array, layout: Layout) -> Update:
    """`rule` over the rows of `matrix` (n, d) as an Update; its answer must be (d,) real."""
    answer = np.asarray(rule(matrix), np.float64)
    if answer.shape != (layout.size,):
        raise MisuseError(f"a rule maps (n, {layout.size}) to ({layout.size},), this one gave {answer.shape}")
    return Update(layout, answer)


@dataclass(frozen=True)
class Buckets:
    """Sums inside `k` random buckets of the cohort, then `rule` over the buckets' means (k, d).

    Who falls into which bucket follows from the round's key and the cohort alone. Robust rules
    see means of a few, never one (Karimireddy, He, Jaggi 2022, "Byzantine-robust learning on
    heterogeneous datasets via bucketing", alg. 1).
    """

    k: int
    rule: Rule
    sees: ClassVar[Literal["sum", "each"]] = "sum"
    rings: ClassVar[bool] = False
    inner: Sum = field(default_factory=Sum)
    place: Mapping[int, int] = field(default_factory=dict)

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Buckets:
        """This round's: the cohort dealt into buckets."""
        order = key.at("buckets").generator().permutation(sorted(cohort))
        place = {int(client): i % self.k for i, client in enumerate(order)}
        return Buckets(self.k, self.rule, self.inner.at(points, cohort, key), place)

    def lift(self, peer: int, reply: Reply) -> dict[int, Partial]:
        """One contribution in its bucket."""
        return {self.place[peer]: self.inner.lift(peer, reply)}

    def merge(self, a: dict[int, Partial], b: dict[int, Partial]) -> dict[int, Partial]:
        """Bucket by bucket."""
        merged = dict(a)
        for bucket, partial in b.items():
            merged[bucket] = self.inner.merge(merged[bucket], partial) if bucket in merged else partial
        return merged

    def finish(self, partial: dict[int, Partial]) -> Total:
        """The rule over the means of the buckets that got anything."""
        totals = [self.inner.finish(partial[bucket]) for bucket in sorted(partial)]
        filled = [t for t in totals if t.weight > 0]
        if not filled:
            raise MisuseError("every contribution of this round has weight 0: there is no mean to take")
        means = np.stack([t.update.buffer / t.weight for t in filled])
        metrics = reduce(merge_all, (t.metrics for t in totals))
        update = apply_rule(self.rule, means, filled[0].update.layout)
        return Total(update, 1.0, sum(t.count for t in totals), metrics)
