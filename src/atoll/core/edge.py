"""From one task to one answer, wherever it happens: a device, a lane of the simulator, an edge.

A task names the clients it is for. Whoever holds their data trains them (`contribute`); whoever
stands above asks its children and merges (`relay`). Both answer with the same kind of partial,
so a tree of any depth gives the bytes of a flat federation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .aggregate import Aggregator, Points, Reply, fold
from .message import Contribution
from .protocol import Party
from .rng import Rng
from .transform import Context, Transform
from .update import Update


@dataclass(frozen=True, slots=True)
class Task:
    """What a round asks of some clients.

    `key`: the round's random stream, known to all. `used[i]`: the last round whose aggregate holds
    clients[i]'s contribution, -1 for none; a client commits the state it staged then and drops any
    other. `points`: the round's binary points. `cohort`: everybody who was asked. `want`: train, or
    only evaluate.
    """

    round: int
    key: Rng
    clients: tuple[int, ...]
    used: tuple[int, ...]
    params: Update
    points: Points | None = None
    cohort: tuple[int, ...] = ()
    want: Literal["fit", "evaluate"] = "fit"

    def only(self, clients: Sequence[int]) -> Task:
        """The same task for some of its clients."""
        used = dict(zip(self.clients, self.used, strict=True))
        return replace(self, clients=tuple(clients), used=tuple(used[c] for c in clients))


@dataclass(frozen=True, slots=True)
class Answer:
    """A partial and the clients in it, or their `replies` as they left each; never both.

    `failed` names those that could not, with the reason. `sent`: bytes these clients put on the
    wire as updates, whoever merged them since. An answer is given away: who merges it may write into it.
    """

    clients: tuple[int, ...]
    partial: Any = None
    failed: Mapping[int, str] = field(default_factory=dict)
    sent: int = 0
    replies: tuple[tuple[int, Reply], ...] = ()


def wire(update: Update) -> int:
    """Bytes of an update's numbers on the wire: its own precision, or its ring's packed bits."""
    numbers = -(-update.layout.size * update.bits // 8) if update.bits else update.buffer.nbytes
    return numbers + sum(r.ids.nbytes + r.values.nbytes for r in update.rows.values())


def contribute(
    made: Sequence[tuple[int, Contribution]],
    algorithm: Transform,
    states: Mapping[int, Any],
    aggregator: Aggregator,
    task: Task,
    key: Rng,
) -> tuple[Answer, dict[int, Any]]:
    """Take contributions (at least one) out through the chain and fold them.

    Returns the answer and each client's next chain state, where the chain keeps one.
    """
    replies, after = [], {}
    silent = algorithm.silent
    for client, c in made:
        update = c.update
        if not silent:
            ctx = Context(
                key.at("out", client, task.round), task.round, c.weight, 1, len(task.cohort), c.steps
            )
            state = states.get(client) or algorithm.start(task.params, "out")
            update, after[client] = algorithm.out(update, state, ctx)
        replies.append((client, Reply(update, c.weight, c.metrics)))
    clients = tuple(client for client, _ in made)
    return Answer(clients, fold(aggregator, replies), {}, sum(wire(r.update) for _, r in replies)), after


def merge_answers(aggregator: Aggregator, a: Answer, b: Answer) -> Answer:
    """Both answers as one; an answer nobody is in has no partial to merge."""
    partials = [answer.partial for answer in (a, b) if answer.clients]
    partial = aggregator.merge(*partials) if len(partials) > 1 else next(iter(partials), None)
    return Answer(a.clients + b.clients, partial, {**a.failed, **b.failed}, a.sent + b.sent)


async def relay(
    p: Party,
    task: Task,
    children: Mapping[str, Sequence[int]],
    aggregator: Aggregator,
    *,
    quorum: int | None = None,
    deadline: float | None = None,
) -> Answer:
    """Pass the task to the children that hold its clients, merge what they answer.

    An edge answers its parent so; the coordinator is the edge without a parent.
    """
    wanted = set(task.clients)
    messages = {}
    for child, clients in children.items():
        mine = [c for c in clients if c in wanted]
        if mine:
            messages[child] = task.only(mine)

    def join(so_far: Answer | None, _peer: str, body: Answer) -> Answer:
        return body if so_far is None else merge_answers(aggregator, so_far, body)

    answers = await p.ask(messages, quorum=quorum, deadline=deadline, fold=join)
    answer: Answer = answers.folded or Answer((), None)
    lost = {c: reason for child, reason in answers.missing.items() for c in messages[child].clients}
    return replace(answer, failed={**answer.failed, **lost})
