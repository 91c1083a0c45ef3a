"""Tokens: a secret that lets somebody in once, with the fingerprint of who may hear it.

    atoll1.<base64url of: SHA-256 of the root (32 bytes), secret (32 bytes), crc32 of both (4 bytes)>

The fingerprint lets the bearer know the server before saying anything; the secret is sent only to
a server that proved itself by that root. Servers keep the secret's hash: a stolen table of tokens
opens nothing. The check sum tells a token that was copied badly from one that is not known.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from ..core.errors import ConfigError, MisuseError

PREFIX = "atoll1."


@dataclass(frozen=True, slots=True)
class Token:
    """`fingerprint`: SHA-256 of the root certificate, 64 hex digits; `secret`: 32 bytes, not in its repr."""

    fingerprint: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.fingerprint) or len(self.secret) != 32:
            raise MisuseError("a token holds a fingerprint of 64 hex digits and a secret of 32 bytes")

    @classmethod
    def new(cls, fingerprint: str, random: Callable[[int], bytes]) -> Token:
        """A token with a fresh secret; `random` is a cryptographic source, as `secrets.token_bytes`."""
        return cls(fingerprint, random(32))

    @classmethod
    def parse(cls, text: str) -> Token:
        """The token in this text. Raises ConfigError, which does not repeat the text."""
        body = text.strip()
        if not body.startswith(PREFIX):
            raise ConfigError(f"this is not a token: one begins with {PREFIX!r}")
        try:
            data = urlsafe_b64decode(body.removeprefix(PREFIX) + "=")
        except (binascii.Error, ValueError):
            data = b""
        if len(data) != 68 or binascii.crc32(data[:64]).to_bytes(4, "big") != data[64:]:
            raise ConfigError("this token was not copied whole: copy it again, or ask for a new one")
        return cls(data[:32].hex(), data[32:64])

    def __str__(self) -> str:
        data = bytes.fromhex(self.fingerprint) + self.secret
        data += binascii.crc32(data).to_bytes(4, "big")
        return PREFIX + urlsafe_b64encode(data).decode().rstrip("=")

    @property
    def digest(self) -> str:
        """What a server keeps: SHA-256 of the secret, 64 hex digits."""
        return digest(self.secret)


def digest(secret: bytes) -> str:
    """The name under which a server knows a secret. The secret has 256 random bits: no salt is needed."""
    return sha256(secret).hexdigest()
