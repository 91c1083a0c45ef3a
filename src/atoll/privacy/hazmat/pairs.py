"""Keys between two members: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439).

What a key is for goes into its derivation, so that no two uses ever share a key. A key seals one message
only: its nonce is zero.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...core.errors import ProtocolError

KEY = 32  # bytes of private keys, public keys and derived keys
_NONCE = bytes(12)


def public(private: bytes) -> bytes:
    """The public half of a private key; each has 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, other: bytes) -> bytes:
    """What the owner of `private` and the owner of the public key `other` both know, 32 bytes.

    Raises ProtocolError for a point of small order, with which anybody would know it.
    """
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise ProtocolError("a public key is no point that keys can be agreed on with") from None


def derived(secret: bytes, *purpose: Any) -> bytes:
    """A key of 32 bytes for one purpose: plain values, which are told apart however they are cut."""
    info = msgspec.msgpack.encode(purpose)
    return HKDF(algorithm=hashes.SHA256(), length=KEY, salt=None, info=info).derive(secret)


def committed(secret: bytes, *purpose: Any) -> bytes:
    """What binds its maker to a secret of 32 random bytes, and says nothing about it."""
    return sha256(msgspec.msgpack.encode((*purpose, secret))).digest()


def named(key: bytes, *text: bytes | memoryview) -> bytes:
    """What only these bytes have for who knows the key, 16 bytes (GMAC, NIST SP 800-38D).

    It must stay with its maker: two of one key, published, would give the key away.
    """
    tags = [AESGCM(key).encrypt(_NONCE, b"", part) for part in text]
    return tags[0] if len(tags) == 1 else AESGCM(key).encrypt(_NONCE, b"", b"".join(tags))


def sealed(key: bytes, text: bytes) -> bytes:
    """`text` encrypted and authenticated; the key must never seal another."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, None)


def unsealed(key: bytes, text: bytes) -> bytes:
    """The inverse of `sealed`. Raises ProtocolError for anything that this key did not seal."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, text, None)
    except (InvalidTag, ValueError):
        raise ProtocolError("a sealed message was changed, or is not for this member") from None
