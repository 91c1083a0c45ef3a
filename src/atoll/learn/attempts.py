"""What the sums that show no single update share: attempts at the coordinator, notes and keys at the clients.

`secure_sum` (secure.py) and `encrypted_sum` (encrypted.py) say what their steps are; here stands what a step
costs when it fails, who may begin an attempt and when one is over. `what`: "secure sum" or "encrypted sum".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.aggregate import Aggregator, Points, Reply
from ..core.edge import Answer, Task, wire
from ..core.errors import AtollError, ProtocolError
from ..core.protocol import Party
from ..core.rng import Rng
from ..core.update import Layout
from ..wire.coded import Drawn
from .compress import places_of
from .exchange import TABLE
from .failure import reason
from .integers import Noise, Scale, share_of
from .quantise import dense

if TYPE_CHECKING:
    from ..privacy.roster import Label
    from ..privacy.secure_sum import Secret
    from .algorithm import Algorithm
    from .exchange import Exchange
    from .local import Local
    from .rounds import Plan

ANY_WEIGHT = 2.0**20  # a job's max_weight where nobody has said one


class Step(Protocol):
    """What every step's note says: of which round and attempt, for how many members, and what weighs 1."""

    round: int
    attempt: int
    heaviest: float
    members: int


S = TypeVar("S", bound=Step)


# -- the coordinator's side ------------------------------------------------------------------


