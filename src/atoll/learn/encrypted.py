"""Encrypted sums of updates: clients hold one key, the coordinator and edges add what they cannot read.

The scheme is privacy/hazmat/bfv.py's, the integers are integers.py's. Steps, u a client, r the coordinator:

    keys      u -> r   fresh public keys, signed (privacy/roster.py)
    draw      r -> v   the roster; v -> r  a secret key s sealed under k, and k sealed for each member
    encrypt   r -> u   the roster, s sealed, k for u;   u -> r  its integers, encrypted under s, as an update
    agree     r -> u   who is in the sum;   u -> r  its word on that list, and on no other
    open      r -> two of those who agreed: that list, and a page of the sum;  u -> r  the page, decrypted

Who drops out is not in the sum, and nothing has to be mended; half of all must stay to agree.

What the coordinator asks to be opened might be anything, one client's ciphertext for instance. So every
ciphertext carries tags, which follow from k, its client and its place. A member opens only what has the sum
of the tags of at least `least` members, each page once in an attempt, and nothing more once tags were wrong.
What it opens it hides under a pad that takes the words of more than half of all on that list, and what only
the other of the two gives away, for the same page. So one list is opened and no other, whose difference to it
might be one client's update; and that both read the same shows that neither lies.

The key is one for all: one client together with the coordinator, or with an edge, reads every update that it
sees. In `secure_sum()` that takes more than a third of all clients. And members that decrypt what they are
given tell a coordinator that breaks the protocol something of their key; this is a promise against one that
follows it (docs/decisions/0015).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from time import process_time
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.aggregate import Aggregator, Partial, Points, Reply, Sum
from ..core.edge import Answer, Task
from ..core.errors import ConfigError, PrivacyError, ProtocolError
from ..core.protocol import Party
from ..core.registry import part
from ..core.update import Layout, Leaf, Update
from ..privacy.graph import threshold
from ..privacy.hazmat import bfv
from . import attempts
from .attempts import Integers, honest
from .integers import Read, Scale
from .secure import SecureSum
from .server import positive

if TYPE_CHECKING:
    from ..privacy.encrypted_sum import Drawn, Held
    from ..privacy.secure_sum import Secret
    from .algorithm import Algorithm
    from .local import Local
    from .rounds import Plan

Ints = NDArray[np.uint64]

WHAT = "an encrypted sum"
LEAF = "encrypted"  # the one leaf that travels
PAGE = 128  # ciphertexts that are opened at once: what they say must fit a note
_TAG = 64  # bits of a ciphertext's tags together
_TRIED = 8  # ciphertexts that show what encrypting costs


class Step(msgspec.Struct, array_like=True):
    """What a note says: a step of which attempt, and what all members need for it."""

    step: Literal["keys", "draw", "encrypt", "agree", "open"]
    round: int
    attempt: int
    heaviest: float
    members: int
    text: bytes = b""


class _Open(msgspec.Struct, array_like=True):
    """Who is in the sum, who opens it, who has agreed, and from which ciphertext on."""

    there: list[int]
    pair: tuple[int, int]
    by: list[int]
    first: int


@dataclass(frozen=True)
class EncryptedSum:
    """See `encrypted_sum`."""

    plain: int = 32
    largest: float = 16.0
    least: int = 2
    attempts: int = 3
    members: int = 256
    called: ClassVar[str] = "encrypted_sum"
    shows: ClassVar[Literal["sum", "each"]] = "sum"
    blind: ClassVar[bool] = False
    buckets: ClassVar[bool] = False
    label: ClassVar[str] = "one client plus the server reads all"

    @cached_property
    def ring(self) -> bfv.Ring:
        """What is encrypted, for how many."""
        return bfv.Ring(self.plain, self.members)

    @property
    def bits(self) -> int:
        """Of the ring that ciphertexts are added in."""
        return self.ring.width

    def bits_of(self, algorithm: Algorithm, points: Points | None) -> int:
        """As `bits`, whatever is asked."""
        return self.bits

    def integers(self, algorithm: Algorithm, members: int, size: int) -> str:
        """For people: of what is encrypted."""
        return f"{self.plain} bits: the job says so"

    @property
    def tags(self) -> int:
        """Coefficients of each ciphertext that are its tags."""
        return -(-_TAG // self.plain)

    @property
    def room(self) -> int:
        """Those that are integers of an update."""
        return bfv.N - self.tags

    def scale(self, algorithm: Algorithm, members: int, heaviest: float, size: int, round: int) -> Scale:
        """A round's integers: those of `secure_sum`, whose bits are set here, whatever the `size`."""
        sums = SecureSum(self.plain, self.largest, self.least)
        return sums.scale(algorithm, members, heaviest, size, round)

    def layout(self, size: int) -> Layout:
        """The leaves that travel for `size` integers."""
        return Layout((Leaf(LEAF, (2, self.ring.blocks(size, self.tags), bfv.N)),))

    def cost(self, size: int) -> tuple[int, float | None]:
        """Bytes on the wire, and seconds of this machine's CPU, that an update of `size` numbers costs its
        client. The seconds are those of a few ciphertexts made for the purpose; None without TenSEAL.
        """
        blocks = self.ring.blocks(size, self.tags)
        sent, some = 2 * blocks * bfv.N * -(-self.bits // 8), min(blocks, _TRIED)
        try:
            key = bfv.fresh(self.ring)
        except ConfigError:
            return sent, None
        began = process_time()
        bfv.encrypt(self.ring, key, np.zeros((some, bfv.N), np.uint64))
        return sent, (process_time() - began) * blocks / max(some, 1)

    # -- the coordinator's role --------------------------------------------------------------

    async def collect(
        self, p: Party, plan: Plan, task: Task, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> tuple[Answer, Aggregator]:
        """The sum over those who answered; an attempt that goes wrong is followed by another."""

        async def once(number: int, failed: dict[int, str]) -> Answer:
            return await self.attempt(p, plan, task, rule, number, failed).sum(quorum)

        reading = self.reading(plan, task)
        return await attempts.tried(task, self.attempts, "encrypted sum", once), reading

    def attempt(
        self,
        p: Party,
        plan: Plan,
        task: Task,
        rule: Callable[[Task], Aggregator],
        number: int,
        failed: dict[int, str],
    ) -> _Attempt:
        """The attempt of that number at the sum of a task's clients. Raises ConfigError for too many."""
        if len(task.clients) > self.members:
            raise ConfigError(
                f"{len(task.clients)} clients are asked, and encrypted_sum(members={self.members}) has room"
                " for fewer"
            )
        scale = self._scale(plan, task)
        return _Attempt(how=self, p=p, plan=plan, task=task, scale=scale, number=number, failed=failed)

    def reading(self, plan: Plan, task: Task) -> Read:
        """What reads the sum of a task's clients."""
        return Read(scale=self._scale(plan, task), plain=attempts.plain(task))

    def _scale(self, plan: Plan, task: Task) -> Scale:
        members, size = max(len(task.clients), 2), attempts.plain(task).size
        return self.scale(plan.algorithm, members, attempts.heaviest(plan), size, task.round)

    # -- the client's role -------------------------------------------------------------------

    def reply(self, local: Local, task: Task) -> Answer:
        """These clients' notes for a step; who cannot or may not take part says why."""
        step = read(task.note)

        def take(client: int) -> bytes:
            return _STEPS[step.step](self, local, client, step, task.params)

        return attempts.notes(task.clients, take)

    def outgoing(self, local: Local, task: Task, answer: Answer, integers: Integers = honest) -> Answer:
        """Replies as ciphertexts, all of weight 1 and without metrics, of what `integers` makes."""
        step = read(task.note)
        if step.step != "encrypt":
            raise ProtocolError("this job's updates leave their clients encrypted: the task is another step")
        return attempts.hidden(self, local, task, step, answer, self._encrypted, integers)

    def _encrypted(
        self,
        local: Local,
        task: Task,
        step: Step,
        scale: Scale,
        client: int,
        reply: Reply,
        integers: Integers,
    ) -> Reply:
        from ..privacy import encrypted_sum as es

        secret = _taken(self, local, client, step, task.notes[client])
        own = es.held(secret)

        rng = local.key.at("encrypted", client, task.round)
        numbers = integers(client, reply, scale, rng, attempts.noise(secret, scale))
        layout = self.layout(len(numbers))
        tags = self.tags_of(own, client, layout.leaves[0].shape[1])
        local.seat.keep(client, attempts.named(local, secret, reply))
        made = bfv.encrypt(self.ring, own.s, self.tagged(numbers, tags))
        return Reply(Update(layout, made.reshape(-1), bits=self.bits))

    def tags_of(self, own: Held, client: int, blocks: int, first: int = 0) -> Ints:
        """The tags of a client's ciphertexts from `first` on, where a page begins: (blocks, any)."""
        starts = range(first, first + blocks, PAGE)
        last = first + blocks
        pages = (own.tags(client, at, min(PAGE, last - at), self.tags, self.plain) for at in starts)
        return np.concatenate([np.empty((0, self.tags), np.uint64), *pages])

    def tagged(self, numbers: Ints, tags: Ints) -> Ints:
        """Integers (size,) modulo 2**plain, and tags (blocks, any), as what is encrypted: (blocks, N)."""
        t, half = np.uint64(self.ring.t), np.uint64(1 << (self.plain - 1))
        whole = np.where(numbers < half, numbers, numbers + (t - np.uint64(1 << self.plain)))
        made = np.zeros((len(tags), bfv.N), np.uint64)
        made[:, self.room :] = tags[:, : self.tags]
        room = np.zeros(len(tags) * (self.room), np.uint64)
        room[: len(whole)] = whole
        made[:, : self.room] = room.reshape(len(tags), -1)
        return made

    def told(self, blocks: Ints) -> tuple[Ints, Ints]:
        """The inverse of `tagged`: integers (blocks * any,) modulo 2**plain, and the tags."""
        t, mask = np.uint64(self.ring.t), np.uint64((1 << self.plain) - 1)
        whole = blocks[:, : self.room].reshape(-1)
        below = whole > t // np.uint64(2)
        return np.where(below, whole - t, whole) & mask, blocks[:, self.room :]


# -- the coordinator's attempt ---------------------------------------------------------------


@dataclass(kw_only=True)
class _Attempt(attempts.Attempt):
    """One attempt at a round's sum, at the coordinator."""

    how: EncryptedSum

    async def sum(self, quorum: int | None) -> Answer:
        """Raises ProtocolError where too few stay, or where two read differently."""
        from ..privacy import encrypted_sum as es
        from ..privacy import secure_sum as ss

        keys = await self._notes("keys", self.task.clients)
        self._enough(keys, self.how.least, "sent keys")
        roster = ss.roster_of(self.label(), keys)
        by, drawn = await self._drawn(roster.clients, ss.roster_out(roster))
        given = msgspec.msgpack.encode(es.Given(ss.roster_out(roster), by, drawn.box))
        answer = await self._vectors(given, drawn.letters, quorum)
        self._enough(answer.clients, enough(self.how, self.plan.algorithm, len(keys)), "sent their updates")
        hidden: Partial = answer.partial
        there = sorted(answer.clients)
        self.listed = tuple(there)
        words = await self._notes("agree", roster.clients, msgspec.msgpack.encode(there))
        self._enough(words, len(keys) // 2 + 1, "agreed to the sum")
        numbers = await self._read(there, words, hidden.sums[0].reshape(2, -1, bfv.N))
        size = self.scale.layout(attempts.plain(self.task)).size
        partial = replace(hidden, sums=numbers[None, :size])
        lost = {c: why for c, why in self.failed.items() if c not in answer.clients}
        return replace(answer, partial=partial, failed=lost, sent=answer.sent + self.sent)

    async def _drawn(self, clients: Sequence[int], roster: bytes) -> tuple[int, Drawn]:
        """A key that one of them draws, and who: the first that answers, in an order of the roster's."""
        from ..privacy.encrypted_sum import Drawn, decoded

        committed = self.label().suite.committed
        for client in sorted(clients, key=lambda c: committed(roster, "draws", c)):
            notes = await self._notes("draw", (client,), roster)
            if client in notes:
                return client, decoded(notes[client], Drawn, "a key")
        raise ProtocolError("no member drew a key to encrypt with")

    async def _vectors(self, given: bytes, letters: Mapping[int, bytes], quorum: int | None) -> Answer:
        layout = self.how.layout(self.scale.layout(attempts.plain(self.task)).size)
        task = self.task.only(sorted(set(letters).intersection(self.task.clients)))
        task = replace(task, note=self._note("encrypt", given), notes=dict(letters))
        return await self.summed(task, layout, lambda asked: Sum(asked.points), quorum)

    async def _read(self, there: list[int], words: Mapping[int, bytes], sums: Ints) -> Ints:
        """All pages (integers,), each opened by two members; others take the place of who cannot."""
        by, pages = sorted(words), []
        left = list(by)
        for first in range(0, sums.shape[1], PAGE):
            some = sums[:, first : first + PAGE]
            page = Update(Layout((Leaf(LEAF, some.shape),)), some.reshape(-1), bits=self.how.bits)
            while len(left) >= 2:
                pair = (left[0], left[1])
                notes = await self._notes(
                    "open", pair, msgspec.msgpack.encode(_Open(there, pair, by, first)), page
                )
                if len(notes) == len(pair):
                    break
                left = [c for c in left if c not in pair or c in notes]
            else:
                raise ProtocolError("fewer than two members are left who would open the sum")
            pages.append(self._agreed([notes[c] for c in pair], [words[c] for c in by], some.shape[1]))
        return np.concatenate(pages)

    def _agreed(self, notes: Sequence[bytes], words: Sequence[bytes], blocks: int) -> Ints:
        from ..privacy.encrypted_sum import Page, decoded, unpadded

        a, b = (decoded(note, Page, "an opened page") for note in notes)
        bits, size = self.how.plain, blocks * self.how.room
        suite = self.label().suite
        one = unpadded(suite, a, b.pad, words, bits, size)
        two = unpadded(suite, b, a.pad, words, bits, size)
        if not np.array_equal(one, two):
            raise ProtocolError("two members have read different sums: one of them is wrong")
        return one

    async def _notes(
        self, step: Any, clients: Sequence[int], text: bytes = b"", page: Update | None = None
    ) -> dict[int, bytes]:
        task = replace(self.task.only(clients), note=self._note(step, text))
        return await self.noted(task if page is None else replace(task, params=page))

    def _note(self, step: Any, text: bytes = b"") -> bytes:
        what = Step(step, self.task.round, self.number, self.scale.heaviest, self.scale.members, text)
        return msgspec.msgpack.encode(what)

    def _enough(self, clients: Collection[int], least: int, did: str) -> None:
        if len(clients) < least:
            raise ProtocolError(f"{len(clients)} of {len(self.task.clients)} clients {did}: {least} must")


def enough(how: EncryptedSum, algorithm: Algorithm, members: int) -> int:
    """How many must be in a sum: with noise, as many as it is sized for."""
    return max(how.least, 2, threshold(members) if algorithm.private else 0)


# -- the client's steps ----------------------------------------------------------------------


def read(note: bytes) -> Step:
    """A note as a step. Raises ProtocolError."""
    return attempts.read(note, Step, WHAT)


def _keys(exchange: EncryptedSum, local: Local, client: int, step: Step, params: Update) -> bytes:
    return attempts.keys(local, client, step, WHAT)


def _draw(exchange: EncryptedSum, local: Local, client: int, step: Step, params: Update) -> bytes:
    from ..privacy import encrypted_sum as es

    seat = local.seat
    secret = attempts.kept(local, client, step, WHAT)
    secret = es.joined(secret, step.text, least=max(exchange.least, seat.least), check=seat.check)
    secret, drawn = es.draw(secret, lambda: bfv.fresh(exchange.ring))
    seat.keep(client, secret)
    return msgspec.msgpack.encode(drawn)


def _taken(exchange: EncryptedSum, local: Local, client: int, step: Step, letter: bytes) -> Secret:
    from ..privacy import encrypted_sum as es

    given = es.decoded(step.text, es.Given, "a key")
    secret, seat = attempts.kept(local, client, step, WHAT), local.seat
    secret = es.joined(secret, given.roster, least=max(exchange.least, seat.least), check=seat.check)
    return es.take(secret, given.by, given.box, letter)


def _agree(exchange: EncryptedSum, local: Local, client: int, step: Step, params: Update) -> bytes:
    from ..privacy import encrypted_sum as es

    seat, there = local.seat, es.decoded(step.text, list[int], "a list of survivors")
    secret = attempts.kept(local, client, step, WHAT)
    least = max(enough(exchange, local.algorithm, len(secret.members)), seat.least)
    secret = es.agreed(secret, there, least)
    attempts.vouched(local, secret, there)
    word = es.held(secret).word(there, client)
    seat.keep(client, secret)
    return word


def _open(exchange: EncryptedSum, local: Local, client: int, step: Step, params: Update) -> bytes:
    from ..privacy import encrypted_sum as es

    asked, seat = es.decoded(step.text, _Open, "a list of survivors"), local.seat
    secret = attempts.kept(local, client, step, WHAT)
    least = max(enough(exchange, local.algorithm, len(secret.members)), seat.least)
    sums = _page(params, exchange.bits)
    if asked.first < 0 or asked.first % PAGE:
        raise ProtocolError("a page of an encrypted sum begins where none can")
    there, by = tuple(sorted(asked.there)), tuple(sorted(asked.by))
    opens = es.Opens(there, asked.pair, by, asked.first, sha256(params.buffer.data).digest())
    secret, own = es.listed(secret, opens, least), es.held(secret)
    seat.keep(client, secret)
    numbers, tags = exchange.told(bfv.decrypt(exchange.ring, own.s, sums))
    want = np.zeros_like(tags)
    for c in asked.there:
        want += exchange.tags_of(own, c, len(tags), asked.first)
    if not np.array_equal(want % np.uint64(exchange.ring.t), tags):
        seat.keep(client, es.spoiled(secret))
        raise PrivacyError(
            "what was to be opened is not the sum of those it names, or is of another key: this member"
            " opens nothing more in this attempt"
        )
    return msgspec.msgpack.encode(es.page(own, client, opens, numbers, exchange.plain))


def _page(params: Update, bits: int) -> Ints:
    """Ciphertexts (2, blocks, N). Raises ProtocolError for anything else."""
    shapes = [shape for _, shape in params.layout.leaves]
    if len(shapes) != 1 or params.bits != bits or len(shapes[0]) != 3:
        raise ProtocolError("what is to be opened is no page of ciphertexts")
    two, blocks, n = shapes[0]
    if two != 2 or n != bfv.N or not 1 <= blocks <= PAGE:
        raise ProtocolError(f"a page has 1 to {PAGE} ciphertexts of 2 times {bfv.N} coefficients")
    return np.asarray(params.buffer, np.uint64).reshape(2, blocks, n)


_STEPS: dict[str, Callable[[EncryptedSum, Local, int, Step, Update], bytes]] = {
    "keys": _keys,
    "draw": _draw,
    "agree": _agree,
    "open": _open,
}


@part("exchange")
def encrypted_sum(
    plain: int = 32, largest: float = 16.0, least: int = 2, attempts: int = 3, members: int = 256
) -> EncryptedSum:
    """Updates are added as ciphertexts (BFV); one client plus the server reads all. No drop-out is mended.

    `plain` (8 to 32): bits of each integer before it is encrypted. `largest` > 0: magnitude of a single
    number of an update; what is larger is refused. `least`: the fewest clients that a sum is opened of, at
    least 2. `attempts`: how often a round begins again when something goes wrong. `members`: the most
    clients of a round; with 32 bits a number takes 12 bytes on the wire up to 16 members, 14 up to 256.
    Needs TenSEAL.
    """
    positive(largest=largest)
    if not 8 <= plain <= 32:
        raise ConfigError(f"plain must be from 8 to 32 bits, got {plain}")
    if least < 2:
        raise ConfigError(f"a sum of one is that one's update: least must be at least 2, got {least}")
    if attempts < 1:
        raise ConfigError(f"attempts must be at least 1, got {attempts}")
    if members < least:
        raise ConfigError(f"members must be at least least={least}, got {members}")
    bfv.Ring(plain, members)
    return EncryptedSum(plain, float(largest), least, attempts, members)
