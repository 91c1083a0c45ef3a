"""Keys that two members agree on: X25519 (RFC 7748). What is made of them is the suite's (suite.py)."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ...core.errors import ProtocolError

KEY = 32  # bytes of private and public keys, and of what two agree on


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