@dataclass(kw_only=True)
class Attempt:
    """One attempt at a round's sum. `failed`: reasons so far, by client; `sent`: bytes of notes; `listed`:
    who was in a list that members were asked to vouch for.
    """

    p: Party
    plan: Plan
    task: Task
    scale: Scale
    number: int
    failed: dict[int, str]
    sent: int = 0
    listed: tuple[int, ...] = ()

    def label(self, group: int = 0) -> Label:
        """What binds all that is made for this attempt."""
        from ..privacy.roster import Label

        algorithm = self.plan.algorithm
        place = (*self.plan.label, self.task.round, self.number, group)
        return Label(*place, algorithm.crypto, *graph(algorithm.exchange))

    async def noted(self, task: Task) -> dict[int, bytes]:
        """The notes that clients answer a step with."""
        answer = await self.plan.relay(self.p, replace(task, want="note", points=None), TABLE)
        self.failed.update(answer.failed)
        self.sent += answer.sent
        return dict(answer.partial or {})

    async def summed(
        self, task: Task, layout: Layout, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> Answer:
        """The sum of integers of a ring, laid out so, that clients answer a task to train with."""
        points = Points(layout, (0,) * len(layout.leaves), 1.0, self.scale.members, wide=False)
        task = replace(task, points=points)
        answer = await self.plan.relay(self.p, task, rule(task), quorum)
        self.failed.update(answer.failed)
        return answer


async def tried(
    task: Task, attempts: int, what: str, once: Callable[[int, dict[int, str]], Awaitable[Answer]]
) -> Answer:
    """What `once(number, failed)` answers; one that is given up is followed by another, so many in all."""
    failed: dict[int, str] = {}
    for number in range(attempts):
        try:
            return await once(number, failed)
        except ProtocolError as error:
            failed = dict.fromkeys(task.clients, f"the {what} was given up: {error}") | failed
    return Answer((), failed=failed)


def plain(task: Task) -> Layout:
    """The leaves of an update as it leaves its client's chain."""
    return task.params.layout if task.points is None else task.points.layout


def graph(exchange: Exchange) -> tuple[float, ...]:
    """The shares of corrupt and of lost members that its graph is made for, where it has one."""
    return getattr(exchange, "graph", ())


def drawn(algorithm: Algorithm, size: int, round: int) -> Drawn | None:
    """The places whose numbers travel, of an update of `size` numbers; None for all. What waits for a buffer
    was learnt in different rounds, each with places of its own: one sum of these has them all.
    """
    return None if algorithm.buffer is not None else places_of(algorithm.chain, size, round)


def heaviest(plan: Plan) -> float:
    """The weight that counts as 1: what the job says, else the most rows that a client has."""
    if plan.algorithm.weigh == "equal":
        return 1.0
    if plan.sizes and plan.max_weight == ANY_WEIGHT:
        return float(max(plan.sizes))
    return plan.max_weight


# -- the client's side -----------------------------------------------------------------------


def read(note: bytes, kind: type[S], what: str) -> S:
    """A note as a step. Raises ProtocolError."""
    try:
        step = msgspec.msgpack.decode(note, type=kind)
    except msgspec.DecodeError:
        raise ProtocolError(f"this is no step of {what}: is the coordinator of another version?") from None
    if not (0 < step.heaviest < 2.0**60 and 2 <= step.members <= 1 << 20):
        raise ProtocolError(f"a step of {what} counts members and weights that cannot be")
    return step


def notes(clients: Sequence[int], take: Callable[[int], bytes]) -> Answer:
    """Each client's note for a step; who cannot or may not take part says why."""
    found: dict[int, bytes] = {}
    failed: dict[int, str] = {}
    for client in clients:
        try:
            found[client] = take(client)
        except (AtollError, KeyError) as error:
            failed[client] = reason(error)
    return Answer(tuple(found), found or None, failed, sum(map(len, found.values())))


Integers: TypeAlias = Callable[[int, Reply, Scale, Rng, Noise], NDArray[np.uint64]]


def honest(client: int, reply: Reply, scale: Scale, rng: Rng, noise: Noise) -> NDArray[np.uint64]:
    """A client's integers as the protocol asks for them. Nobody can check what is under a mask: what others
    may put there instead is attack/poison.py's.
    """
    return scale.out(reply.update, reply.weight, rng, noise)


def hidden(
    how: Any,
    local: Local,
    task: Task,
    step: Any,
    answer: Answer,
    hide: Callable[[Local, Task, Any, Scale, int, Reply, Integers], Reply],
    integers: Integers,
) -> Answer:
    """An answer whose replies are hidden, each by its client and in integers of this step's scale; whose
    cannot be says why. `how`: the exchange.
    """
    replies: list[tuple[int, Reply]] = []
    failed = dict(answer.failed)
    for client, reply in answer.replies:
        try:
            dense(reply.update, how.called)
            size = reply.update.layout.size
            scale = how.scale(local.algorithm, step.members, step.heaviest, size, task.round)
            replies.append((client, hide(local, task, step, scale, client, reply, integers)))
        except AtollError as error:
            failed[client] = local.said(error)
    sent = sum(wire(reply.update) for _, reply in replies)
    return Answer(tuple(c for c, _ in replies), None, failed, sent, tuple(replies))


def label(local: Local, step: Step, group: int = 0) -> Label:
    """What binds all that is made for a step's attempt, in the suite that the signed job names."""
    from ..privacy.roster import Label

    algorithm = local.algorithm
    place = (*local.seat.run, step.round, step.attempt, group)
    return Label(*place, algorithm.crypto, *graph(algorithm.exchange))


def kept(local: Local, client: int, step: Step, what: str, group: int = 0) -> Secret:
    """What this client keeps of the step's attempt. Raises ProtocolError if that is another one."""
    secret: Secret | None = local.seat.secrets.get(client)
    if secret is None or secret.label != label(local, step, group):
        raise ProtocolError(f"this client has begun no such attempt at {what}, or it is over")
    return secret


def keys(local: Local, client: int, step: Step, what: str, group: int = 0) -> bytes:
    """This client's keys for an attempt, the same ones however often it is asked.

    Raises ProtocolError for an attempt that is over, where nothing waits to be summed, and under a promise of
    privacy for a round whose sum was opened.
    """
    from ..privacy import secure_sum as ss

    seat = local.seat
    mine, before = label(local, step, group), seat.secrets.get(client)
    if before is None or before.label != mine:
        if before is not None and (before.label.round, before.label.attempt) >= (step.round, step.attempt):
            raise ProtocolError(f"this attempt at {what} is over: a later one has begun")
        again = before is not None and before.opened and before.label.round == step.round
        if again and local.algorithm.private:
            raise ProtocolError("this round's sum was opened: another one of it would cost privacy again")
        if local.algorithm.buffer and client not in local.waiting:
            raise ProtocolError("no update of this client's waits to be summed")
        before = ss.begin(mine, client, seat.draw, seat.sign)
        seat.keep(client, before)
    return ss.keys_out(before.keys)


def named(local: Local, secret: Secret, reply: Reply) -> Secret:
    """The secret once it knows by what name its client's update goes; "" for one that says nothing.

    An update that waits is the same one at any age, whatever it weighs by then.
    """
    numbers = reply.update.buffer
    if not numbers.any():
        return secret
    weight = 1.0 if local.algorithm.buffer else reply.weight
    made = blake2b(repr(weight).encode(), digest_size=32)
    made.update(numbers.view(np.uint8).data)
    return replace(secret, update=made.digest())


def vouched(local: Local, secret: Secret, there: Collection[int]) -> None:
    """Raise PrivacyError where this client's update was in a sum of others than those who are `there`.

    Under a promise of privacy each sum has noise of its own, and is paid for. One that waited for a sum does
    not wait for another.
    """
    from ..privacy.certificate import member_of

    vouch = local.seat.vouch
    if vouch is not None and not local.algorithm.private and secret.update:
        of = secret.roster.of
        names = [member_of(of[c].chain).name if of[c].chain else str(c) for c in there if c in of]
        vouch(secret.update, sorted(names))
    local.waiting.pop(secret.keys.client, None)


def noise(secret: Secret, scale: Scale) -> Noise:
    """A member's part of the noise of all who must stay, less those who may tell theirs."""
    from ..privacy.secure_sum import noise_key

    suite = secret.label.suite

    def ours(size: int, whole: float) -> NDArray[np.int64]:
        assert scale.noise is not None  # noqa: S101  asked by `Scale.out`
        crew = scale.noise.crew(members := len(secret.members))
        if crew < 1:
            raise ProtocolError(
                f"of {members} members {scale.noise.colluders} may collude: too few others add noise"
            )
        return share_of(noise_key(secret), crew, suite.stream)(size, whole)

    return ours
