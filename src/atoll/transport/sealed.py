"""Behind a proxy that ends TLS: signatures carry the trust that TLS cannot.

    POST /v1/seal   {chain, nonce}  ->  {chain, nonce, signature}     once for each link

Both show their chains; the server signs both nonces, the member signs every request. From then on
each request carries a record over its method, path and `atoll-` headers, each packet of a session
and each frame of an upload is a record, and so are answers that decide something:

    record = number (uint64) | length of the signature (uint8) | signature | payload
    signed = direction, nonce, context, number, SHA-256 of the payload

Numbers grow in each direction of a nonce and are taken once. A proxy can still read, hold back and
cut; it cannot change, replay or invent. Blobs need no signature: their name, the SHA-256 of their
head, stands in a signed letter. Everything else is as in https.py; `sealed` in the table of sessions
says that a proxy reads along.
"""

from __future__ import annotations

import secrets
import struct
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import count
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ..core.errors import Gone, IntegrityError, ProtocolError
from ..privacy.certificate import certificates, p256
from ..privacy.keys import SERVERS, Identity, Member, PrivateKey, chain_member, sign
from .link import SESSION

_NUMBER = struct.Struct("<QB")
PURPOSE = "atoll sealed"
WINDOW = 4096  # numbers that may arrive out of order
LONGEST_CHAIN = 32 << 10  # bytes
SEALS = 50_000  # at once; the longest unused is forgotten
OVERHEAD = 128  # bytes of a record beyond its payload, at most
SIGNED = ("atoll-session", "atoll-mode", "atoll-connection", "atoll-open", "atoll-start")


