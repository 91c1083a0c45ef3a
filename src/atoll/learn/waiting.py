"""Buffers of which only the sum is seen: updates wait at their clients until enough are ready.

A secure sum needs its members before anything is masked, and in a buffer (buffered.py) nobody knows them
before the last one is done. So a client that has trained keeps its update and says only that it is ready:

    coordinator   post a model to each -> `size` are ready -> one attempt at the sum of exactly these -> step
    client        trains, keeps D_i and its model's version v_i, answers "ready", which is nothing but that;
                  in step t of the server gives s(t - v_i) D_i, as the exchange hides it

Others go on training meanwhile. Who drops out of the attempt is drawn again, and its update is lost. When too
few stay, the others remain ready, and the next attempt is made once the buffer is full again. A step divides
by `size` however many stayed.

An update is spent once its client has vouched for a list that it is in, whether the sum was opened or not: so
no update is in two sums. A client works out its own update's age, as everybody could.

So, Ali, Güler, Avestimehr 2021, "Secure aggregation for buffered asynchronous federated learning", mask
before it is known who is in the sum, by masks that cancel out across rounds: another scheme, where waiting
needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.aggregate import Aggregator, Points, Reply
from ..core.edge import Answer, Task, lifted
from ..core.errors import AtollError, ProtocolError, QuorumError
from ..core.update import Layout, Update
from .buffered import Buffer, Fleet
from .failure import reason
from .quantise import dense
from .rounds import PATIENCE, Progress, why

if TYPE_CHECKING:
    from .local import Local

NOTHING = Layout(())
_NO_MODEL = Update.of({})


class Waiting(NamedTuple):
    """An update that waits at its client, learnt from the model of step `version`; of `weight` 1, or 0 where
    it was learnt from nothing.
    """

    version: int
    update: Update
    weight: float


# -- the coordinator's side ------------------------------------------------------------------


@dataclass
class Ready(Fleet):
    """A fleet whose clients come back with nothing but that they are ready. `tries`: attempts at the sum of
    the step `step`.
    """

    step: int = -1
    tries: int = 0

    def task(self, now: Progress, client: int, below: tuple[int, ...]) -> Task:
        """As any fleet's, but for the answer: an update without numbers, that counts as one."""
        points = Points(NOTHING, (), 1.0, self.rule.size, wide=False)
        return replace(super().task(now, client, below), points=points, cohort=tuple(range(self.rule.size)))

    def update(self, now: Progress, task: Task, answer: Answer) -> Reply:
        """No numbers, of weight 1."""
        return Reply(_NO_MODEL)

    async def total(self, now: Progress, buffer: Buffer) -> tuple[Answer, Aggregator] | None:
        """The sum over who stays of those who are ready."""
        exchange: Any = self.plan.algorithm.exchange
        if self.step != now.round:
            self.step, self.tries = now.round, 0
        members, key = tuple(sorted(buffer.used)), self.p.key.at("round", now.round)
        points = self.points(now, self.rule.size)
        task = Task(now.round, key, members, (-1,) * len(members), _NO_MODEL, points, members)
        failed: dict[int, str] = {}
        attempt = exchange.attempt(self.p, self.plan, task, self.aggregator, self.tries, failed)
        self.tries += 1
        try:
            answer: Answer = await attempt.sum(None)
        except ProtocolError as error:
            given_up = f"its sum was given up: {error}"
            buffer.lose(dict.fromkeys(attempt.listed, given_up) | failed)
            if self.tries >= PATIENCE * exchange.attempts:
                raise QuorumError(
                    f"{self.tries} sums of buffers in a row were given up, the last one because {error}."
                    f" {why(buffer.failed)}"
                ) from None
            return None
        buffer.lose(answer.failed)
        buffer.up += answer.sent
        return answer, exchange.reading(self.plan, task)


# -- the client's side -----------------------------------------------------------------------


def keep(local: Local, task: Task, answer: Answer) -> Answer:
    """Replies stay here, in place of any that waited; what leaves is that their clients are ready."""
    failed = dict(answer.failed)
    bits = local.algorithm.exchange.bits_of(local.algorithm, None)
    ready: list[tuple[int, Reply]] = []
    for client, reply in answer.replies:
        try:
            dense(reply.update, "a sum that nobody sees into")
        except AtollError as error:
            failed[client] = reason(error)
            continue
        local.waiting[client] = Waiting(task.round, reply.update, float(reply.weight > 0))
        ready.append((client, Reply(Update(NOTHING, np.empty(0, np.uint64), bits=bits))))
    return Answer(tuple(c for c, _ in ready), None, failed, 0, tuple(ready))


def give(local: Local, task: Task) -> Answer:
    """What waits here, weighed by its age, as the exchange hides it; who has nothing says so."""
    buffer = local.algorithm.buffer
    assert buffer is not None  # noqa: S101  asked by `Local.answer`
    replies: list[tuple[int, Reply]] = []
    failed: dict[int, str] = {}
    for client in task.clients:
        found = local.waiting.get(client)
        if found is None or found.version > task.round:
            failed[client] = "no update of this client's waits to be summed in this step"
            continue
        weight = found.weight * buffer.say(task.round - found.version)
        replies.append((client, Reply(found.update, weight)))
    answer = Answer(tuple(c for c, _ in replies), None, failed, 0, tuple(replies))
    answer = local.algorithm.exchange.outgoing(local, task, answer)
    return answer if local.raw else lifted(local.aggregator(task), answer)
