"""Secure sums of updates: the coordinator, and every edge on the way, see masked integers and one sum.

The steps are privacy/secure_sum.py's; here stand their two roles, between a round's cohort and its model:

    coordinator   keys -> shares -> train and mask -> sign -> open -> the sum, as real numbers
    client        answers each step; its update becomes integers, and the integers are masked

A client's update is weighted before it is rounded (integers.py), and its weight is summed under the same
masks, so that nobody learns how many rows it has.

Edges need not know any of this: they add integers and pass notes on, so the sum is the same over any tree.
A step that too few answer ends the attempt; the next one has fresh keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.aggregate import Aggregator, Partial, Points, Reply, Sum
from ..core.edge import Answer, Task, wire
from ..core.errors import AtollError, ConfigError, ProtocolError
from ..core.protocol import Party
from ..core.registry import part
from ..core.update import Layout, Update
from ..privacy import discrete, dp
from ..privacy.graph import threshold
from .exchange import TABLE, Seat
from .failure import reason
from .integers import Hidden, Read, Scale
from .quantise import dense
from .server import positive

if TYPE_CHECKING:
    from ..privacy.roster import Label
    from ..privacy.secure_sum import Secret
    from .algorithm import Algorithm
    from .local import Local
    from .rounds import Plan

ANY_WEIGHT = 2.0**20  # a job's max_weight where nobody has said one


class Step(msgspec.Struct, array_like=True):
    """What a note says: a step of which attempt, and what all members need for it."""

    step: Literal["keys", "shares", "mask", "sign", "open"]
    round: int
    attempt: int
    heaviest: float
    members: int
    text: bytes = b""


@dataclass(frozen=True)
class SecureSum:
    """See `secure_sum`."""

    bits: int = 32
    largest: float = 16.0
    least: int = 2
    attempts: int = 3
    colluders: int = 0
    shows: ClassVar[Literal["sum", "each"]] = "sum"

    # -- the coordinator's role --------------------------------------------------------------

    async def collect(
        self, p: Party, plan: Plan, task: Task, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> tuple[Answer, Aggregator]:
        """The sum over those who stay; an attempt that too few stay in is followed by another."""
        scale = self.scale(plan.algorithm, max(len(task.clients), 2), heaviest(plan))
        failed: dict[int, str] = {}
        for number in range(self.attempts):
            attempt = _Attempt(p, plan, task, scale, number, max(self.least, 2), failed)
            try:
                answer = await attempt.sum(quorum)
            except ProtocolError as error:
                failed = dict.fromkeys(task.clients, f"the secure sum was given up: {error}") | failed
            else:
                return answer, Read(scale=scale, plain=_plain(task))
        return Answer((), failed=failed), Read()

    def scale(self, algorithm: Algorithm, members: int, heaviest: float) -> Scale:
        """A round's, for so many members: with noise where the algorithm has some."""
        noise = dp.noisy(algorithm.chain)
        if noise is None:
            return Scale(self.bits, self.largest, members, heaviest)
        rows = dp.by_rows(algorithm.chain)
        hidden = Hidden(noise.sigma, noise.bound, self.colluders, rows)
        largest = self.largest if rows else min(self.largest, noise.bound)
        return Scale(self.bits, largest, members, 1.0, hidden)

    # -- the client's role -------------------------------------------------------------------

    def reply(self, local: Local, task: Task) -> Answer:
        """These clients' notes for a step; who cannot or may not take part says why."""
        step = read(task.note)
        notes: dict[int, bytes] = {}
        failed: dict[int, str] = {}
        for client in task.clients:
            try:
                notes[client] = _STEPS[step.step](self, local, client, step)
            except (AtollError, KeyError) as error:
                failed[client] = reason(error)
        return Answer(tuple(notes), notes or None, failed, sum(map(len, notes.values())))

    def outgoing(self, local: Local, task: Task, answer: Answer) -> Answer:
        """Replies as masked integers, all of weight 1 and without metrics."""
        step = read(task.note)
        if step.step != "mask":
            raise ProtocolError("this job's updates leave their clients masked: the task is for another step")
        scale = self.scale(local.algorithm, step.members, step.heaviest)
        replies = tuple(
            (client, self._masked(local, task, step, scale, client, reply))
            for client, reply in answer.replies
        )
        return replace(answer, replies=replies, sent=sum(wire(r.update) for _, r in replies))

    def _masked(self, local: Local, task: Task, step: Step, scale: Scale, client: int, reply: Reply) -> Reply:
        from ..privacy.secure_sum import mask, noise_key

        dense(reply.update, "secure_sum")
        secret = _secret(local.seat, client, step)

        def noise(size: int, whole: float) -> NDArray[np.int64]:
            crew = threshold(len(secret.members)) - self.colluders
            if crew < 1:
                raise ProtocolError(
                    f"of {len(secret.members)} members {self.colluders} may collude: too few others add noise"
                )
            return discrete.gaussian(noise_key(secret), size, discrete.spread(whole, 1.0, crew, size))

        rng = local.key.at("secure", client, task.round)
        numbers = scale.out(reply.update, reply.weight, rng, noise)
        secret, hidden = mask(secret, task.notes[client], numbers, self.bits)
        local.seat.keep(client, secret)
        return Reply(Update(scale.layout(reply.update.layout), hidden, bits=self.bits))


