"""Secure sums of updates: the coordinator, and every edge on the way, see masked integers and one sum.

The steps are privacy/secure_sum.py's; here stand their two roles, between a round's cohort and its model:

    coordinator   keys -> shares -> train and mask -> sign -> open -> the sum, as real numbers
    client        answers each step; its update becomes integers, and the integers are masked

A client's update is weighted before it is rounded (integers.py), and its weight is summed under the same
masks, so that nobody learns how many rows it has.

Under `Buckets` every bucket is a secure sum of its own, all in step, and the rule sees the buckets' means.

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

from ..core.aggregate import Aggregator, Partial, Points, Reply
from ..core.edge import Answer, Task, wire
from ..core.errors import AtollError, ConfigError, ProtocolError
from ..core.protocol import Party
from ..core.registry import part
from ..core.update import Layout, Update
from ..privacy import discrete, dp
from ..privacy.graph import threshold
from .exchange import TABLE, Seat
from .failure import reason
from .integers import Counted, Hidden, Read, Scale
from .quantise import dense
from .robust import Buckets
from .server import positive

if TYPE_CHECKING:
    from ..privacy.roster import Label
    from ..privacy.secure_sum import Secret
    from .algorithm import Algorithm
    from .local import Local
    from .rounds import Plan

ANY_WEIGHT = 2.0**20  # a job's max_weight where nobody has said one


class Step(msgspec.Struct, array_like=True):
    """What a note says: a step of which attempt, and what all members need for it.

    `groups`: who is summed with whom, and what each group is told; one group where there are no buckets.
    """

    step: Literal["keys", "shares", "mask", "sign", "open"]
    round: int
    attempt: int
    heaviest: float
    members: int
    groups: dict[int, tuple[list[int], bytes]]

    def of(self, client: int) -> tuple[int, bytes]:
        """The group that a client is in, and what it is told. Raises ProtocolError if there is none."""
        for group, (clients, text) in self.groups.items():
            if client in clients:
                return group, text
        raise ProtocolError("a step of a secure sum came to a client that is in none of its groups")


@dataclass(frozen=True)
class SecureSum:
    """See `secure_sum`."""

    bits: int = 32
    largest: float = 16.0
    least: int = 2
    attempts: int = 3
    colluders: int = 0
    shows: ClassVar[Literal["sum", "each"]] = "sum"
    blind: ClassVar[bool] = True

    # -- the coordinator's role --------------------------------------------------------------

    async def collect(
        self, p: Party, plan: Plan, task: Task, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> tuple[Answer, Aggregator]:
        """The sum over those who stay; an attempt that too few stay in is followed by another."""
        plain = _plain(task)
        buckets = rule(task)
        groups = _groups(task.clients, buckets)
        scale = self.scale(plan.algorithm, max(2, *map(len, groups.values())), heaviest(plan))
        reading = Read(scale=scale, plain=plain)
        finishing = Counted(replace(buckets, inner=reading)) if isinstance(buckets, Buckets) else reading
        failed: dict[int, str] = {}
        for number in range(self.attempts):
            attempt = _Attempt(p, plan, task, scale, rule, number, max(self.least, 2), groups, failed)
            try:
                answer = await attempt.sum(quorum)
            except ProtocolError as error:
                failed = dict.fromkeys(task.clients, f"the secure sum was given up: {error}") | failed
            else:
                return answer, finishing
        return Answer((), failed=failed), reading

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
                group, text = step.of(client)
                notes[client] = _STEPS[step.step](self, local, client, step, group, text)
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
        secret = _secret(local.seat, client, step, step.of(client)[0])

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
    """One attempt at a round's sum, at the coordinator: all groups in step. A group that too few stay in is
    left out; where none is left the attempt is over.
    """

    p: Party
    plan: Plan
    task: Task
    scale: Scale
    rule: Callable[[Task], Aggregator]
    number: int
    least: int
    groups: Mapping[int, Sequence[int]]
    failed: dict[int, str]
    sent: int = 0

    async def sum(self, quorum: int | None) -> Answer:
        """Raises ProtocolError where too few stay, or shares are false."""
        from ..privacy import secure_sum as ss
        from ..privacy.roster import Label

        first = await self._notes("keys", {g: (clients, b"") for g, clients in self.groups.items()})
        keys = self._enough(first, dict.fromkeys(self.groups, self.least), "sent keys")
        names = {g: Label(*self.plan.label, self.task.round, self.number, g) for g in keys}
        rosters = {g: ss.roster_of(names[g], notes) for g, notes in keys.items()}
        enough = {g: max(self.least, threshold(len(r.members))) for g, r in rosters.items()}
        asked = {g: (r.clients, ss.roster_out(r)) for g, r in rosters.items()}
        shared = self._enough(await self._notes("shares", asked), enough, "shared their secrets")
        answer = await self._vectors({c: m for s in shared.values() for c, m in ss.routed(s).items()}, quorum)
        there = self._enough(dict.fromkeys(answer.clients, b""), enough, "sent their vectors", shared)
        lists = {g: ss.survivors_out(clients) for g, clients in there.items()}
        signed = await self._notes("sign", {g: (tuple(there[g]), lists[g]) for g in there})
        enough = {g: rosters[g].threshold for g in there}
        signatures = self._enough(signed, enough, "signed who is there")
        proofs = {
            g: (tuple(s), msgspec.msgpack.encode((lists[g], ss.signatures_out(s))))
            for g, s in signatures.items()
        }
        opened = self._enough(await self._notes("open", proofs), enough, "opened their shares")

        def mended() -> Any:
            parts = {}
            for g, notes in opened.items():
                hidden = _part(answer.partial, g)
                made = ss.unmask(
                    rosters[g],
                    hidden.sums[0],
                    self.scale.bits,
                    shared=shared[g],
                    survivors=there[g],
                    notes=notes,
                )
                parts[g] = replace(hidden, sums=made[None, :])
            return parts if isinstance(answer.partial, dict) else parts[0]

        partial = await self.p.work(mended, share=0.0)
        stayed = tuple(c for c in answer.clients if any(c in there[g] for g in opened))
        lost = {c: why for c, why in self.failed.items() if c not in stayed}
        return replace(answer, clients=stayed, partial=partial, failed=lost, sent=answer.sent + self.sent)

    async def _notes(self, step: Any, groups: Mapping[int, tuple[Sequence[int], bytes]]) -> dict[int, bytes]:
        clients = sorted(c for members, _ in groups.values() for c in members)
        note = self._note(step, groups)
        task = replace(self.task.only(clients), want="note", points=None, note=note)
        answer = await self.plan.relay(self.p, task, TABLE)
        self.failed.update(answer.failed)
        self.sent += answer.sent
        return dict(answer.partial or {})

    async def _vectors(self, mail: Mapping[int, bytes], quorum: int | None) -> Answer:
        layout = self.scale.layout(_plain(self.task))
        points = Points(layout, (0,) * len(layout.leaves), 1.0, self.scale.members, wide=False)
        note = self._note("mask", {g: (clients, b"") for g, clients in self.groups.items()})
        task = replace(self.task.only(sorted(mail)), points=points, note=note, notes=dict(mail))
        answer = await self.plan.relay(self.p, task, self.rule(task), quorum)
        self.failed.update(answer.failed)
        return answer

    def _note(self, step: Any, groups: Mapping[int, tuple[Sequence[int], bytes]]) -> bytes:
        told = {g: (list(clients), text) for g, (clients, text) in groups.items()}
        return msgspec.msgpack.encode(
            Step(step, self.task.round, self.number, self.scale.heaviest, self.scale.members, told)
        )

    def _enough(
        self,
        found: Mapping[int, bytes],
        least: Mapping[int, int],
        did: str,
        among: Mapping[int, Collection[int]] | None = None,
    ) -> dict[int, dict[int, bytes]]:
        """What came by group, of the groups from which enough came. Raises ProtocolError for none."""
        by = {
            g: {c: found[c] for c in self.groups[g] if c in found and (among is None or c in among[g])}
            for g in (least if among is None else among)
        }
        held = {g: notes for g, notes in by.items() if len(notes) >= least[g]}
        for g in by.keys() - held.keys():
            few = f"{len(by[g])} of {len(self.groups[g])} clients {did}: {least[g]} must"
            self.failed.update(dict.fromkeys(by[g], f"its secure sum was given up: {few}"))
        if not held:
            most = max(by, key=lambda g: len(by[g]))
            raise ProtocolError(
                f"{len(by[most])} of {len(self.groups[most])} clients {did}: {least[most]} must"
            )
        return held


def _groups(clients: Sequence[int], rule: Aggregator) -> dict[int, list[int]]:
    """Who is summed with whom: all with all, or the buckets."""
    if not isinstance(rule, Buckets):
        return {0: list(clients)}
    groups: dict[int, list[int]] = {}
    for client in clients:
        groups.setdefault(rule.place[client], []).append(client)
    return groups


def _part(partial: Any, group: int) -> Partial:
    found: Partial = partial[group] if isinstance(partial, dict) else partial
    return found


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


def _label(seat: Seat, step: Step, group: int) -> Label:
    from ..privacy.roster import Label

    return Label(*seat.run, step.round, step.attempt, group)


def _secret(seat: Seat, client: int, step: Step, group: int) -> Secret:
    """What this client keeps of the step's attempt. Raises ProtocolError if that is another one."""
    secret: Secret | None = seat.secrets.get(client)
    if secret is None or secret.label != _label(seat, step, group):
        raise ProtocolError("this client has begun no such attempt at a secure sum, or it is over")
    return secret


