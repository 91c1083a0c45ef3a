"""An exchange through which some clients lie: what they say, and what bounds it.

    in the open   the coordinator's gate: numbers that are some, an update no longer than the job's clip
    under masks   the ring: integers from -2^(bits - 1) to 2^(bits - 1) - 1. Nobody sees them, so liars
                  neither clip nor add noise, and their weight is what they say it is
    in buckets    liars know with whom they are summed, and send what makes the bucket's mean their lie

Nothing but a rule over buckets stands between a secure sum and a liar (docs/explanation/secure-sums.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.aggregate import Aggregator, Reply
from ..core.edge import Answer, Task
from ..core.errors import ProtocolError
from ..core.protocol import Party
from ..core.rng import Rng
from ..core.update import Array, Update
from ..learn.attempts import honest
from ..learn.failure import NOT_LET_IN
from ..learn.integers import Noise, Scale
from ..learn.local import Local
from ..learn.robust import Buckets
from ..learn.rounds import Plan
from ..privacy import dp

Send: TypeAlias = Callable[[Array, Array, np.random.Generator], Array]
Replies: TypeAlias = Sequence[tuple[int, Reply]]


@dataclass(frozen=True)
class Lying:
    """An exchange in which the `liars` send what they like; all else is `inner`'s."""

    inner: Any
    liars: frozenset[int]
    send: Send | None

    @property
    def shows(self) -> Literal["sum", "each"]:
        """As `inner`."""
        return self.inner.shows  # type: ignore[no-any-return]

    def bits_of(self, algorithm: Any, points: Any) -> int | None:
        """As `inner`."""
        return self.inner.bits_of(algorithm, points)  # type: ignore[no-any-return]

    def integers(self, algorithm: Any, members: int, size: int) -> str:
        """As `inner`."""
        return self.inner.integers(algorithm, members, size)  # type: ignore[no-any-return]

    @property
    def blind(self) -> bool:
        """As `inner`."""
        return self.inner.blind  # type: ignore[no-any-return]

    @property
    def buckets(self) -> bool:
        """As `inner`."""
        return getattr(self.inner, "buckets", True)

    async def collect(
        self, p: Party, plan: Plan, task: Task, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> tuple[Answer, Aggregator]:
        """As `inner`."""
        found: tuple[Answer, Aggregator] = await self.inner.collect(p, plan, task, rule, quorum)
        return found

    @property
    def attempts(self) -> int:
        """As `inner`, which shows sums."""
        return self.inner.attempts  # type: ignore[no-any-return]

    def attempt(self, *asked: Any) -> Any:
        """As `inner`, which shows sums."""
        return self.inner.attempt(*asked)

    def reading(self, plan: Plan, task: Task) -> Any:
        """As `inner`, which shows sums."""
        return self.inner.reading(plan, task)

    def reply(self, local: Local, task: Task) -> Answer:
        """As `inner`: a liar follows the protocol, or it would be missing."""
        return self.inner.reply(local, task)  # type: ignore[no-any-return]

    def outgoing(self, local: Local, task: Task, answer: Answer) -> Answer:
        """What leaves the clients: the honest ones' replies, and lies."""
        lies = self._lies(local, task, answer.replies)
        told = replace(answer, replies=tuple((c, lies.get(c, reply)) for c, reply in answer.replies))
        if self.shows == "sum":
            return self.inner.outgoing(local, task, told, self._integers)  # type: ignore[no-any-return]
        return _admitted(local, task, told, self.liars)

    def _lies(self, local: Local, task: Task, replies: Replies) -> dict[int, Reply]:
        """What the liars say: as updates, or where there are buckets, as the means of those they are in."""
        if self.send is None:
            return {}
        groups = _groups(local, task, replies)
        ours = {g: some for g, some in groups.items() if any(c in self.liars for c, _ in some)}
        others = [
            _mean(some) for g, some in groups.items() if g not in ours and any(r.weight > 0 for _, r in some)
        ]
        own = [_mean(some) for some in ours.values()]
        if not own:
            return {}
        sent = self.send(np.stack(others or own), np.stack(own), task.key.at("poison").generator())
        return {
            c: lie
            for mean, some in zip(sent, ours.values(), strict=True)
            for c, lie in self._said(mean, some)
        }

    def _said(self, mean: Array, group: Replies) -> list[tuple[int, Reply]]:
        """What the liars of a group send so that its mean is this one."""
        ours = [(c, reply) for c, reply in group if c in self.liars]
        others = [(c, reply) for c, reply in group if c not in self.liars]
        weight = sum(reply.weight for _, reply in ours) or 1.0
        rest = sum(reply.weight for _, reply in others)
        with np.errstate(over="ignore", invalid="ignore"):
            lie = mean if not rest else mean + (mean - _mean(others)) * (rest / weight)
            made = Update(group[0][1].update.layout, lie.astype(group[0][1].update.buffer.dtype))
        return [(c, replace(reply, update=made)) for c, reply in ours]

    def _integers(
        self, client: int, reply: Reply, scale: Scale, rng: Rng, noise: Noise
    ) -> NDArray[np.uint64]:
        """A liar's: neither clipped nor with noise, no larger than would wrap around if all liars said so.
        What is no number is as large as that, up and down in turn.
        """
        if client not in self.liars:
            return honest(client, reply, scale, rng, noise)
        made = scale.out(reply.update.zeros(), reply.weight, rng).view(np.int64)
        edge = float(1 << (scale.bits - 2)) / min(len(self.liars), scale.members)
        x = scale.held(reply.update).astype(np.float64) * (reply.weight / scale.heaviest * scale.unit)
        x = np.where(np.isnan(x), edge * (1 - 2.0 * (np.arange(len(x)) % 2)), x)
        made[: len(x)] = np.clip(np.rint(x), -edge, edge)
        return made.view(np.uint64) & np.uint64((1 << scale.bits) - 1)


def _groups(local: Local, task: Task, replies: Replies) -> Mapping[int, Replies]:
    """The replies that count, by whose mean a rule sees: each client's alone, or each bucket's."""
    rule = local.algorithm.rule
    place: Mapping[int, int] = {}
    if isinstance(rule, Buckets) and task.points is not None:
        place = rule.at(task.points, task.cohort, task.key).place
    groups: dict[int, list[tuple[int, Reply]]] = {}
    for client, reply in replies:
        groups.setdefault(place[client] if place else client, []).append((client, reply))
    return groups


def _mean(group: Replies) -> Array:
    if len(group) == 1:
        return np.asarray(group[0][1].update.buffer, np.float64)
    weights = np.array([reply.weight for _, reply in group])
    whole = np.stack([reply.update.buffer for _, reply in group]).astype(np.float64)
    return np.asarray(weights @ whole / (weights.sum() or 1.0))


def _admitted(local: Local, task: Task, answer: Answer, liars: Collection[int]) -> Answer:
    """What a coordinator takes of updates it sees: no lie longer than the clip, none its rule cannot read."""
    rule = local.algorithm.rule.at(task.points, task.cohort, task.key)  # type: ignore[arg-type]
    longest, failed, kept = dp.longest(local.algorithm.chain), dict(answer.failed), []
    for client, reply in answer.replies:
        said = replace(reply, update=_within(reply.update, longest)) if client in liars else reply
        try:
            if client in liars:
                rule.lift(client, said)
            kept.append((client, said))
        except ProtocolError as error:
            failed[client] = f"{NOT_LET_IN}{error}"
    return replace(answer, clients=tuple(c for c, _ in kept), replies=tuple(kept), failed=failed)


def _within(update: Update, longest: float | None) -> Update:
    length = update.norm()
    if longest is None or not longest < length < np.inf:
        return update
    return update.scale(longest * dp.SLACK / length)