@dataclass
class _Attempt:
    """One attempt at a round's sum, at the coordinator."""

    p: Party
    plan: Plan
    task: Task
    scale: Scale
    number: int
    least: int
    failed: dict[int, str]
    sent: int = 0

    async def sum(self, quorum: int | None) -> Answer:
        """Raises ProtocolError where too few stay, or shares are false."""
        from ..privacy import secure_sum as ss
        from ..privacy.roster import Label

        keys = await self._notes("keys", self.task.clients)
        self._enough(keys, self.least, "sent keys")
        roster = ss.roster_of(Label(*self.plan.label, self.task.round, self.number), keys)
        shared = await self._notes("shares", roster.clients, ss.roster_out(roster))
        enough = max(self.least, threshold(len(roster.members)))
        self._enough(shared, enough, "shared their secrets")
        answer = await self._vectors(ss.routed(shared), quorum)
        self._enough(answer.clients, enough, "sent their vectors")
        there = ss.survivors_out(answer.clients)
        signatures = await self._notes("sign", answer.clients, there)
        self._enough(signatures, roster.threshold, "signed who is there")
        proof = msgspec.msgpack.encode((there, ss.signatures_out(signatures)))
        opened = await self._notes("open", sorted(signatures), proof)
        hidden: Partial = answer.partial

        def mended() -> Partial:
            numbers = ss.unmask(
                roster,
                hidden.sums[0],
                self.scale.bits,
                shared=shared,
                survivors=answer.clients,
                notes=opened,
            )
            return replace(hidden, sums=numbers[None, :])

        partial = await self.p.work(mended, share=0.0)
        lost = {c: why for c, why in self.failed.items() if c not in answer.clients}
        return replace(answer, partial=partial, failed=lost, sent=answer.sent + self.sent)

    async def _notes(self, step: Any, clients: Sequence[int], text: bytes = b"") -> dict[int, bytes]:
        task = replace(self.task.only(clients), want="note", points=None, note=self._note(step, text))
        answer = await self.plan.relay(self.p, task, TABLE)
        self.failed.update(answer.failed)
        self.sent += answer.sent
        return dict(answer.partial or {})

    async def _vectors(self, mail: Mapping[int, bytes], quorum: int | None) -> Answer:
        layout = self.scale.layout(_plain(self.task))
        points = Points(layout, (0,) * len(layout.leaves), 1.0, self.scale.members, wide=False)
        task = self.task.only(sorted(mail))
        task = replace(task, points=points, note=self._note("mask"), notes=dict(mail))
        answer = await self.plan.relay(self.p, task, Sum(points), quorum)
        self.failed.update(answer.failed)
        return answer

    def _note(self, step: Any, text: bytes = b"") -> bytes:
        what = Step(step, self.task.round, self.number, self.scale.heaviest, self.scale.members, text)
        return msgspec.msgpack.encode(what)

    def _enough(self, clients: Collection[int], least: int, did: str) -> None:
        if len(clients) < least:
            raise ProtocolError(f"{len(clients)} of {len(self.task.clients)} clients {did}: {least} must")


def _plain(task: Task) -> Layout:
    return task.params.layout if task.points is None else task.points.layout


