"""Crypto suites: the hash, the ciphers and the derivation of keys that one sum, or one file, is made with.

    intl   SHA-256, HKDF-SHA256 (RFC 5869), AES-256 in counter mode and GCM, ChaCha20-Poly1305 (RFC 8439)
    gm     SM3 (GB/T 32905), HKDF over SM3, SM4 (GB/T 32907) in counter mode and GCM (RFC 8998, appendix A.1)

What a key is for goes into its derivation, so that no two uses ever share a key. Keys have 32 bytes in both
suites; SM4 takes the first 16. A key seals one message only: its nonce is zero.

Agreement (X25519) and signatures (ECDSA P-256, as certificates have them) are the same in both: no library
that is kept up offers both on the curve of SM2 (docs/decisions/0016-crypto-suites.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from ...core.errors import ConfigError, ProtocolError

Crypto: TypeAlias = Literal["intl", "gm"]
KEY = 32  # bytes of derived keys
TAG = 16  # bytes behind what was sealed
NONCE = 12  # bytes


@dataclass(frozen=True)
class Suite:
    """One suite, its parts by the names that `cryptography` gives them; `size`: bytes of the cipher's keys.

    `mark`: what it adds to the labels of what is made with it. `says`: what it is, for people.
    """

    name: str
    mark: str
    says: str
    hash: str
    cipher: str
    size: int
    box: str = ""

    def digest(self, text: bytes) -> bytes:
        """Its hash of `text`, 32 bytes."""
        from cryptography.hazmat.primitives.hashes import Hash

        made = Hash(self._hash())
        made.update(text)
        return made.finalize()

    def derived(self, secret: bytes, *purpose: Any) -> bytes:
        """A key of 32 bytes for one purpose: plain values, which are told apart however they are cut."""
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        info = msgspec.msgpack.encode(purpose)
        return HKDF(algorithm=self._hash(), length=KEY, salt=None, info=info).derive(secret)

    def committed(self, secret: bytes, *purpose: Any) -> bytes:
        """What binds its maker to a secret of 32 random bytes, and says nothing about it."""
        return self.digest(msgspec.msgpack.encode((*purpose, secret)))

    def stream(self, key: bytes) -> Any:
        """The cipher in counter mode (NIST SP 800-38A) from counter 0: a key is good for one stream."""
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        return Cipher(self._cipher(key), modes.CTR(bytes(16))).encryptor()

    def named(self, key: bytes, *text: bytes | memoryview) -> bytes:
        """What only these bytes have for who knows the key, 16 bytes (GMAC, NIST SP 800-38D).

        It must stay with its maker: two of one key, published, would give the key away.
        """
        tags = [self._tag(key, part) for part in text]
        return tags[0] if len(tags) == 1 else self._tag(key, b"".join(tags))

    def encrypted(self, key: bytes, nonce: bytes, text: bytes | memoryview, bound: bytes = b"") -> bytes:
        """`text` by GCM, its tag behind it, bound to `bound`. `nonce`: 12 bytes, once for a key."""
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        cipher = Cipher(self._cipher(key), modes.GCM(nonce)).encryptor()
        cipher.authenticate_additional_data(bound)
        return b"".join((cipher.update(text), cipher.finalize(), cipher.tag))

    def decrypted(self, key: bytes, nonce: bytes, text: bytes | memoryview, bound: bytes = b"") -> bytes:
        """The inverse of `encrypted`. Raises ProtocolError for anything that was not made with these."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        view = memoryview(text)
        try:
            cipher = Cipher(self._cipher(key), modes.GCM(nonce, bytes(view[-TAG:]))).decryptor()
            cipher.authenticate_additional_data(bound)
            return cipher.update(view[:-TAG]) + cipher.finalize()
        except (InvalidTag, ValueError):
            raise ProtocolError("a sealed message was changed, or is not for this member") from None

    def sealed(self, key: bytes, text: bytes) -> bytes:
        """`text` encrypted and authenticated; the key must never seal another."""
        if not self.box:
            return self.encrypted(key, bytes(NONCE), text)
        return self._box(key).encrypt(bytes(NONCE), text, None)  # type: ignore[no-any-return]

    def unsealed(self, key: bytes, text: bytes) -> bytes:
        """The inverse of `sealed`. Raises ProtocolError for anything that this key did not seal."""
        from cryptography.exceptions import InvalidTag

        if not self.box:
            return self.decrypted(key, bytes(NONCE), text)
        try:
            return self._box(key).decrypt(bytes(NONCE), text, None)  # type: ignore[no-any-return]
        except (InvalidTag, ValueError):
            raise ProtocolError("a sealed message was changed, or is not for this member") from None

    def _tag(self, key: bytes, text: bytes | memoryview) -> bytes:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes

        cipher = Cipher(self._cipher(key), modes.GCM(bytes(NONCE))).encryptor()
        cipher.authenticate_additional_data(text)
        cipher.finalize()
        return cipher.tag

    def _hash(self) -> Any:
        from cryptography.hazmat.primitives import hashes

        return getattr(hashes, self.hash)()

    def _cipher(self, key: bytes) -> Any:
        from cryptography.hazmat.primitives.ciphers import algorithms

        return getattr(algorithms, self.cipher)(key[: self.size])

    def _box(self, key: bytes) -> Any:
        from cryptography.hazmat.primitives.ciphers import aead

        return getattr(aead, self.box)(key)


INTL = Suite(
    "intl",
    "",
    "SHA-256, AES-256, ChaCha20-Poly1305; key agreement X25519, signatures ECDSA P-256",
    "SHA256",
    "AES",
    32,
    "ChaCha20Poly1305",
)
GM = Suite("gm", " gm", "SM3, SM4; key agreement X25519, signatures ECDSA P-256, not SM2", "SM3", "SM4", 16)
SUITES = {suite.name: suite for suite in (INTL, GM)}


def suite_of(name: str, path: str = "$") -> Suite:
    """The suite of that name. Raises ConfigError where there is none; `path`: where the name stands."""
    if not isinstance(name, str) or name not in SUITES:
        raise ConfigError(f"crypto is {' or '.join(map(repr, SUITES))}, got {name!r}", path)
    return SUITES[name]


@lru_cache(maxsize=1)
def usable() -> tuple[str, ...]:
    """The names of the suites that this installation's OpenSSL can do: some are built without SM4."""
    return tuple(suite.name for suite in SUITES.values() if _works(suite))


def _works(suite: Suite) -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        text = suite.digest(b"")
        return suite.unsealed(bytes(KEY), suite.sealed(bytes(KEY), text)) == text
    except UnsupportedAlgorithm:
        return False