def _keys(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    label, before = _label(seat, step, group), seat.secrets.get(client)
    if before is None or before.label != label:
        if before is not None and (before.label.round, before.label.attempt) >= (step.round, step.attempt):
            raise ProtocolError("this attempt at a secure sum is over: a later one has begun")
        again = before is not None and before.opened and before.label.round == step.round
        if again and local.algorithm.private:
            raise ProtocolError("this round's sum was opened: another one of it would cost privacy again")
        before = ss.begin(label, client, seat.draw, seat.sign)
        seat.keep(client, before)
    return ss.keys_out(before.keys)


def _shares(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    least = max(exchange.least, seat.least)
    secret = _secret(seat, client, step, group)
    secret, note = ss.share(secret, text, seat.draw, least=least, check=seat.check)
    seat.keep(client, secret)
    return note


def _sign(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    least = max(exchange.least, seat.least)
    secret, note = ss.sign(_secret(seat, client, step, group), text, seat.sign, least=least)
    seat.keep(client, secret)
    return note


def _open(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    try:
        there, signatures = msgspec.msgpack.decode(text, type=tuple[bytes, bytes])
    except msgspec.DecodeError:
        raise ProtocolError("this is no signed list of survivors") from None
    secret, note = ss.reveal(_secret(seat, client, step, group), there, signatures, check=seat.check)
    seat.keep(client, secret)
    return note


_STEPS: dict[str, Callable[[SecureSum, Local, int, Step, int, bytes], bytes]] = {
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