def heaviest(plan: Plan) -> float:
    """The weight that counts as 1: what the job says, else the most rows that a client has."""
    if plan.algorithm.weigh == "equal":
        return 1.0
    if plan.sizes and plan.max_weight == ANY_WEIGHT:
        return float(max(plan.sizes))
    return plan.max_weight


# -- the client's steps ----------------------------------------------------------------------


def read(note: bytes) -> Step:
    """A note as a step. Raises ProtocolError."""
    try:
        step = msgspec.msgpack.decode(note, type=Step)
    except msgspec.DecodeError:
        raise ProtocolError(
            "this is no step of a secure sum: is the coordinator of another version?"
        ) from None
    if not (step.heaviest > 0 and step.heaviest < 2.0**60 and 2 <= step.members <= 1 << 20):
        raise ProtocolError("a step of a secure sum counts members and weights that cannot be")
    return step


def _label(seat: Seat, step: Step) -> Label:
    from ..privacy.roster import Label

    return Label(*seat.run, step.round, step.attempt)


def _secret(seat: Seat, client: int, step: Step) -> Secret:
    """What this client keeps of the step's attempt. Raises ProtocolError if that is another one."""
    secret: Secret | None = seat.secrets.get(client)
    if secret is None or secret.label != _label(seat, step):
        raise ProtocolError("this client has begun no such attempt at a secure sum, or it is over")
    return secret


def _keys(exchange: SecureSum, local: Local, client: int, step: Step) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    label, before = _label(seat, step), seat.secrets.get(client)
    if before is None or before.label != label:
        if before is not None and (before.label.round, before.label.attempt) >= (step.round, step.attempt):
            raise ProtocolError("this attempt at a secure sum is over: a later one has begun")
        again = before is not None and before.opened and before.label.round == step.round
        if again and local.algorithm.private:
            raise ProtocolError("this round's sum was opened: another one of it would cost privacy again")
        before = ss.begin(label, client, seat.draw, seat.sign)
        seat.keep(client, before)
    return ss.keys_out(before.keys)


def _shares(exchange: SecureSum, local: Local, client: int, step: Step) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    least = max(exchange.least, seat.least)
    secret = _secret(seat, client, step)
    secret, note = ss.share(secret, step.text, seat.draw, least=least, check=seat.check)
    seat.keep(client, secret)
    return note


def _sign(exchange: SecureSum, local: Local, client: int, step: Step) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    least = max(exchange.least, seat.least)
    secret, note = ss.sign(_secret(seat, client, step), step.text, seat.sign, least=least)
    seat.keep(client, secret)
    return note


def _open(exchange: SecureSum, local: Local, client: int, step: Step) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    try:
        there, signatures = msgspec.msgpack.decode(step.text, type=tuple[bytes, bytes])
    except msgspec.DecodeError:
        raise ProtocolError("this is no signed list of survivors") from None
    secret, note = ss.reveal(_secret(seat, client, step), there, signatures, check=seat.check)
    seat.keep(client, secret)
    return note


_STEPS: dict[str, Callable[[SecureSum, Local, int, Step], bytes]] = {
    "keys": _keys,
    "shares": _shares,
    "sign": _sign,
    "open": _open,
}


@part("exchange")
def secure_sum(
    bits: int = 32, largest: float = 16.0, least: int = 2, attempts: int = 3, colluders: int = 0
) -> SecureSum:
    """Only the sum of a round's updates is seen by anybody, the coordinator included (Bonawitz et al. 2017).

    `bits` (8 to 64): of each integer on the wire. `largest` > 0: magnitude of a single number of an update;
    what is larger is refused. `least`: the fewest clients that a sum is taken of, at least 2. `attempts`: how
    often a round begins again when too many drop out; more than two thirds of a cohort must stay.
    `colluders`: under a promise of privacy, how many of those who stay may tell the noise that they added.
    """
    positive(largest=largest)
    if not 8 <= bits <= 64:
        raise ConfigError(f"bits must be from 8 to 64, got {bits}")
    if least < 2:
        raise ConfigError(f"a sum of one is that one's update: least must be at least 2, got {least}")
    if attempts < 1:
        raise ConfigError(f"attempts must be at least 1, got {attempts}")
    if not 0 <= colluders < threshold(least):
        raise ConfigError(
            f"colluders must be from 0 to {threshold(least) - 1}, one less than must stay of {least} members"
            f" (least): got {colluders}"
        )
    return SecureSum(bits, float(largest), least, attempts, colluders)
