"""A message that one key's owner alone can read, a key for the answer, and whose key it is.

As the base mode of HPKE (RFC 9180, section 5), in the ciphers of suite.py: each message has an X25519 pair of
its own, whose public half goes before it, and both public halves go into the derivation.

    1 byte 1, 1 byte suite (0 intl, 1 gm), 32 bytes public key, the sealed text

The owner's key is short-lived and published under the signature of its certificate, which leads to the
federation's root: {"key": base64, "until": Unix seconds, "chain": PEM, "signature": base64}.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable

import msgspec

from ..core.errors import ProtocolError
from .certificate import LONGEST, SERVERS, Member, PrivateKey, sign, verify
from .hazmat import pairs
from .hazmat.suite import GM, INTL, KEY, Suite

HEAD = 2 + pairs.KEY
_SUITES = (INTL, GM)
_PURPOSE = "atoll sealed key"


class _Published(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    until: float
    chain: str
    signature: str


def seal(
    public: bytes, text: bytes, purpose: str, random: Callable[[int], bytes], suite: Suite = INTL
) -> tuple[bytes, bytes]:
    """The message for the owner of `public` (32 bytes), and the key (32 bytes) that its answer is sealed by.

    `random(n)`: n bytes of real entropy. Raises ProtocolError for a public key that is none.
    """
    private = random(pairs.KEY)
    mine = pairs.public(private)
    there, back = _keys(suite, pairs.agreed(private, public), mine, public, purpose)
    return bytes((1, _SUITES.index(suite))) + mine + suite.sealed(there, text), back


def unseal(private: bytes, message: bytes, purpose: str) -> tuple[bytes, bytes, Suite]:
    """The text, the key for the answer and the suite. Raises ProtocolError for what is not for this key."""
    if len(message) < HEAD or message[0] != 1 or message[1] >= len(_SUITES):
        raise ProtocolError("this is no sealed message of version 1")
    suite, theirs = _SUITES[message[1]], message[2:HEAD]
    shared = pairs.agreed(private, theirs)
    there, back = _keys(suite, shared, theirs, pairs.public(private), purpose)
    return suite.unsealed(there, message[HEAD:]), back, suite


def publish(key: PrivateKey, chain: bytes, public: bytes, until: float) -> bytes:
    """The key under its owner's signature, as JSON. `until`: Unix seconds."""
    signature = sign(key, _told(public, until), purpose=_PURPOSE)
    encoded = (b64encode(part).decode() for part in (public, signature))
    shown, signed = encoded
    return msgspec.json.encode(_Published(shown, until, chain.decode(), signed))


def published(data: bytes, roots: bytes, *, now: float) -> tuple[bytes, float, Member]:
    """The public key, until when it is good, and whose it is: a coordinator or an edge of the federation.

    Raises ProtocolError for a key that is over or not signed so.
    """
    if len(data) > LONGEST:
        raise ProtocolError(f"a published key has at most {LONGEST} bytes, this one {len(data)}")
    try:
        told = msgspec.json.decode(data, type=_Published)
        public, signature = (b64decode(part, validate=True) for part in (told.key, told.signature))
    except (msgspec.DecodeError, ValueError):
        raise ProtocolError("this is no published key") from None
    payload = _told(public, told.until)
    owner = verify(told.chain.encode(), roots, payload, signature, now=now, purpose=_PURPOSE)
    if owner.role not in SERVERS or len(public) != pairs.KEY:
        raise ProtocolError(f"{owner.uri} may not read what nodes send up: an edge or a coordinator may")
    if now > told.until:
        raise ProtocolError("the published key is over: ask for the new one")
    return public, told.until, owner


def _told(public: bytes, until: float) -> bytes:
    return msgspec.msgpack.encode((public, until))


def _keys(suite: Suite, shared: bytes, sender: bytes, owner: bytes, purpose: str) -> tuple[bytes, bytes]:
    both = suite.derived(shared, "atoll sealed", purpose, sender, owner)
    there, back = (suite.derived(both, way) for way in ("there", "back"))
    assert len(there) == len(back) == KEY  # noqa: S101
    return there, back
