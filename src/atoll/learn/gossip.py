"""Gossip: no server holds the model. Clients train, then average with their neighbours on a graph.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu 2017, "Can decentralized algorithms outperform centralized
algorithms?", alg. 1, with a whole local training in place of one gradient:

    w_i = Σ_j W_ij (w_j + D_j)        over i itself and its neighbours j, D_j what j learnt

    W_ij = 1 / (1 + max(d_i, d_j)), W_ii = 1 - Σ_j W_ij       d: neighbours it has

These are the Metropolis-Hastings weights (Xiao, Boyd, Kim 2007, "Distributed average consensus with
least-mean-square deviation", §2): rows and columns sum to 1, so averaging keeps the clients' mean,
and on a connected graph all models tend to it. Every client counts the same, whatever its rows.

Models pass between neighbours only. The coordinator calls the rounds and collects metrics; when it
is to evaluate it takes the mean of all models. A neighbour that is gone or late is replaced by the
client's own model; clients that may drop out need a job with a deadline, or they are waited for.
A client keeps its model where other algorithms keep the state of its chain. Both roles stand here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ..core.edge import Task, wire
from ..core.errors import ConfigError, Gone
from ..core.metrics import lift, merge_all
from ..core.protocol import Party, Responder
from ..core.registry import part
from ..core.rng import Rng
from ..core.update import Update
from .algorithm import Algorithm, Roles
from .failure import reason
from .local import Held, Local
from .rounds import Plan, Progress, add, begin, evaluate, report, skip
from .select import Everyone

Graph = Mapping[int, frozenset[int]]


@dataclass(frozen=True)
class Turn:
    """One client's round. `weights`: of its neighbours, by the peer's name; `show`: send the model too.

    `task` holds round and key, and the model that a client without one of its own starts from.
    """

    task: Task
    weights: Mapping[str, float]
    show: bool


@dataclass(frozen=True)
class Told:
    """What a client tells of its round: metrics, bytes sent to neighbours, its model if asked."""

    metrics: Mapping[str, Any]
    sent: int
    model: Update | None
    failed: Mapping[int, str] = field(default_factory=dict)


async def coordinator(kind: str, degree: int, p: Party, plan: Plan) -> Progress:
    """Call the rounds, mean the models when it is time to evaluate; resumes from `p.restored`."""
    if plan.cohort != Everyone() or any(len(clients) > 1 for clients in plan.children.values()):
        raise ConfigError(
            "gossip knows neither cohorts nor edges: use everyone() and a flat topology", "$.algorithm"
        )
    now = p.restored or begin(plan, p)
    weights = metropolis(graph(kind, degree, plan.clients, p.key.at("graph")))
    if now.round == 0:
        await p.note({"round": 0, **await evaluate(p, plan, now)})
    while now.round < plan.rounds and not now.over:
        now, record = await one_round(p, plan, now, weights)
        now = await report(p, plan, now, record)
    return now


async def one_round(
    p: Party, plan: Plan, now: Progress, weights: Mapping[int, Mapping[int, float]]
) -> tuple[Progress, dict[str, Any]]:
    """Everybody trains and averages once; the mean model and its spread if it is to be evaluated."""
    began, name = p.now, {c: peer for peer, clients in plan.children.items() for c in clients}
    show = (now.round + 1) % plan.every == 0 or now.round + 1 == plan.rounds
    key = p.key.at("round", now.round)
    turns = {}
    for c in plan.clients:
        task = Task(now.round, key, (c,), (-1,), now.params, cohort=plan.clients)
        turns[name[c]] = Turn(task, {name[other]: w for other, w in weights[c].items()}, show)
    answers = await p.ask(
        turns, deadline=plan.deadline, fold=lambda so_far, peer, told: {**(so_far or {}), peer: told}
    )
    told: dict[str, Told] = {peer: answers.folded[peer] for peer in name.values() if peer in answers.replied}
    failed = {c: answers.missing[peer] for c, peer in name.items() if peer in answers.missing}
    metrics: dict[str, Any] = {}
    for one in told.values():
        failed.update(one.failed)
        metrics = merge_all(metrics, one.metrics)
    record: dict[str, Any] = {"round": now.round + 1, "seconds": p.now - began, "cohort": len(name)}
    record |= {"clients": len(name) - len(failed), "failed": failed}
    record |= {"down": 0, "up": sum(one.sent for one in told.values())}
    record["train"] = {n: m.value for n, m in metrics.items()}
    everybody = len(failed) == len(name)
    now = skip(plan, now, failed) if everybody else replace(now, round=now.round + 1, empty=0)
    models = [one.model for one in told.values() if one.model is not None]
    if models:
        centre = np.mean([m.buffer for m in models], axis=0, dtype=np.float64)
        record["spread"] = max(float(np.linalg.norm(m.buffer - centre)) for m in models)
        now = replace(now, params=Update(now.params.layout, centre.astype(now.params.buffer.dtype)))
    return now, record


def client(local: Local) -> Responder:
    """A client's answer: train its own model, send it to the neighbours, average with theirs.

    Asked for a round again, it sends what it sent then: a neighbour may still need it.
    """

    async def answer(p: Party, asked: Task | Turn) -> Any:
        if isinstance(asked, Task):
            return await p.work(lambda: local.answer(asked), share=0.0)
        task, me = asked.task, asked.task.clients[0]
        last, model, sent = local.committed.get(me, Held()).chain or (-1, task.params, task.params)
        if last == task.round:
            await tell(p, asked, sent)
            return Told({}, len(asked.weights) * wire(sent), model if asked.show else None)
        sent, state = model, local.committed.get(me, Held()).learner
        metrics: dict[str, Any] = {}
        failed: dict[int, str] = {}
        try:
            (c,) = await p.work(lambda: local.contributions(replace(task, params=model), (me,)))
            sent, state = add(model, c.update), c.state
            metrics = {name: lift(m, c.weight) for name, m in c.metrics.items()}
        except Exception as error:  # noqa: BLE001  it can still average
            failed[me] = reason(error)
        await tell(p, asked, sent)
        model = await hear(p, asked, sent)
        local.committed[me] = Held(state, (task.round, model, sent))
        return Told(metrics, len(asked.weights) * wire(sent), model if asked.show else None, failed)

    return answer


async def tell(p: Party, turn: Turn, model: Update) -> None:
    """Send the model to every neighbour."""
    for peer in turn.weights:
        await p.send(peer, f"round {turn.task.round}", model)


async def hear(p: Party, turn: Turn, own: Update) -> Update:
    """The weighted mean of the own and the neighbours' models, summed in one order, in float64."""
    mean = (1.0 - sum(turn.weights.values())) * own.buffer.astype(np.float64)
    for peer, weight in turn.weights.items():
        try:
            heard: Update = await p.recv(peer, f"round {turn.task.round}")
        except Gone:
            heard = own
        mean += weight * heard.buffer
    return Update(own.layout, mean.astype(own.buffer.dtype))


