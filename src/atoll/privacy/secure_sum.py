"""The sum of vectors that nobody sees: pairwise masks that cancel, and shares to mend what drops out.

Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", fig. 4, with
the graph of Bell et al. 2020 (roster.py). Vectors are integers of a ring; u, v members, r the coordinator:

    keys     u -> r   fresh public keys to mask and to share with, signed; a commitment to the seed b_u
    shares   r -> u   the roster; u -> r for each holder v, sealed for it: shares of u's mask key and of b_u
    mask     r -> u   the shares for u; u -> r  y_u = x_u + PRG(b_u) + Σ_{v>u} PRG(s_uv) - Σ_{v<u} PRG(s_uv)
    sign     r -> u   who sent y: the survivors; u -> r  its signature on that list, and on no other
    open     r -> u   signatures; u -> r  for each survivor its share of b, for each other that of its key

The coordinator then takes the masks of the survivors' seeds off the sum, and those that the lost left in it.
It learns Σ x over the survivors and nothing else, as long as fewer than `threshold` holders of a member
help it. What a sum of few shows of one, it shows.

A member opens one list in an attempt, and of another member never both secrets; it masks one vector.
Every function takes a Secret and gives the next one, to be on disk before the answer leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import AtollError, PrivacyError, ProtocolError
from .graph import threshold
from .hazmat import masks, pairs, shamir
from .roster import Check, Keys, Label, Roster, members, said

T = TypeVar("T")
TRIES = 1000  # subsets of shares that are tried where some are false
_SIGN: Callable[[bytes], tuple[bytes, bytes]] = lambda text: (b"", b"")  # noqa: E731

Draw = Callable[[int], bytes]
Mail = Mapping[int, bytes]


@dataclass(frozen=True)
class Secret:
    """What a member keeps of one attempt. `mail`: sealed shares by sender, once it has masked.

    `vector`: what names the vector that it masked; `list`: what names the survivors it signed; `opened`:
    whether it has opened shares; `update`: what names its update in whatever sum. `noise` is nobody's but its
    own: what noise in the vector is drawn from.
    """

    label: Label
    keys: Keys
    mask: bytes = field(repr=False)
    share: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    noise: bytes = field(repr=False)
    members: tuple[Keys, ...] = ()
    mail: Mail = field(default_factory=dict, repr=False)
    vector: bytes = b""
    list: bytes = b""
    opened: bool = False
    update: bytes = b""

    @property
    def roster(self) -> Roster:
        """Its roster. Raises ProtocolError before there is one."""
        if not self.members:
            raise ProtocolError("this member was asked for a step of a secure sum that it has not begun")
        return Roster(self.label, self.members)


class _Opened(msgspec.Struct, array_like=True):
    """Shares by the member they are of: of the seeds of those who are there, of the keys of the lost."""

    seeds: dict[int, bytes]
    keys: dict[int, bytes]


def _decoded(text: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.msgpack.decode(text, type=kind)
    except msgspec.DecodeError:
        raise ProtocolError(f"this is not {what} of a secure sum") from None


# -- the member's side -----------------------------------------------------------------------


def begin(
    label: Label, client: int, draw: Draw, sign: Callable[[bytes], tuple[bytes, bytes]] | None = None
) -> Secret:
    """Fresh keys for one attempt; its `keys` go to the coordinator.

    `draw(n)`: n bytes of the system's entropy. `sign(text)`: a signature and the certificates to it.
    """
    mask, share, seed = draw(pairs.KEY), draw(pairs.KEY), draw(pairs.KEY)
    bare = Keys(
        client,
        pairs.public(mask),
        pairs.public(share),
        label.suite.committed(seed, *label.parts, "seed", client),
    )
    signature, chain = (sign or _SIGN)(said(label, bare))
    keys = Keys(client, bare.mask, bare.share, bare.own, signature, chain)
    return Secret(label, keys, mask, share, seed, draw(pairs.KEY))


def share(
    secret: Secret, everybody: bytes, draw: Draw, *, least: int = 2, check: Check | None = None
) -> tuple[Secret, bytes]:
    """Shares of both secrets, sealed for each holder, once the roster is found to be in order.

    `least`: the fewest members this one takes part with. `check`: whose signatures the keys have; None
    takes the coordinator's word for it. Raises PrivacyError or ProtocolError for a roster that is not.
    """
    found = tuple(_decoded(everybody, list[Keys], "a roster"))
    if secret.members and found != secret.members:
        raise PrivacyError("a second roster came for one attempt of a secure sum")
    secret = replace(secret, members=found)
    roster = secret.roster
    roster.check(secret.keys, least, check)
    me, holders = secret.keys.client, roster.holders(secret.keys.client)
    places = [roster.place(v) for v in holders]
    of_key = shamir.split(secret.mask, roster.threshold, places, draw)
    of_seed = shamir.split(secret.seed, roster.threshold, places, draw)
    mail = {}
    for v, x in zip(holders, places, strict=True):
        mail[v] = roster.suite.sealed(_letter_key(secret, roster, me, v), of_key[x] + of_seed[x])
    return secret, msgspec.msgpack.encode(mail)


def _letter_key(secret: Secret, roster: Roster, sender: int, receiver: int) -> bytes:
    other = receiver if sender == secret.keys.client else sender
    both = pairs.agreed(secret.share, roster.of[other].share)
    return roster.suite.derived(both, *roster.label.parts, "share", roster.digest, sender, receiver)


def mask(
    secret: Secret, mail: bytes, numbers: NDArray[np.uint64], bits: int
) -> tuple[Secret, NDArray[np.uint64]]:
    """`numbers` (d,) under all masks, modulo 2**bits. `mail`: the shares for this member, by sender.

    The same numbers again give the same bytes. Raises PrivacyError for others, or where too few shared.
    """
    roster, me = secret.roster, secret.keys.client
    letters = _decoded(mail, dict[int, bytes], "the shares")
    narrow = np.ascontiguousarray(numbers, masks.narrow(bits))
    key = roster.suite.derived(secret.seed, *roster.label.parts, "vector")
    about = msgspec.msgpack.encode((bits, sorted(letters.items())))
    named = roster.suite.named(key, about, narrow.data.cast("B"))
    if secret.vector and named != secret.vector:
        raise PrivacyError("a secure sum masks one vector in an attempt, and this is another")
    if me not in letters or not set(letters) <= set(roster.holders(me)):
        raise ProtocolError("shares came from members that this one does not share with, or not its own")
    if len(letters) < roster.threshold:
        raise PrivacyError(
            f"{len(letters)} members shared their secrets: a secure sum needs {roster.threshold}"
        )
    others = [v for v in letters if v != me]
    hidden = masks.masked(
        roster.suite,
        narrow,
        bits,
        [_own_mask(roster, me, secret.seed), *(_pair_mask(secret, roster, v) for v in others if v > me)],
        [_pair_mask(secret, roster, v) for v in others if v < me],
    )
    return replace(secret, mail=letters, vector=named), hidden


def _own_mask(roster: Roster, client: int, seed: bytes) -> bytes:
    return roster.suite.derived(seed, *roster.label.parts, "own", roster.digest, client)


def _pair_mask(secret: Secret, roster: Roster, other: int) -> bytes:
    return _between(roster, secret.keys.client, secret.mask, other)


def _between(roster: Roster, client: int, key: bytes, other: int) -> bytes:
    both = pairs.agreed(key, roster.of[other].mask)
    low, high = sorted((client, other))
    return roster.suite.derived(both, *roster.label.parts, "pair", roster.digest, low, high)


def sign(
    secret: Secret,
    survivors: bytes,
    by: Callable[[bytes], tuple[bytes, bytes]] | None = None,
    *,
    least: int = 2,
) -> tuple[Secret, bytes]:
    """This member's signature on who sent a masked vector; on one list only in an attempt.

    Raises PrivacyError for a second list, or one of two thirds or fewer, or of fewer than `least`.
    """
    roster = secret.roster
    there = survivors_of(secret, survivors)
    enough = max(least, threshold(len(secret.members)))
    if len(there) < enough or len(there & set(secret.mail)) < roster.threshold:
        raise PrivacyError(f"{len(there)} members are left of a secure sum: too few to show their sum")
    named = _list_name(roster, there)
    if secret.list and secret.list != named:
        raise PrivacyError("a second list of survivors came for one attempt of a secure sum")
    signature, _ = (by or _SIGN)(named)
    return replace(secret, list=named), signature


def survivors_of(secret: Secret, text: bytes) -> set[int]:
    """Who is in a list of survivors. Raises ProtocolError for one that names others than members."""
    there = set(_decoded(text, list[int], "a list of survivors"))
    if not there <= set(secret.roster.clients):
        raise ProtocolError("a list of survivors names somebody who is not in the roster")
    if not secret.vector or secret.keys.client not in there:
        raise PrivacyError("a list of survivors without this member's vector is none of its business")
    return there


def _list_name(roster: Roster, there: Collection[int]) -> bytes:
    text = msgspec.msgpack.encode((roster.label.parts, "list", roster.digest, sorted(there)))
    return roster.suite.digest(text)


def reveal(
    secret: Secret, survivors: bytes, signatures: bytes, *, check: Check | None = None
) -> tuple[Secret, bytes]:
    """Its shares: of the seed of each holder that is there, of the mask key of each that is lost.

    What it masked its own vector with is not in the Secret any more: who gets hold of its disk later learns
    nothing of a vector that was recorded.

    Raises PrivacyError unless `threshold` of its holders have signed the list that it signed itself.
    """
    roster, me = secret.roster, secret.keys.client
    there = survivors_of(secret, survivors)
    named = _list_name(roster, there)
    if secret.list != named:
        raise PrivacyError("the list of survivors is not the one that this member has signed")
    signed = _decoded(signatures, dict[int, bytes], "signatures")
    good = {v for v in signed if v in there and v in roster.holders(me)}
    if check is not None:
        good = {v for v in good if _signed(roster.of[v], named, signed[v], check)}
    if len(good) < roster.threshold:
        raise PrivacyError(
            f"{len(good)} members have signed the list of survivors: {roster.threshold} must before it opens"
        )
    seeds, keys = {}, {}
    for v, letter in secret.mail.items():
        text = roster.suite.unsealed(_letter_key(secret, roster, v, me), letter)
        if v in there:
            seeds[v] = text[shamir.SHARE :]
        else:
            keys[v] = text[: shamir.SHARE]
    bare = replace(secret, opened=True, mask=b"", seed=b"", noise=b"")
    return bare, msgspec.msgpack.encode(_Opened(seeds, keys))


def noise_key(secret: Secret) -> bytes:
    """What this member's noise in this attempt is drawn from."""
    return secret.label.suite.derived(secret.noise, *secret.label.parts, "noise", secret.roster.digest)


