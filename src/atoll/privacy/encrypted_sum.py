"""What members of an encrypted sum keep and check: one key for all, tags on what it encrypts, pads on what
is opened. The steps stand in learn/encrypted.py, the scheme in hazmat/bfv.py.

One member draws the key s, and k from its own seed. It seals s under k, and k for each member with the keys
of the roster, so that the coordinator passes on what it cannot read. All else follows from k:

    tags   of a client's ciphertexts, a stream of integers; of a sum of ciphertexts, the sum of them
    words  of a client that agrees to a list of survivors
    pads   for such a list, a page, and who opens it

A coordinator can add ciphertexts, and multiply them, as it likes. For any sum other than that of the list
the tags are wrong, but for a chance of t**-count, as t is a prime. A member agrees to one list in an
attempt, and an opened page is read only with the words of more than half: so one list is opened. It opens
each page once, and where tags were wrong nothing more: each answer tells a little of the key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import PrivacyError, ProtocolError
from .hazmat import masks, pairs
from .hazmat.suite import Suite
from .roster import Check, Keys, Roster
from .secure_sum import Secret

T = TypeVar("T")
Ints = NDArray[np.uint64]


class Drawn(msgspec.Struct, array_like=True):
    """The key s, sealed under k, and k sealed for each member."""

    box: bytes
    letters: dict[int, bytes]


class Given(msgspec.Struct, array_like=True):
    """What all members need to encrypt: everybody's keys, who drew s, and s in its box."""

    roster: bytes
    by: int
    box: bytes


class Page(msgspec.Struct, array_like=True):
    """Opened integers under a pad, and the pad of the other who opens them."""

    numbers: bytes
    pad: bytes


def decoded(text: bytes, kind: type[T], what: str) -> T:
    """A note as a record. Raises ProtocolError."""
    try:
        return msgspec.msgpack.decode(text, type=kind)
    except msgspec.DecodeError:
        raise ProtocolError(f"this is not {what} of an encrypted sum") from None


def joined(secret: Secret, everybody: bytes, *, least: int = 2, check: Check | None = None) -> Secret:
    """The secret of a member that has seen the roster and found it in order.

    Raises PrivacyError or ProtocolError for a roster that is not, or for a second one.
    """
    found = tuple(decoded(everybody, list[Keys], "a roster"))
    if secret.members and found != secret.members:
        raise PrivacyError("a second roster came for one attempt of an encrypted sum")
    secret = replace(secret, members=found)
    secret.roster.check(secret.keys, least, check)
    return secret


def draw(secret: Secret, fresh: Callable[[], bytes]) -> tuple[Secret, Drawn]:
    """A key for everybody in its roster: the same one where it is asked again. `fresh()`: a new s."""
    roster, me = secret.roster, secret.keys.client
    if secret.opened:
        raise PrivacyError("this attempt's sum was opened: no key is drawn for it any more")
    k = roster.suite.derived(secret.seed, *roster.label.parts, "encrypted sum", roster.digest)
    if secret.mail and set(secret.mail) != {me}:
        raise PrivacyError("another member has drawn this attempt's key already")
    box = _parts(secret)[1] if secret.mail else roster.suite.sealed(_box_key(roster, k), fresh())
    letters = {v: roster.suite.sealed(_letter_key(secret, me, v), k) for v in roster.clients}
    return replace(secret, mail={me: msgspec.msgpack.encode((letters[me], box))}), Drawn(box, letters)


def take(secret: Secret, by: int, box: bytes, letter: bytes) -> Secret:
    """The secret of a member that was given the key. Raises PrivacyError where another came before."""
    if secret.opened:
        raise PrivacyError("this attempt's sum was opened: nothing is encrypted for it any more")
    mail = {by: msgspec.msgpack.encode((letter, box))}
    if secret.mail and secret.mail != mail:
        raise PrivacyError("a second key came for one attempt of an encrypted sum")
    if by not in secret.roster.of:
        raise ProtocolError("the key of an encrypted sum was drawn by somebody who is not in its roster")
    return replace(secret, mail=mail)


def _parts(secret: Secret) -> tuple[bytes, bytes]:
    (mail,) = secret.mail.values()
    return decoded(mail, tuple[bytes, bytes], "a key")


def _box_key(roster: Roster, k: bytes) -> bytes:
    return roster.suite.derived(k, *roster.label.parts, "box", roster.digest)


def _letter_key(secret: Secret, sender: int, receiver: int) -> bytes:
    roster = secret.roster
    other = receiver if sender == secret.keys.client else sender
    both = pairs.agreed(secret.share, roster.of[other].share)
    return roster.suite.derived(both, *roster.label.parts, "encrypted sum", roster.digest, sender, receiver)


@dataclass(frozen=True)
class Opens:
    """What is opened: the sum of whom, by which two, who has agreed to the list, from which ciphertext on,
    and what names the page.
    """

    there: tuple[int, ...]
    pair: tuple[int, int]
    by: tuple[int, ...]
    first: int
    digest: bytes


