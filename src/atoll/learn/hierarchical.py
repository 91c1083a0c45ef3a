"""Three tiers: edges train rounds of their own between two rounds of the cloud.

Liu, Zhang, Song, Letaief 2020, "Client-edge-cloud hierarchical federated learning", alg. 1 (HierFAVG):

    w_l = Σ_{i in C_l} |D_i| w_i / |D_l|      an edge l, every kappa_1 local steps
    w   = Σ_l |D_l| w_l / |D|                 the cloud, every kappa_2 of those

kappa_1 are the learner's local steps, kappa_2 is `edge_rounds`. A tier is synchronous: an edge waits for its
clients. For the cloud an edge is one client, whose update is w_l - w and whose weight is the rows it
saw in a round; between tiers the cloud waits for all edges, or takes whichever come (FedBuff). Edges may
stand below edges, and clients that stand under none are asked by the cloud itself, for one round.

An edge that cannot deliver its answer waits (`offline="pause"`) or goes on for at most `extra` rounds
and delivers the newest ("continue"). Whoever drives the edge asks again with the same task while the
answer could not be delivered. The cloud takes one answer to a task, so nothing counts twice.

Not promised: that a client's own state is that of a contribution the cloud used. It is committed when its
edge used it; hence no algorithm that keeps state at clients goes with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, log2
from typing import Any, Literal
from zlib import crc32

from ..core.aggregate import Aggregator, Points, Reply, Total, own
from ..core.edge import Answer, Task, relay, wire
from ..core.errors import ConfigError, ProtocolError
from ..core.protocol import Party, Responder
from ..core.registry import part
from ..core.transform import chain
from ..core.update import Update
from . import buffered, rounds
from .algorithm import Algorithm, Roles
from .buffered import Buffered, Fleet, staleness_weight
from .exchange import TABLE
from .rounds import Plan, Progress, add, always, posts, update_points
from .server import mean, positive, sgd


@dataclass(frozen=True)
class Tier:
    """`edge_rounds`: of an edge to one of the cloud. `extra`: more that it may add while it is cut off."""

    edge_rounds: int
    extra: int


@dataclass(frozen=True)
class Work:
    """What an edge has done for one task. `counted`: rounds that anybody contributed to; `rows`: their
    weights together; `depth`: the rounds of the lowest tier in them.
    """

    params: Update
    done: int = 0
    counted: int = 0
    depth: float = 0.0
    rows: float = 0.0
    clients: frozenset[int] = frozenset()
    failed: Mapping[int, str] = field(default_factory=dict)
    sent: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)


def edge(
    tier: Tier,
    children: Mapping[str, Sequence[int]],
    algorithm: Algorithm,
    online: Callable[[float], bool] = always,
) -> Responder:
    """An edge's answer: its rounds' change of the model, as one reply.

    Asked again with a task it has answered, it adds a round if it may and is still cut off, and gives the
    newest answer. To evaluate it asks everybody below.
    """
    works: dict[tuple[int, tuple[int, ...]], Work] = {}
    used: dict[int, int] = {}  # the last round of this edge that each client's contribution went into

    async def answer(p: Party, task: Task) -> Answer:
        if task.want == "evaluate":
            return await relay(p, task, children, TABLE)
        this = task.round, task.clients
        for old in [one for one in works if one[0] < task.round]:
            del works[old]
        work = works.get(this) or Work(task.params)
        most = tier.edge_rounds + tier.extra
        while work.done < tier.edge_rounds or (work.done < most and not online(p.now)):
            work = works[this] = await one_edge_round(p, task, work, tier, children, algorithm, used)
        return reply(task, work)

    return answer


async def one_edge_round(
    p: Party,
    task: Task,
    work: Work,
    tier: Tier,
    children: Mapping[str, Sequence[int]],
    algorithm: Algorithm,
    used: dict[int, int],
) -> Work:
    """One synchronous round below an edge: its clients' weighted mean, added to its model."""
    number = task.round * (tier.edge_rounds + tier.extra) + work.done
    before = tuple(used.get(c, -1) for c in task.clients)
    key = task.key.at("edge", work.done)
    inner = Task(number, key, task.clients, before, work.params, task.points, task.clients)
    rule = above(algorithm, inner, children)
    left = max(tier.edge_rounds - work.done, 1)
    deadline = None if p.deadline is None else 0.9 * max(p.deadline - p.now, 0.0) / left
    answer = await relay(p, inner, children, rule, deadline=deadline)
    failed = {**work.failed, **answer.failed}
    work = replace(work, done=work.done + 1, failed=failed, sent=work.sent + answer.sent)
    if not answer.clients:
        return work
    mine = own(rule)
    total = rule.finish(answer.partial, **mine)
    used.update(dict.fromkeys(answer.clients, number))
    if not total.weight:
        return work
    params = add(work.params, total.update.scale(1.0 / total.weight, own=bool(mine)))
    if not params.finite():
        raise ProtocolError("this edge's model is not finite: training diverged; lower the learning rate")
    return replace(
        work,
        params=params,
        counted=work.counted + 1,
        depth=work.depth + depth(total),
        rows=work.rows + total.weight,
        clients=work.clients.union(answer.clients),
        metrics=total.metrics,
    )


