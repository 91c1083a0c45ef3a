"""Who sits in one secure sum: everybody's signed keys, and who shares with whom (graph.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from ..core.errors import PrivacyError, ProtocolError
from .graph import CORRUPT, LOST, degree, threshold
from .hazmat import pairs
from .hazmat.suite import Suite, suite_of


class Keys(msgspec.Struct, frozen=True, array_like=True):
    """What a member says of itself: public keys to mask and to share with, what its own mask's seed is
    bound to, its signature on these (empty where nobody signs) and its certificates.
    """

    client: int
    mask: bytes
    share: bytes
    own: bytes
    signature: bytes = b""
    chain: bytes = b""


@dataclass(frozen=True)
class Label:
    """What binds all of one attempt: nothing made for one is good in another.

    `group`: its bucket. `crypto`: the name of the suite, which members sign with all the rest. `corrupt`,
    `lost`: shares of the members that the graph is made for (graph.py).
    """

    federation: str
    run: str
    round: int
    attempt: int
    group: int = 0
    crypto: str = "intl"
    corrupt: float = CORRUPT
    lost: float = LOST

    @property
    def parts(self) -> tuple[str | int, ...]:
        """As plain values."""
        usual = (self.corrupt, self.lost) == (CORRUPT, LOST)
        graph = "" if usual else f" graph {self.corrupt!r} {self.lost!r}"
        kind = f"atoll secure sum 1{self.suite.mark}{graph}"
        return (kind, self.federation, self.run, self.round, self.attempt, self.group)

    @property
    def suite(self) -> Suite:
        """What all of the attempt is made with. Raises ConfigError for a name that there is none of."""
        return suite_of(self.crypto)


Check = Callable[[Keys, bytes], str]
"""`check(keys, text)`: the name of the member who signed `text` with these keys; raises ProtocolError."""


@dataclass(frozen=True)
class Roster:
    """All members of one sum, by id. Raises ProtocolError for one that is none."""

    label: Label
    members: tuple[Keys, ...]

    def __post_init__(self) -> None:
        ids = [keys.client for keys in self.members]
        if ids != sorted(set(ids)):
            raise ProtocolError("a secure sum's members are in order, each there once")
        for keys in self.members:
            if not len(keys.mask) == len(keys.share) == len(keys.own) == pairs.KEY:
                raise ProtocolError(f"client {keys.client}'s keys are not of {pairs.KEY} bytes each")
        if len({key for keys in self.members for key in (keys.mask, keys.share)}) < 2 * len(ids):
            raise ProtocolError("two members of a secure sum have the same key")

    @property
    def suite(self) -> Suite:
        """What the sum is made with."""
        return self.label.suite

    @cached_property
    def of(self) -> Mapping[int, Keys]:
        """Each member's keys."""
        return {keys.client: keys for keys in self.members}

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """Their ids."""
        return tuple(keys.client for keys in self.members)

    @cached_property
    def digest(self) -> bytes:
        """What names this roster: the label and everybody's keys and signatures, 32 bytes."""
        return self.suite.digest(msgspec.msgpack.encode((self.label.parts, self.members)))

    @cached_property
    def _ring(self) -> tuple[int, ...]:
        """The members in an order that follows from all their keys together."""
        digest = self.suite.digest
        return tuple(sorted(self.clients, key=lambda c: digest(self.digest + c.to_bytes(8, "big"))))

    @cached_property
    def _degree(self) -> int:
        return degree(len(self.members), self.label.corrupt, self.label.lost)

    @cached_property
    def _holders(self) -> Mapping[int, tuple[int, ...]]:
        if self._degree == len(self.members) - 1:
            return dict.fromkeys(self.clients, self.clients)
        ring, half = self._ring, self._degree // 2
        around = {}
        for i, c in enumerate(ring):
            near = (ring[(i + step) % len(ring)] for step in range(-half, half + 1))
            around[c] = tuple(sorted(near))
        return around

    def holders(self, client: int) -> tuple[int, ...]:
        """Who holds shares of a member's secrets: its neighbours, and itself. The relation is mutual."""
        return self._holders[client]

    @property
    def threshold(self) -> int:
        """How many holders open a secret, and how many must have signed before one opens anything."""
        return threshold(self._degree + 1)

    def place(self, client: int) -> int:
        """The place of a member's shares, at least 1."""
        return self.clients.index(client) + 1

    def check(self, mine: Keys, least: int, check: Check | None) -> None:
        """Raise unless this is a sum that its member `mine` may take part in: it is in it as it said, with
        at least `least` members, whose signatures are those of so many different ones (`check`).
        """
        if self.of.get(mine.client) != mine:
            raise PrivacyError("the roster of a secure sum does not have this member's own keys")
        if len(self.members) < max(least, 2):
            raise PrivacyError(
                f"a secure sum of {len(self.members)} would show what each adds: this member wants"
                f" at least {max(least, 2)}"
            )
        if check is not None:
            names = [check(keys, said(self.label, keys)) for keys in self.members]
            if len(set(names)) < len(names):
                raise PrivacyError("a member stands in the roster of a secure sum more than once")


def said(label: Label, keys: Keys) -> bytes:
    """What a member signs of its keys."""
    return msgspec.msgpack.encode((label.parts, "keys", keys.client, keys.mask, keys.share, keys.own))


def members(found: Sequence[Keys]) -> tuple[Keys, ...]:
    """In the order of a roster."""
    return tuple(sorted(found, key=lambda keys: keys.client))