@dataclass(frozen=True)
class Held:
    """The keys of an attempt, as every member has them: `s` encrypts, `k` makes tags and pads."""

    roster: Roster
    s: bytes = field(repr=False)
    k: bytes = field(repr=False)

    def tags(self, client: int, first: int, blocks: int, count: int, bits: int) -> Ints:
        """Of a client's page of ciphertexts from `first` on, (blocks, count) below 2**bits."""
        key = self._derived("tags", client, first)
        return masks.masked(self.roster.suite, np.zeros(blocks * count, np.uint64), bits, [key]).reshape(
            blocks, count
        )

    def word(self, there: Collection[int], client: int) -> bytes:
        """What this client says where it agrees to a list, and to no other."""
        return self._derived("agrees", sorted(there), client)

    def pad(self, opens: Opens, client: int) -> bytes:
        """What hides a page as this client opens it, together with the words of who has agreed."""
        return self._derived("pad", opens.there, opens.by, opens.first, opens.digest, client)

    def _derived(self, *purpose: Any) -> bytes:
        return self.roster.suite.derived(self.k, *self.roster.label.parts, self.roster.digest, *purpose)


def held(secret: Secret) -> Held:
    """The keys that a member was given. Raises ProtocolError where it has none, or they are not for it."""
    if not secret.mail:
        raise ProtocolError("this member of an encrypted sum was given no key")
    (by,) = secret.mail
    letter, box = _parts(secret)
    suite = secret.label.suite
    k = suite.unsealed(_letter_key(secret, by, secret.keys.client), letter)
    if len(k) != pairs.KEY:
        raise ProtocolError("a sealed key of an encrypted sum has another length")
    return Held(secret.roster, suite.unsealed(_box_key(secret.roster, k), box), k)


def agreed(secret: Secret, there: Collection[int], least: int) -> Secret:
    """The secret of a member that agrees to have the sum of these opened, and no other in this attempt.

    Raises PrivacyError where it must not.
    """
    roster, members = secret.roster, set(there)
    if not members <= set(roster.clients) or len(members) < len(there):
        raise ProtocolError("a list of survivors names somebody who is not in the roster, or twice")
    if len(members) < max(least, 2):
        raise PrivacyError(
            f"an encrypted sum of {len(members)} is not opened: at least {max(least, 2)} must add to it"
        )
    said = (*roster.label.parts, "list", roster.digest, sorted(members))
    named = roster.suite.digest(msgspec.msgpack.encode(said))
    if secret.list and secret.list != named:
        raise PrivacyError("a second list of survivors came for one attempt of an encrypted sum")
    return replace(secret, list=named, opened=True)


def listed(secret: Secret, opens: Opens, least: int) -> Secret:
    """The secret of a member that opens this, and no other such page in this attempt.

    Raises PrivacyError where it must not: of two lists one at most has more than half of all behind it.
    """
    secret, clients = agreed(secret, opens.there, least), set(secret.roster.clients)
    if secret.keys.client not in opens.pair or not len(set(opens.pair) & clients) == 2:
        raise PrivacyError("a sum is opened by two different members")
    if not 2 * len(set(opens.by) & clients) > len(clients):
        raise PrivacyError("more than half of all members must agree to what is opened")
    pages = decoded(secret.vector, dict[int, bytes], "the pages") if secret.vector else {}
    if pages.setdefault(opens.first, opens.digest) != opens.digest:
        raise PrivacyError("another page came where this member has opened one")
    return replace(secret, vector=msgspec.msgpack.encode(pages))


def spoiled(secret: Secret) -> Secret:
    """The secret of a member that takes no further part in this attempt: its keys are gone."""
    return replace(secret, mail={}, opened=True)


def page(own: Held, me: int, opens: Opens, numbers: Ints, bits: int) -> Page:
    """Opened integers (size,) as they leave `me`: under its pad, with the pad of the other."""
    (other,) = set(opens.pair) - {me}
    words = [own.word(opens.there, c) for c in opens.by]
    suite = own.roster.suite
    hidden = masks.masked(suite, numbers, bits, [_together(suite, own.pad(opens, me), words)])
    return Page(hidden.astype(masks.narrow(bits)).tobytes(), own.pad(opens, other))


def _together(suite: Suite, pad: bytes, words: Iterable[bytes]) -> bytes:
    return suite.derived(pad, "words", *words)


def unpadded(suite: Suite, found: Page, pad: bytes, words: Sequence[bytes], bits: int, size: int) -> Ints:
    """The integers (size,) of a page, by the pad that the other gave and the words of who has agreed, in the
    order of `Opens.by`. Raises ProtocolError.
    """
    dtype = masks.narrow(bits)
    if len(found.numbers) != size * dtype.itemsize or len(pad) != pairs.KEY:
        raise ProtocolError("an opened page of an encrypted sum has another length than it must")
    return masks.masked(suite, np.frombuffer(found.numbers, dtype), bits, (), [_together(suite, pad, words)])