def _signed(keys: Keys, named: bytes, signature: bytes, check: Check) -> bool:
    try:
        check(Keys(keys.client, keys.mask, keys.share, keys.own, signature, keys.chain), named)
    except AtollError:
        return False
    return True


# -- the coordinator's side ------------------------------------------------------------------


def roster_of(label: Label, notes: Mapping[int, bytes]) -> Roster:
    """Everybody who sent keys. Raises ProtocolError where somebody speaks for another."""
    found = {client: keys_in(note) for client, note in notes.items()}
    for client, keys in found.items():
        if keys.client != client:
            raise ProtocolError(f"client {client} sent the keys of client {keys.client}")
    return Roster(label, members(list(found.values())))


def keys_out(keys: Keys) -> bytes:
    """A member's keys as bytes."""
    return msgspec.msgpack.encode(keys)


def keys_in(note: bytes) -> Keys:
    """The inverse of `keys_out`. Raises ProtocolError."""
    return _decoded(note, Keys, "a member's keys")


def roster_out(roster: Roster) -> bytes:
    """A roster as bytes, for everybody in it."""
    return msgspec.msgpack.encode(roster.members)


def routed(notes: Mapping[int, bytes]) -> dict[int, bytes]:
    """Each sender's mail, sorted by who receives it; only what members who shared themselves are sent."""
    letters: dict[int, dict[int, bytes]] = {client: {} for client in notes}
    for sender, note in sorted(notes.items()):
        for receiver, letter in _decoded(note, dict[int, bytes], "shares").items():
            if receiver in letters:
                letters[receiver][sender] = letter
    return {client: msgspec.msgpack.encode(mail) for client, mail in letters.items()}