def graph(kind: str, degree: int, clients: Sequence[int], key: Rng) -> Graph:
    """Each client's neighbours. "random": `degree` / 2 rings in random orders, so always connected."""
    ids = list(clients)
    if kind == "complete":
        return {c: frozenset(ids) - {c} for c in ids}
    orders = [ids]
    if kind == "random":
        orders = [list(key.at(i).generator().permutation(ids)) for i in range(degree // 2)]
    near: dict[int, set[int]] = {c: set() for c in ids}
    for order in orders:
        for a, b in pairwise([*order, order[0]]):
            near[int(a)].add(int(b))
            near[int(b)].add(int(a))
    return {c: frozenset(others - {c}) for c, others in near.items()}


def metropolis(near: Graph) -> dict[int, dict[int, float]]:
    """W_ij by client and neighbour, sorted; what is missing to 1 is the client's own weight."""
    return {
        c: {o: 1.0 / (1 + max(len(near[c]), len(near[o]))) for o in sorted(near[c])} for c in sorted(near)
    }


@part("algorithm")
def gossip(graph: Literal["ring", "random", "complete"] = "ring", degree: int = 4) -> Algorithm:
    """Clients average with their neighbours on a graph; nobody holds the model (Lian et al. 2017).

    `degree`: neighbours on the random graph, an even number; two may coincide.
    """
    if graph not in ("ring", "random", "complete"):
        raise ConfigError(f'graph is "ring", "random" or "complete", got {graph!r}')
    if degree < 2 or degree % 2:
        raise ConfigError(
            f"a random graph is made of rings: degree must be even and at least 2, got {degree}"
        )
    roles = Roles(partial(coordinator, graph, degree), client)
    values = {"graph": graph, **({"degree": degree} if graph == "random" else {})}
    return Algorithm("gossip", weigh="equal", protocol=roles, values=values)