class Seal:
    """One side of a nonce: what we sign with, what we check with."""

    def __init__(self, key: PrivateKey, theirs: ec.EllipticCurvePublicKey, nonce: str, ours: str) -> None:
        self._key = key
        self._theirs = theirs
        self._nonce = nonce
        self._ours, self._other = (b"up", b"down") if ours == "up" else (b"down", b"up")
        self._numbers = count(1)
        self._highest = 0
        self._seen: set[int] = set()
        self._lock = threading.Lock()  # frames are signed and checked in worker threads

    @property
    def nonce(self) -> str:
        """32 hexadecimal digits."""
        return self._nonce

    def close(self, context: str, payload: bytes | memoryview) -> bytes:
        """A record of `payload`, for this context only."""
        number = next(self._numbers)
        signature = sign(self._key, self._text(self._ours, context, number, payload), purpose=PURPOSE)
        return b"".join([_NUMBER.pack(number, len(signature)), signature, payload])

    def open(self, context: str, record: bytes | memoryview) -> memoryview:
        """The payload. Raises IntegrityError for one that is forged or changed, Gone for one taken before."""
        view = memoryview(record)
        if len(view) < _NUMBER.size:
            raise IntegrityError("expected a signed record")
        number, length = _NUMBER.unpack_from(view)
        signature, payload = (
            view[_NUMBER.size : _NUMBER.size + length],
            view[_NUMBER.size + length :],
        )
        text = PURPOSE.encode() + b"\0" + self._text(self._other, context, number, payload)
        try:
            self._theirs.verify(bytes(signature), text, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise IntegrityError("a record is not signed by its sender: was it changed on the way?") from None
        self._once(number)
        return payload

    def _text(self, direction: bytes, context: str, number: int, payload: bytes | memoryview) -> bytes:
        parts = [direction, self._nonce.encode(), context.encode(), str(number).encode()]
        return b"\0".join(parts) + b"\0" + sha256(payload).digest()

    def _once(self, number: int) -> None:
        with self._lock:
            if number in self._seen or number + WINDOW <= self._highest:
                raise Gone("a record came twice: a proxy tried again, or somebody replays")
            self._seen.add(number)
            self._highest = max(self._highest, number)
            if len(self._seen) > 2 * WINDOW:
                self._seen = {n for n in self._seen if n + WINDOW > self._highest}


class Sealer:
    """The server's table of nonces. `source`: the server's identity as it is now."""

    def __init__(
        self, source: Callable[[], Identity], federation: str, wall: Callable[[], float] = time.time
    ) -> None:
        self._source = source
        self._federation = federation
        self._wall = wall
        self._seals: OrderedDict[str, tuple[Member, Seal]] = OrderedDict()

    def answer(self, asked: Any) -> dict[str, str]:
        """To POST /v1/seal. Raises ProtocolError for chains that prove nothing."""
        match asked:
            case {"chain": str(chain), "nonce": str(nonce)} if SESSION.fullmatch(nonce):
                pass
            case _:
                raise ProtocolError("expected a chain in PEM and a nonce of 32 hexadecimal digits")
        pem = chain.encode()
        if len(pem) > LONGEST_CHAIN:
            raise ProtocolError(f"expected a chain of at most {LONGEST_CHAIN} bytes")
        us = self._source()
        member = chain_member(pem, us.roots, now=self._wall(), federation=self._federation)
        ours = secrets.token_hex(16)
        self._seals[ours] = member, Seal(us.key, p256(certificates(pem)[0].public_key()), ours, "down")
        while len(self._seals) > SEALS:
            self._seals.popitem(last=False)
        signature = sign(us.key, _greeting(nonce, ours, pem), purpose=PURPOSE)
        return {"chain": us.chain.decode(), "nonce": ours, "signature": _text(signature)}

    def request(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[Member, Seal]:
        """Who signed a request. Raises IntegrityError, ProtocolError, Gone."""
        nonce, _, record = headers.get("atoll-seal", "").partition(".")
        known = self._seals.get(nonce)
        if known is None:
            raise Gone("this seal is not known here any more: ask for another")
        self._seals.move_to_end(nonce)
        known[1].open(context(method, path, headers), _bytes(record))
        return known


def opened(identity: Identity, nonce: str, answer: Any, *, now: float) -> Seal:
    """The member's side of a nonce, from what the server answered. Raises ProtocolError for a forged one."""
    match answer:
        case {"chain": str(chain), "nonce": str(theirs), "signature": str(signature)} if SESSION.fullmatch(
            theirs
        ):
            pass
        case _:
            raise ProtocolError("expected a chain, a nonce and a signature from the server")
    if not SESSION.fullmatch(theirs):
        raise ProtocolError("expected a nonce of 32 hexadecimal digits from the server")
    pem, federation = chain.encode(), identity.member.federation
    server = chain_member(pem, identity.roots, now=now, federation=federation)
    if server.role not in SERVERS:
        raise ProtocolError(f"what answered is {server.uri}, and no server")
    key = p256(certificates(pem)[0].public_key())
    text = PURPOSE.encode() + b"\0" + _greeting(nonce, theirs, identity.chain)
    try:
        key.verify(_bytes(signature), text, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise IntegrityError("the server's answer is not signed by it: who is in between?") from None
    return Seal(identity.key, key, theirs, "up")


def context(method: str, path: str, headers: Mapping[str, str]) -> str:
    """What a request's record is bound to. `path` with its query, as it is sent."""
    return "\n".join([method, path, *(f"{name}:{headers.get(name, '')}" for name in SIGNED)])


def header(seal: Seal, method: str, path: str, headers: Mapping[str, str]) -> str:
    """The value of `atoll-seal` for a request."""
    return f"{seal.nonce}.{_text(seal.close(context(method, path, headers), b''))}"


def said(seal: Seal, what: str, status: int, value: str) -> str:
    """The value of `atoll-seal` for an answer that decides something: an offset, a refusal."""
    return _text(seal.close(f"answer {what} {status}", value.encode()))


def heard(seal: Seal, what: str, status: int, told: str) -> str:
    """What such an answer says. Raises IntegrityError."""
    return bytes(seal.open(f"answer {what} {status}", _bytes(told))).decode("utf-8", "replace")


def _greeting(theirs: str, ours: str, chain: bytes) -> bytes:
    return f"hello {theirs} {ours} {sha256(chain).hexdigest()}".encode()


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text)
    except (Base64Error, ValueError):
        raise ProtocolError("expected base64url") from None
