"""Rules that look at each update, or at sums of a few, instead of the sum of all.

`Gather(rule)` keeps every update for the rule; `Buckets(k, rule)` sums inside k random buckets and
applies the rule over their means. Both are aggregators (core/aggregate.py): tree and flat agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar, Literal, TypeAlias

import numpy as np

from ..core.aggregate import Partial, Points, Reply, Sum, Total, other_leaves
from ..core.errors import CompositionError, MisuseError, ProtocolError
from ..core.metrics import merge_all, tally
from ..core.rng import Rng
from ..core.update import Array, Layout, Update
from .detect import Looked
from .rules.rule import Own, Rule, answer, as_rule, fits, holds
from .rules.stack import Stack

Kept: TypeAlias = tuple[tuple[int, Reply], ...]
LARGEST = 1e100  # of a float64 update: its square is a number still, however many are added


@dataclass(frozen=True)
class Gather:
    """Every update kept until the end, then the rule over all of them, by client id.

    `rule`: a named one such as `trimmed_mean(0.2)`, or a function U (n, d) float64 -> (d,). Its answer stands
    for the mean update. Updates stay where they came in, in memory or in a file; a function of one's own
    takes n * d * 8 bytes besides.
    """

    rule: Rule | Own
    sees: ClassVar[Literal["sum", "each"]] = "each"
    rings: ClassVar[bool] = False
    points: Points | None = None

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Gather:
        """This round's: with the leaves that its updates must have.

        Raises ConfigError for a cohort that is too small for the rule, or lacks a client it needs. (A task
        for one client may be of a protocol that gathers several.)
        """
        if len(cohort) > 1:
            holds(as_rule(self.rule), cohort)
        return Gather(self.rule, points)

    def lift(self, peer: int, reply: Reply) -> Kept:
        """One kept reply. Raises ProtocolError for other leaves, or numbers that are not finite."""
        update = reply.update
        if self.points is not None and update.layout != self.points.layout:
            raise other_leaves(peer, update, self.points.layout)
        if update.rows:
            raise ProtocolError(
                f"client {peer} sent sparse rows of {sorted(update.rows)}, which no rule compares"
            )
        if not update.finite() or (update.buffer.dtype == np.float64 and not _within(update.buffer)):
            raise ProtocolError(f"client {peer}'s update is not finite: its training diverged")
        return ((peer, reply),)

    def merge(self, a: Kept, b: Kept) -> Kept:
        """Both, by client id, whatever the order they came in."""
        return tuple(sorted(a + b, key=lambda kept: kept[0]))

    def finish(self, partial: Kept) -> Total:
        """The rule over all updates of weight above 0, and what it looked at; MisuseError if it answers in
        another shape.

        Raises QuorumError where fewer came than the rule needs.
        """
        kept = [(peer, reply) for peer, reply in partial if reply.weight > 0]
        if not kept:
            raise MisuseError("every contribution of this round has weight 0: there is no mean to take")
        metrics = tally((reply.metrics, reply.weight) for _, reply in kept)
        layout = kept[0][1].update.layout
        stack = Stack.of([reply.update.buffer for _, reply in kept], [peer for peer, _ in kept])
        update = apply_rule(self.rule, stack, layout)
        silent = tuple(peer for peer, reply in partial if not reply.weight > 0)
        return Total(update, 1.0, len(kept), metrics, Looked(stack, update.buffer, silent))


def _within(buffer: Array) -> bool:
    return bool(max(buffer.max(initial=0.0), -buffer.min(initial=0.0)) <= LARGEST)


def apply_rule(rule: Rule | Own, stack: Stack, layout: Layout) -> Update:
    """`rule` over the rows of a stack (n, d) as an Update; its answer must be (d,) real."""
    found = answer(as_rule(rule), stack)
    if found.shape != (layout.size,):
        raise MisuseError(f"a rule maps (n, {layout.size}) to ({layout.size},), this one gave {found.shape}")
    return Update(layout, found)


@dataclass(frozen=True, eq=False)
class Ratio:
    """A bucket's mean as a row of a stack, made a block at a time: its `sum` (d,) over its `weight`."""

    sum: Array
    weight: float

    def __len__(self) -> int:
        return len(self.sum)

    def __getitem__(self, block: slice) -> Array:
        return np.asarray(self.sum[block] / self.weight)


@dataclass(frozen=True)
class Buckets:
    """Sums inside `k` random buckets of the cohort, then `rule` over the buckets' means (k, d).

    Who falls into which bucket follows from the round's key and the cohort alone; under a secure sum its
    members draw that key together (deal.py). Robust rules see means of a few, never one (Karimireddy, He,
    Jaggi 2022, "Byzantine-robust learning on heterogeneous datasets via bucketing", alg. 1). One malicious
    client spoils its bucket: a rule's `f` counts clients, and it withstands as many spoilt buckets.
    Raises ConfigError for fewer buckets than the rule needs.
    """

    k: int
    rule: Rule | Own
    sees: ClassVar[Literal["sum", "each"]] = "sum"
    rings: ClassVar[bool] = False
    inner: Sum = field(default_factory=Sum)
    place: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rule = as_rule(self.rule)
        fits(rule, self.k, self.k)
        if rule.knows:
            raise CompositionError(f"{rule} must know who sent which update, and buckets are of several")

    def at(self, points: Points, cohort: Sequence[int], key: Rng) -> Buckets:
        """This round's: the cohort dealt into buckets. Raises ConfigError where they are too few."""
        if len(cohort) > 1:
            fits(as_rule(self.rule), min(self.k, len(cohort)), len(cohort))
        return Buckets(self.k, self.rule, self.inner.at(points, cohort, key), self.dealt(cohort, key))

    def dealt(self, cohort: Sequence[int], key: Rng) -> dict[int, int]:
        """Each client's bucket."""
        order = key.at("buckets").generator().permutation(sorted(cohort))
        return {int(client): i % self.k for i, client in enumerate(order)}

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
        count = sum(t.count for t in totals)
        means = Stack.of([Ratio(t.update.buffer, t.weight) for t in filled], clients=count)
        metrics = reduce(merge_all, (t.metrics for t in totals))
        update = apply_rule(self.rule, means, filled[0].update.layout)
        return Total(update, 1.0, count, metrics)
