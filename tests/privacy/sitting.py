"""One attempt at a secure sum in memory: members, a coordinator, and who drops out before which step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from atoll.core.errors import ProtocolError
from atoll.privacy import secure_sum as ss
from atoll.privacy.roster import Keys, Label, Roster

STEPS = ("shares", "mask", "sign", "open")
LABEL = Label("plant", "r1", 0, 0)


def entropy(seed: int) -> Callable[[int], bytes]:
    """Bytes that a seed repeats."""
    return np.random.default_rng(seed).bytes


@dataclass
class Members:
    """Signing keys that every member has pinned."""

    keys: dict[bytes, str] = field(default_factory=dict)

    def signer(self, name: str) -> Callable[[bytes], tuple[bytes, bytes]]:
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        chain = key.public_key().public_bytes_raw()
        self.keys[chain] = name
        return lambda text: (key.sign(text), chain)

    def check(self, keys: Keys, text: bytes) -> str:
        if keys.chain not in self.keys:
            raise ProtocolError("nobody knows this member")
        try:
            Ed25519PublicKey.from_public_bytes(keys.chain).verify(keys.signature, text)
        except InvalidSignature:
            raise ProtocolError("this is not the member's signature") from None
        return self.keys[keys.chain]


@dataclass
class Sitting:
    """`n` members with `vectors` (n, d) of integers below 2**bits; `lost[step]`: who is gone before it."""

    n: int
    vectors: Any
    bits: int = 32
    seed: int = 0
    label: Label = LABEL
    lost: dict[str, Collection[int]] = field(default_factory=dict)
    signed: bool = True

    def __post_init__(self) -> None:
        self.members = Members()
        self.draw = entropy(self.seed)
        self.sign = {c: self.members.signer(f"client-{c}") if self.signed else None for c in range(self.n)}
        self.check = self.members.check if self.signed else None
        self.secrets: dict[int, ss.Secret] = {}
        self.roster: Roster
        self.shared: dict[int, bytes] = {}
        self.mail: dict[int, bytes] = {}
        self.hidden: dict[int, Any] = {}
        self.signatures: dict[int, bytes] = {}
        self.opened: dict[int, bytes] = {}
        self.disks: dict[int, ss.Secret] = {}  # what is left once it has opened; `secrets`: all it ever had

    def there(self, step: str) -> list[int]:
        gone = {c for name in STEPS[: STEPS.index(step) + 1] for c in self.lost.get(name, ())}
        return [c for c in range(self.n) if c not in gone]

    def keys(self) -> None:
        self.secrets = {c: ss.begin(self.label, c, self.draw, self.sign[c]) for c in range(self.n)}
        self.roster = ss.roster_of(self.label, {c: ss.keys_out(s.keys) for c, s in self.secrets.items()})

    def shares(self) -> None:
        text = ss.roster_out(self.roster)
        for c in self.there("shares"):
            self.secrets[c], self.shared[c] = ss.share(self.secrets[c], text, self.draw, check=self.check)
        self.mail = ss.routed(self.shared)

    def mask(self) -> None:
        for c in self.there("mask"):
            self.secrets[c], self.hidden[c] = ss.mask(
                self.secrets[c], self.mail[c], self.vectors[c], self.bits
            )

    @property
    def list(self) -> bytes:
        return ss.survivors_out(self.hidden)

    def agree(self) -> None:
        for c in self.there("sign"):
            self.secrets[c], self.signatures[c] = ss.sign(self.secrets[c], self.list, self.sign[c])

    def open(self) -> None:
        proof = ss.signatures_out(self.signatures)
        for c in self.there("open"):
            mine = self.secrets[c]
            self.disks[c], self.opened[c] = ss.reveal(mine, self.list, proof, check=self.check)
            self.secrets[c] = replace(self.disks[c], mask=mine.mask, seed=mine.seed, noise=mine.noise)

    def sum(self) -> Any:
        total = self.added(self.hidden.values())
        return ss.unmask(
            self.roster, total, self.bits, shared=self.shared, survivors=self.hidden, notes=self.opened
        )

    def added(self, vectors: Any) -> Any:
        """Modulo 2**bits."""
        return sum(vectors, np.zeros(self.vectors.shape[1], np.uint64)) & np.uint64((1 << self.bits) - 1)

    def run(self, until: str = "open") -> Sitting:
        for name, step in (
            ("keys", self.keys),
            ("shares", self.shares),
            ("mask", self.mask),
            ("sign", self.agree),
            ("open", self.open),
        ):
            step()
            if name == until:
                break
        return self


def vectors(n: int, d: int, bits: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 1 << bits, (n, d), dtype=np.uint64)
