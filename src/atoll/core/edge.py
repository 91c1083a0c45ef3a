"""From one task to one answer, wherever it happens: a device, a lane of the simulator, an edge.

A task names the clients it is for. Whoever holds their data trains them (`contribute`); whoever
stands above asks its children and merges (`relay`). A device alone answers with its reply as it
is, a float32 number in 4 bytes; whoever receives it lifts it. Everybody else answers with a
partial. Lifting here or there is the same, so a tree of any depth gives the bytes of a flat federation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .aggregate import Aggregator, Points, Reply, fold, own
from .errors import ProtocolError
from .message import Contribution
from .protocol import Party
from .rng import Rng
from .transform import Context, Transform
from .update import Update

LOST, UNASKED = "out of reach: ", "nobody answered for it"  # begin reasons of those who heard no question
TRIES = 3  # times a client is asked under one child


@dataclass(frozen=True, slots=True)
class Task:
    """What a round asks of some clients.

    `key`: the round's random stream, known to all. `used[i]`: the last round whose aggregate holds
    clients[i]'s contribution, -1 for none; a client commits the state it staged then and drops any
    other. `points`: the round's binary points. `cohort`: everybody who was asked. `want`: train, only
    evaluate, or answer a step of the exchange that sums the updates: `note` is to all, `notes` to each.
    """

    round: int
    key: Rng
    clients: tuple[int, ...]
    used: tuple[int, ...]
    params: Update
    points: Points | None = None
    cohort: tuple[int, ...] = ()
    want: Literal["fit", "evaluate", "note"] = "fit"
    note: bytes = b""
    notes: Mapping[int, bytes] = field(default_factory=dict)

    def only(self, clients: Sequence[int]) -> Task:
        """The same task for some of its clients."""
        used = dict(zip(self.clients, self.used, strict=True))
        notes = {c: self.notes[c] for c in clients if c in self.notes}
        return replace(self, clients=tuple(clients), used=tuple(used[c] for c in clients), notes=notes)


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
    """Bytes of an update's numbers on the wire: what it says is `sent`, its ring's packed bits, or all."""
    packed = -(-update.layout.size * update.bits // 8) if update.bits else getattr(update, "sent", None)
    numbers = packed or update.buffer.nbytes
    return numbers + sum(r.ids.nbytes + r.values.nbytes for r in update.rows.values())


def contribute(
    made: Sequence[tuple[int, Contribution]],
    algorithm: Transform,
    states: Mapping[int, Any],
    aggregator: Aggregator | None,
    task: Task,
    key: Rng,
) -> tuple[Answer, dict[int, Any]]:
    """Take contributions (at least one) out through the chain and fold them; without an aggregator
    they stay replies.

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
    clients, sent = tuple(client for client, _ in made), sum(wire(r.update) for _, r in replies)
    answer = Answer(clients, None, {}, sent, tuple(replies))
    return answer if aggregator is None else lifted(aggregator, answer), after


def lifted(aggregator: Aggregator, answer: Answer, into: Any = None) -> Answer:
    """The answer as a partial, whichever form it came in, together with `into`, one of the caller's own.

    Raises what `lift` and `merge` raise.
    """
    partial = answer.partial
    if answer.replies:
        partial = fold(aggregator, answer.replies, into)
    elif into is not None:
        partial = aggregator.merge(into, partial, **own(aggregator)) if answer.clients else into
    return replace(answer, partial=partial, replies=())


def merge_answers(aggregator: Aggregator | None, a: Answer, b: Answer) -> Answer:
    """Both answers as one partial, for which `a`'s is used up; without an aggregator both hold
    replies, and keep them.
    """
    both = b if aggregator is None else lifted(aggregator, b, lifted(aggregator, a).partial)
    replies = a.replies + b.replies if aggregator is None else ()
    return Answer(a.clients + b.clients, both.partial, {**a.failed, **b.failed}, a.sent + b.sent, replies)


async def relay(
    p: Party,
    task: Task,
    children: Mapping[str, Sequence[int]],
    aggregator: Aggregator,
    *,
    quorum: int | None = None,
    deadline: float | None = None,
    rehome: float = 0.0,
) -> Answer:
    """Pass the task to the children that hold its clients, merge what they answer.

    An edge answers its parent so; the coordinator is the edge without a parent.
    `children` may change meanwhile: a client whose answer is missing and who by then stands under
    another child is asked again there, for the same task, and counts once. One who never heard the
    question (a reason that begins with LOST) is asked again where it stands, be it under the same child,
    TRIES times in all; one who was lost and stands nowhere is waited for, up to `rehome` seconds. A driver
    that replays a role gives children with a method `again()`, the mapping to ask again by.
    """
    began, answer = p.now, Answer(())
    asked: Counter[tuple[str, int]] = Counter()
    spent: set[tuple[str, int]] = set()

    def join(so_far: Answer | None, peer: str, body: Answer) -> Answer:
        if strange := set(body.clients).difference(messages[peer].clients):
            raise ProtocolError(f"{peer} answers for client {min(strange)}, for whom it was not asked")
        named = [c for c, _ in body.replies]
        if len(set(named).intersection(body.clients)) < len(named):
            raise ProtocolError(f"{peer} answers twice for one client, or for one that it does not name")
        return merge_answers(aggregator, so_far or Answer(()), body)

    again = getattr(children, "again", lambda: children)
    while (messages := _under(again() if asked else children, task, answer.clients, spent)) or not asked:
        left = None if deadline is None else max(began + deadline - p.now, 0.0)
        need = None if quorum is None or asked else min(quorum, len(messages))
        answers = await p.ask(messages, quorum=need, deadline=left, fold=join)
        lost = {c: why for child, why in answers.missing.items() for c in messages[child].clients}
        answer = replace(answer, failed={**answer.failed, **lost})
        answer = merge_answers(aggregator, answer, answers.folded or Answer(()))
        asked.update((child, c) for child, its in messages.items() for c in its.clients)
        lost |= {c: why for c, why in answer.failed.items() if c not in answer.clients and LOST in why}
        spent = {pair for pair, times in asked.items() if times >= TRIES or LOST not in lost.get(pair[1], "")}
        if not asked or (need is not None and answers.enough):
            break
        until = p.now + rehome
        while p.now < until and set(lost).difference(*again().values()):
            await p.sleep(rehome / 8)
    failed = {**dict.fromkeys(set(task.clients), UNASKED), **answer.failed}
    return replace(answer, failed={c: why for c, why in failed.items() if c not in answer.clients})


def _under(
    children: Mapping[str, Sequence[int]], task: Task, done: Sequence[int], spent: Collection[tuple[str, int]]
) -> dict[str, Task]:
    """The task for every child that holds some of its clients, each client once."""
    wanted, messages = set(task.clients).difference(done), {}
    for child, clients in children.items():
        if mine := [c for c in clients if c in wanted and (child, c) not in spent]:
            messages[child] = task.only(mine)
            wanted.difference_update(mine)
    return messages