def depth(total: Total) -> float:
    """Rounds of the lowest tier in one round: 1 of a client, of an edge below as many as it says."""
    below = total.metrics.get("edge_rounds")
    if below is None:
        return 1.0
    return float((below.value - 1.0) * below.weight / total.weight) + 1.0


def reply(task: Task, work: Work) -> Answer:
    """An edge's rounds as one contribution; its metric `edge_rounds` counts those of the lowest tier."""
    failed = {c: why for c, why in work.failed.items() if c not in work.clients}
    if not work.clients:
        return Answer((), failed=failed, sent=work.sent)
    change = work.params - task.params
    metrics = {**work.metrics, "edge_rounds": work.depth}
    clients = tuple(sorted(work.clients))
    one = Reply(change, work.rows / work.counted, metrics)
    return Answer(clients, failed=failed, sent=work.sent + wire(change), replies=((clients[0], one),))


def above(algorithm: Algorithm, task: Task, children: Mapping[str, Sequence[int]]) -> Aggregator:
    """What sums the answers of these children to a task: an edge may weigh as much as all its clients."""
    wanted = set(task.clients)
    most = max((len(wanted.intersection(clients)) for clients in children.values()), default=1)
    return algorithm.rule.at(heavier(task.points, most), task.cohort, task.key)  # type: ignore[arg-type]


def heavier(points: Points, times: int) -> Points:
    """The same binary points for contributions that weigh up to so many times as much."""
    if times <= 1:
        return points
    bits = ceil(log2(times))
    return replace(
        points,
        exponents=tuple(e - bits for e in points.exponents),
        max_weight=points.max_weight * times,
        tables={name: e - bits for name, e in points.tables.items()},
    )


async def one_round(tier: Tier, p: Party, plan: Plan, now: Progress) -> tuple[Progress, dict[str, Any]]:
    """A round of the cloud that waits for every edge."""
    key = p.key.at("round", now.round)
    cohort = await rounds.choose(p, plan, now, key)
    after, record = await rounds.ask(
        p, plan, now, cohort, key, lambda task: above(plan.algorithm, task, plan.children)
    )
    if "down" in record:
        record["down"] = models(tier, cohort, plan.children) * wire(now.params)
    return after, record


async def coordinator(tier: Tier, p: Party, plan: Plan) -> Progress:
    """The cloud, synchronous."""
    return await rounds.coordinator(p, plan, partial(one_round, tier))


