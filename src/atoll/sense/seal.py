"""How a store's boxes are sealed, and what stands in place of names.

A box: suite (1 byte), salt (32), GCM under HKDF(the store's key; suite, salt) of packed values, bound to its
number; no key seals twice, also where a commit was lost and its number comes again.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zstandard

from ..core.errors import ProtocolError, StateError
from ..privacy.hazmat.suite import KEY, NONCE, SUITES, Suite

NUMBERS = {1: "intl", 2: "gm"}


@dataclass
class Seal:
    """`key`: the store's, 32 bytes; `suite`: of new boxes; `hash`: of its names; `where`: its file."""

    key: bytes = field(repr=False)
    suite: Suite
    hash: str
    where: str
    names: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.names = self.suite.derived(self.key, "atoll sense names 1")

    def hashed(self, *text: str | bytes) -> bytes:
        """What only these texts have for who knows the key, 16 bytes; in order, however they are cut."""
        return hmac.digest(self.names, msgspec.msgpack.encode(text), self.hash)[:16]

    def sealed(self, values: Any, number: int) -> bytes:
        """Plain values in a box of this number."""
        text = zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(values))
        salt = os.urandom(KEY)
        key = self.suite.derived(self.key, "atoll sense box 1", self.suite.name, salt)
        return (
            bytes([number_of(self.suite)])
            + salt
            + self.suite.encrypted(key, bytes(NONCE), text, b"%d" % number)
        )

    def opened(self, box: bytes, number: int) -> Any:
        """The inverse of `sealed`. Raises StateError for anything else."""
        try:
            suite = SUITES[NUMBERS[box[0]]]
            key = suite.derived(self.key, "atoll sense box 1", suite.name, box[1 : 1 + KEY])
            text = suite.decrypted(key, bytes(NONCE), box[1 + KEY :], b"%d" % number)
        except (ProtocolError, LookupError):
            raise StateError(f"{self.where} was changed, or is of another key: wipe it") from None
        return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(text))


def number_of(suite: Suite) -> int:
    """The byte that names a suite in a box."""
    return next(n for n, name in NUMBERS.items() if name == suite.name)
