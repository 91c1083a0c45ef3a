"""A token's secret under seal: how a member enrols where somebody in between reads along.

    POST /v1/enrol/key {nonce}           ->  {chain, key, signature}
    POST /v1/enrol     {key, box, csr}   ->  {chain, urls}, as for a secret in the open

The server shows a key (X25519) of this life of its process, signed by the key that its certificate
certifies. The member checks that the certificate leads to the root whose fingerprint its token holds,
agrees on a key by one of its own that it uses once, and seals the secret by that. The request for a
certificate stands in the derivation: nobody in between can put another in its place. What comes back is
no secret: it must lead to the root and be for the member's key (enrol.py).
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ..core.errors import IntegrityError, ProtocolError
from ..privacy.certificate import certificates, p256
from ..privacy.hazmat.pairs import KEY, agreed, public
from ..privacy.hazmat.suite import INTL
from ..privacy.keys import SERVERS, Identity, chain_member, sign
from .link import SESSION

PURPOSE = "atoll enrol"


class Letterbox:
    """The server's side. `identity`: its own as it is now."""

    def __init__(self, identity: Callable[[], Identity]) -> None:
        self._identity = identity
        self._private = secrets.token_bytes(KEY)
        self._public = public(self._private)

    def shown(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """To POST /v1/enrol/key. Raises ProtocolError."""
        nonce = asked.get("nonce")
        if not isinstance(nonce, str) or not SESSION.fullmatch(nonce):
            raise ProtocolError("expected a nonce of 32 hexadecimal digits")
        us = self._identity()
        signature = sign(us.key, _shown(nonce, self._public), purpose=PURPOSE)
        return {"chain": us.chain.decode(), "key": _text(self._public), "signature": _text(signature)}

    def opened(self, body: Mapping[str, Any]) -> bytes:
        """The secret in an enrolment. Raises ProtocolError, also where it was sealed for another life."""
        theirs, box, csr = _bytes(body.get("key")), _bytes(body.get("box")), str(body.get("csr")).encode()
        key = _key(agreed(self._private, theirs), self._public, theirs, csr)
        return INTL.unsealed(key, box)


def sealed(
    answer: Mapping[str, Any], nonce: str, roots: bytes, secret: bytes, csr: bytes, *, now: float
) -> dict[str, str]:
    """The body of an enrolment, from what the server showed. Raises ProtocolError for a forged one."""
    chain, theirs, signature = str(answer.get("chain")), _bytes(answer.get("key")), answer.get("signature")
    server = chain_member(chain.encode(), roots, now=now)
    if server.role not in SERVERS:
        raise ProtocolError(f"what answered is {server.uri}, and no server")
    text = PURPOSE.encode() + b"\0" + _shown(nonce, theirs)
    try:
        verifier = p256(certificates(chain.encode())[0].public_key())
        verifier.verify(_bytes(signature), text, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise IntegrityError("the server's key is not signed by it: who is in between?") from None
    private = secrets.token_bytes(KEY)
    ours = public(private)
    box = INTL.sealed(_key(agreed(private, theirs), theirs, ours, csr), secret)
    return {"key": _text(ours), "box": _text(box), "csr": csr.decode()}


def _shown(nonce: str, key: bytes) -> bytes:
    return f"{nonce} {key.hex()}".encode()


def _key(shared: bytes, server: bytes, member: bytes, csr: bytes) -> bytes:
    return INTL.derived(shared, PURPOSE, server, member, INTL.digest(csr))


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode()


def _bytes(text: Any) -> bytes:
    try:
        return urlsafe_b64decode(text)
    except (Base64Error, ValueError, TypeError):
        raise ProtocolError("expected base64url") from None