def models(tier: Tier, clients: Collection[int], children: Mapping[str, Sequence[int]]) -> int:
    """How often the model goes down: to each edge, and to its clients in each of its rounds."""
    below = [len(set(clients).intersection(under)) for under in children.values()]
    return sum(1 + n * tier.edge_rounds for n in below if n)


@dataclass
class Edges(Fleet):
    """The cloud's side of FedBuff over edges: an edge is drawn, asked for all clients below it, and counts as
    one. It is known by a number that follows from its name.
    """

    tier: Tier = field(default_factory=lambda: Tier(1, 0))

    def look(self) -> None:
        """See which edges there are, and who stands below each."""
        here = {name: tuple(sorted(clients)) for name, clients in posts(self.plan).items() if clients}
        self.holder = {number(name): name for name in here}
        self.under = {number(name): clients for name, clients in here.items()}

    def crew(self) -> tuple[int, ...]:
        """Every edge."""
        return tuple(sorted(number(name) for name in self.plan.children))

    def down(self, now: Progress, client: int) -> int:
        """Bytes of models that go down for one task of an edge, to its clients too."""
        clients = self.under[client]
        return models(self.tier, clients, {self.holder[client]: clients}) * wire(now.params)

    def below(self, client: int) -> tuple[int, ...]:
        """All clients below an edge."""
        return self.under[client]

    def task(self, now: Progress, client: int, below: tuple[int, ...]) -> Task:
        """What an edge is asked: its own number as the cohort, all below it as the clients."""
        points = update_points(self.plan, now.params, len(below))
        used = (now.used.get(client, -1),) * len(below)
        return Task(now.round, self.p.key.at("round", now.round), below, used, now.params, points, (client,))

    def aggregator(self, task: Task) -> Aggregator:
        """What lifts an edge's reply."""
        points = heavier(task.points, len(task.clients))  # type: ignore[arg-type]
        return self.plan.algorithm.rule.at(points, task.cohort, task.key)


def number(edge: str) -> int:
    """Below 0, so that it is no client's."""
    return -1 - crc32(edge.encode())


@part("algorithm")
def hierarchical(
    edge_rounds: int = 5,
    offline: Literal["pause", "continue"] = "pause",
    extra: int = 10,
    *,
    asynchronous: bool = False,
    size: int = 2,
    concurrency: int | None = None,
    exponent: float = 0.5,
    lr: float = 1.0,
    max_staleness: int | None = None,
) -> Algorithm:
    """Edges train `edge_rounds` rounds of their own between two of the cloud (Liu et al. 2020).

    `offline`: what an edge does while it cannot deliver: "pause", or "continue" for at most `extra` rounds.
    `asynchronous`: the cloud steps by `lr` whenever `size` edges came in, stale ones weigh less by
    (1 + tau)**-exponent; `concurrency`, `max_staleness`: as in fedbuff, counted in edges. Without edges
    it is fedavg.
    """
    if offline not in ("pause", "continue"):
        raise ConfigError(f'offline is "pause" or "continue", got {offline!r}')
    for name, value in (("edge_rounds", edge_rounds), ("extra", extra), ("size", size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    positive(exponent=exponent, lr=lr)
    tier = Tier(edge_rounds, extra if offline == "continue" else 0)
    values: dict[str, Any] = {"edge_rounds": edge_rounds, "offline": offline}
    values |= {"extra": extra} if offline == "continue" else {}
    if not asynchronous:
        roles = Roles(partial(coordinator, tier), edge=partial(edge, tier))
        return Algorithm("hierarchical", protocol=roles, values=values)
    rule = Buffered(size, concurrency, staleness_weight("polynomial", exponent, 0), max_staleness)
    values |= {"asynchronous": True, "size": size, "exponent": exponent, "lr": lr}
    cloud = partial(buffered.coordinator, rule, fly=partial(Edges, tier=tier))
    steps = chain(sgd(lr), mean(over=size))
    return Algorithm("hierarchical", steps, protocol=Roles(cloud, edge=partial(edge, tier)), values=values)