def survivors_out(clients: Iterable[int]) -> bytes:
    """A list of survivors as bytes."""
    return msgspec.msgpack.encode(sorted(clients))


def signatures_out(notes: Mapping[int, bytes]) -> bytes:
    """Signatures by member as bytes."""
    return msgspec.msgpack.encode(dict(sorted(notes.items())))


def unmask(
    roster: Roster,
    hidden: NDArray[np.uint64],
    bits: int,
    *,
    shared: Collection[int],
    survivors: Collection[int],
    notes: Mapping[int, bytes],
) -> NDArray[np.uint64]:
    """The sum (d,) of the survivors' vectors, from the sum of their masked ones.

    `shared`: who sent shares; `notes`: what members opened. Raises ProtocolError where the shares of a
    secret are too few, or do not give what its member is bound to.
    """
    opened = {client: _decoded(note, _Opened, "opened shares") for client, note in notes.items()}
    seeds: dict[int, dict[int, bytes]] = {}
    keys: dict[int, dict[int, bytes]] = {}
    for client, found in sorted(opened.items()):
        for of, given in ((seeds, found.seeds), (keys, found.keys)):
            for v, piece in given.items():
                of.setdefault(v, {})[roster.place(client)] = piece
    lost = sorted(set(shared) - set(survivors))
    plus: list[bytes] = []
    minus: list[bytes] = []
    for v in sorted(survivors):
        seed = _joined(roster, v, seeds.get(v, {}), lambda s, v=v: _is_seed(roster, v, s))  # type: ignore[misc]
        minus.append(_own_mask(roster, v, seed))
    for v in lost:
        key = _joined(roster, v, keys.get(v, {}), lambda s, v=v: pairs.public(s) == roster.of[v].mask)  # type: ignore[misc]
        for w in set(roster.holders(v)) & set(survivors):
            (minus if w < v else plus).append(_between(roster, v, key, w))
    return masks.masked(roster.suite, hidden, bits, plus, minus)


def _is_seed(roster: Roster, client: int, seed: bytes) -> bool:
    made = roster.suite.committed(seed, *roster.label.parts, "seed", client)
    return made == roster.of[client].own


def _joined(
    roster: Roster, client: int, shares: Mapping[int, bytes], right: Callable[[bytes], bool]
) -> bytes:
    """The secret that its member is bound to, from any `threshold` of its shares that give it."""
    for places in islice(combinations(sorted(shares), roster.threshold), TRIES):
        try:
            secret = shamir.join({x: shares[x] for x in places})
        except ProtocolError:
            continue
        if right(secret):
            return secret
    few = len(shares) < roster.threshold
    why = f"{len(shares)} came and {roster.threshold} are needed" if few else "some are false"
    raise ProtocolError(f"the shares of client {client}'s secret do not give it: {why}")


def dump(secrets: Mapping[int, Secret]) -> bytes:
    """Secrets as bytes, for their owner's disk."""
    return msgspec.msgpack.encode(secrets)


def load(data: bytes) -> dict[int, Secret]:
    """The inverse of `dump`. Raises ProtocolError."""
    return _decoded(data, dict[int, Secret], "what a member keeps")
