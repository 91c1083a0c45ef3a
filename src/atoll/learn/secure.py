"""Secure sums of updates: the coordinator, and every edge on the way, see masked integers and one sum.

The steps are privacy/secure_sum.py's; here stand their two roles, between a round's cohort and its model:

    coordinator   keys -> shares -> train and mask -> sign -> open -> the sum, as real numbers
    client        answers each step; its update becomes integers, and the integers are masked

A client's update is weighted before it is rounded (integers.py), and its weight is summed under the same
masks, so that nobody learns how many rows it has. Behind `randomk()` only the places drawn for the round
are masked and sent.

Under `Buckets` every bucket is a secure sum of its own, all in step, and the rule sees the buckets' means;
who sits in which is drawn by the members (deal.py).

Edges need not know any of this: they add integers and pass notes on, so the sum is the same over any tree.
A step that too few answer ends the attempt; the next one has fresh keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from ..core.aggregate import Aggregator, Partial, Points, Reply
from ..core.edge import Answer, Task
from ..core.errors import ConfigError, ProtocolError
from ..core.protocol import Party
from ..core.registry import part
from ..core.update import Update
from ..privacy import dp
from ..privacy.graph import CORRUPT, LOST, checked, threshold
from . import attempts, deal
from .attempts import Integers, honest
from .integers import WEIGHT, WIDE, Counted, Hidden, Read, Scale, Width
from .robust import Buckets
from .server import positive

if TYPE_CHECKING:
    from .algorithm import Algorithm
    from .local import Local
    from .rounds import Plan

WHAT = "a secure sum"


class Step(msgspec.Struct, array_like=True):
    """What a note says: a step of which attempt, and what all members need for it.

    `groups`: who is summed with whom, and what each group is told; one group where there are no buckets, or
    before they are drawn. `coins`: by which they were.
    """

    step: Literal["lot", "coin", "keys", "shares", "mask", "sign", "open"]
    round: int
    attempt: int
    heaviest: float
    members: int
    groups: dict[int, tuple[list[int], bytes]]
    coins: bytes = b""

    def of(self, client: int) -> tuple[int, bytes]:
        """The group that a client is in, and what it is told. Raises ProtocolError if there is none."""
        for group, (clients, text) in self.groups.items():
            if client in clients:
                return group, text
        raise ProtocolError("a step of a secure sum came to a client that is in none of its groups")


@dataclass(frozen=True)
class SecureSum:
    """See `secure_sum`."""

    bits: int | None = None
    largest: float = 16.0
    least: int = 2
    attempts: int = 3
    colluders: int = 0
    corrupt: float = CORRUPT
    lost: float = LOST
    called: ClassVar[str] = "secure_sum"
    shows: ClassVar[Literal["sum", "each"]] = "sum"
    blind: ClassVar[bool] = True

    @property
    def graph(self) -> tuple[float, float]:
        """The shares of members who are corrupt and who drop out that it is made for."""
        return self.corrupt, self.lost

    # -- the coordinator's role --------------------------------------------------------------

    async def collect(
        self, p: Party, plan: Plan, task: Task, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> tuple[Answer, Aggregator]:
        """The sum over those who stay; an attempt that too few stay in is followed by another."""
        buckets = rule(task)
        k = buckets.k if isinstance(buckets, Buckets) else 1

        async def once(number: int, failed: dict[int, str]) -> Answer:
            attempt = self.attempt(p, plan, task, rule, number, failed, k)
            if isinstance(buckets, Buckets):
                await attempt.deal(buckets.k)
            return await attempt.sum(quorum)

        reading = self.reading(plan, task, k)
        finishing = Counted(replace(buckets, inner=reading)) if isinstance(buckets, Buckets) else reading
        return await attempts.tried(task, self.attempts, "secure sum", once), finishing

    def attempt(
        self,
        p: Party,
        plan: Plan,
        task: Task,
        rule: Callable[[Task], Aggregator],
        number: int,
        failed: dict[int, str],
        k: int = 1,
    ) -> _Attempt:
        """The attempt of that number at the sum of a task's clients, in `k` groups."""
        return _Attempt(
            p=p, plan=plan, task=task, scale=self._scale(plan, task, k), number=number, failed=failed,
            rule=rule, least=max(self.least, 2), groups={0: task.clients},
        )  # fmt: skip

    def reading(self, plan: Plan, task: Task, k: int = 1) -> Read:
        """What reads the sum of a task's clients, or of one of their `k` groups."""
        return Read(scale=self._scale(plan, task, k), plain=attempts.plain(task))

    def _scale(self, plan: Plan, task: Task, k: int) -> Scale:
        members, size = max(2, -(-len(task.clients) // k)), attempts.plain(task).size
        return self.scale(plan.algorithm, members, attempts.heaviest(plan), size, task.round)

    def scale(self, algorithm: Algorithm, members: int, heaviest: float, size: int, round: int) -> Scale:
        """A round's, for so many members' updates of `size` numbers: with noise where there is some."""
        width, drawn = self.width(algorithm, heaviest), attempts.drawn(algorithm, size, round)
        if self.bits is None:
            return replace(width.scale(members, size if drawn is None else drawn.k), drawn=drawn)
        return Scale(self.bits, width.largest, members, width.heaviest, width.noise, drawn)

    def width(self, algorithm: Algorithm, heaviest: float = 1.0) -> Width:
        """What the bits follow from."""
        noise = dp.noisy(algorithm.chain)
        if noise is None:
            return Width(self.largest, heaviest, dp.longest(algorithm.chain))
        rows = dp.by_rows(algorithm.chain)
        hidden = Hidden(noise.sigma, noise.bound, self.colluders, rows)
        largest = self.largest if rows else min(self.largest, noise.bound)
        return Width(largest, 1.0, noise.bound, hidden)

    def bits_of(self, algorithm: Algorithm, points: Points | None) -> int:
        """Of what answers a task with these points; an update that waits at home has no numbers."""
        leaves = () if points is None else (n for n, _ in points.layout.leaves if n != WEIGHT)
        size = sum(prod(points.layout.shapes[name]) for name in leaves) if points is not None else 0
        if self.bits is not None or points is None or not size:
            return self.bits or WIDE
        return self.width(algorithm).scale(points.cohort, size).bits

    def integers(self, algorithm: Algorithm, members: int, size: int) -> str:
        """For people: how many bits, and why."""
        if self.bits is not None:
            return f"{self.bits} bits: the job says so"
        drawn = attempts.drawn(algorithm, size, 0)
        return self.width(algorithm).why(max(2, members), size if drawn is None else drawn.k)

    # -- the client's role -------------------------------------------------------------------

    def reply(self, local: Local, task: Task) -> Answer:
        """These clients' notes for a step; who cannot or may not take part says why."""
        step = read(task.note)

        def take(client: int) -> bytes:
            return _STEPS[step.step](self, local, client, step, *step.of(client))

        return attempts.notes(task.clients, take)

    def outgoing(self, local: Local, task: Task, answer: Answer, integers: Integers = honest) -> Answer:
        """Replies as masked integers, all of weight 1 and without metrics; `integers` makes them."""
        step = read(task.note)
        if step.step != "mask":
            raise ProtocolError("this job's updates leave their clients masked: the task is for another step")
        return attempts.hidden(self, local, task, step, answer, self._masked, integers)

    def _masked(
        self,
        local: Local,
        task: Task,
        step: Step,
        scale: Scale,
        client: int,
        reply: Reply,
        integers: Integers,
    ) -> Reply:
        from ..privacy.secure_sum import mask

        secret = attempts.kept(local, client, step, WHAT, step.of(client)[0])
        rng = local.key.at("secure", client, task.round)
        numbers = integers(client, reply, scale, rng, attempts.noise(secret, scale))
        secret, hidden = mask(attempts.named(local, secret, reply), task.notes[client], numbers, scale.bits)
        local.seat.keep(client, secret)
        return Reply(Update(scale.layout(reply.update.layout), hidden, bits=scale.bits))


@dataclass(kw_only=True)
class _Attempt(attempts.Attempt):
    """One attempt at a round's sum, at the coordinator: all groups in step. A group that too few stay in is
    left out; where none is left the attempt is over.
    """

    rule: Callable[[Task], Aggregator]
    least: int
    groups: Mapping[int, Sequence[int]]
    coins: bytes = b""

    async def deal(self, k: int) -> None:
        """Have the members draw who sits in which of `k` buckets. Raises ProtocolError where too few do."""
        from ..privacy import lottery

        label, least = self.label(), {0: max(k, self.least)}
        lots = self._enough(await self._notes("lot", {0: (self.task.clients, b"")}), least, "drew lots")[0]
        everybody = lottery.lots_out(lots)
        coins = await self._notes("coin", {0: (tuple(lots), everybody)})
        held = lottery.true(label, everybody, coins)
        self.failed.update({c: "it told another coin than it was bound to" for c in coins if c not in held})
        self._enough(held, least, "told their coins")
        self.coins = lottery.coins_out(held)
        key, members = lottery.number(label, everybody, self.coins)
        self.task = replace(self.task, key=key, cohort=members).only(members)
        self.groups = _groups(members, self.rule(self.task))

    async def sum(self, quorum: int | None) -> Answer:
        """Raises ProtocolError where too few stay, or shares are false."""
        from ..privacy import secure_sum as ss

        first = await self._notes("keys", {g: (clients, b"") for g, clients in self.groups.items()})
        keys = self._enough(first, dict.fromkeys(self.groups, self.least), "sent keys")
        names = {g: self.label(g) for g in keys}
        rosters = {g: ss.roster_of(names[g], notes) for g, notes in keys.items()}
        enough = {g: max(self.least, threshold(len(r.members))) for g, r in rosters.items()}
        asked = {g: (r.clients, ss.roster_out(r)) for g, r in rosters.items()}
        shared = self._enough(await self._notes("shares", asked), enough, "shared their secrets")
        answer = await self._vectors({c: m for s in shared.values() for c, m in ss.routed(s).items()}, quorum)
        there = self._enough(dict.fromkeys(answer.clients, b""), enough, "sent their vectors", shared)
        lists = {g: ss.survivors_out(clients) for g, clients in there.items()}
        self.listed = tuple(c for clients in there.values() for c in clients)
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
        return await self.noted(replace(self.task.only(clients), note=self._note(step, groups)))

    async def _vectors(self, mail: Mapping[int, bytes], quorum: int | None) -> Answer:
        note = self._note("mask", {g: (clients, b"") for g, clients in self.groups.items()})
        task = replace(self.task.only(sorted(mail)), note=note, notes=dict(mail))
        layout = self.scale.layout(attempts.plain(self.task))
        return await self.summed(task, layout, self.rule, quorum)

    def _note(self, step: Any, groups: Mapping[int, tuple[Sequence[int], bytes]]) -> bytes:
        told = {g: (list(clients), text) for g, (clients, text) in groups.items()}
        return msgspec.msgpack.encode(
            Step(
                step, self.task.round, self.number, self.scale.heaviest, self.scale.members, told, self.coins
            )
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
        few = {
            g: f"{len(by[g])} of {len(self.groups[g])} clients {did}: {least[g]} must"
            for g in by.keys() - held.keys()
        }
        if not held:
            raise ProtocolError(few[max(by, key=lambda g: len(by[g]))])
        for g, why in few.items():
            self.failed.update(dict.fromkeys(by[g], f"its secure sum was given up: {why}"))
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


# -- the client's steps ----------------------------------------------------------------------


def read(note: bytes) -> Step:
    """A note as a step. Raises ProtocolError."""
    return attempts.read(note, Step, WHAT)


def _lot(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    return deal.lot(local, client, step)


def _coin(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    return deal.coin(local, client, step, text, exchange.least)


def _keys(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    begun, buckets = local.seat.secrets.get(client), local.algorithm.rule
    if isinstance(buckets, Buckets) and not (begun and begun.label == attempts.label(local, step, group)):
        deal.placed(local, client, step, buckets, group, step.groups[group][0])
    return attempts.keys(local, client, step, WHAT, group)


def _shares(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    least = max(exchange.least, seat.least)
    secret = attempts.kept(local, client, step, WHAT, group)
    secret, note = ss.share(secret, text, seat.draw, least=least, check=seat.check)
    seat.keep(client, secret)
    return note


def _sign(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    least = max(exchange.least, seat.least)
    secret, note = ss.sign(attempts.kept(local, client, step, WHAT, group), text, seat.sign, least=least)
    attempts.vouched(local, secret, ss.survivors_of(secret, text))
    seat.keep(client, secret)
    return note


def _open(exchange: SecureSum, local: Local, client: int, step: Step, group: int, text: bytes) -> bytes:
    from ..privacy import secure_sum as ss

    seat = local.seat
    try:
        there, signatures = msgspec.msgpack.decode(text, type=tuple[bytes, bytes])
    except msgspec.DecodeError:
        raise ProtocolError("this is no signed list of survivors") from None
    secret = attempts.kept(local, client, step, WHAT, group)
    secret, note = ss.reveal(secret, there, signatures, check=seat.check)
    seat.keep(client, secret)
    return note


_STEPS: dict[str, Callable[[SecureSum, Local, int, Step, int, bytes], bytes]] = {
    "lot": _lot,
    "coin": _coin,
    "keys": _keys,
    "shares": _shares,
    "sign": _sign,
    "open": _open,
}


@part("exchange")
def secure_sum(
    bits: int | Literal["auto"] = "auto",
    largest: float = 16.0,
    least: int = 2,
    attempts: int = 3,
    colluders: int = 0,
    corrupt: float = CORRUPT,
    lost: float = LOST,
) -> SecureSum:
    """Only the sum of a round's updates is seen by anybody, the coordinator included (Bonawitz et al. 2017).

    `bits` (8 to 64): of each integer on the wire; "auto": 16 where the job's numbers show that those do, else
    32 (integers.Width). `largest` > 0: magnitude of a single number of an update;
    what is larger is refused. `least`: the fewest clients that a sum is taken of, at least 2. `attempts`: how
    often a round begins again when too many drop out; more than two thirds of a cohort must stay.
    `colluders`: under a promise of privacy, how many of those who stay may tell the noise that they added.
    `corrupt`, `lost`: shares of members, together less than a third, who help the coordinator and who drop
    out: with more than 128 of them each shares its secrets with so many others that these do not matter
    (Bell et al. 2020; privacy/graph.py).
    """
    positive(largest=largest)
    if bits != "auto" and not 8 <= bits <= 64:
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
    checked(corrupt, lost)
    width = None if bits == "auto" else bits
    return SecureSum(width, float(largest), least, attempts, colluders, float(corrupt), float(lost))
