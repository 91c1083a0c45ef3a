"""The larger model's side of joint inference: rows that nodes are unsure of, answered under seal.

Whoever answers (tier.py) publishes a key, signed by its certificate. Nodes seal rows or features for it
(joint.py), and the answer is sealed for who asked.

The key lives a day and is in memory only: who takes the certificate's key later reads nothing that was sent
before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, ProtocolError, StateError
from ..privacy.certificate import PrivateKey, load_key, member_of
from ..privacy.hazmat import pairs
from ..privacy.hazmat.suite import Suite
from ..privacy.sealed import publish, unseal
from .joint import PURPOSE

LIFE = 24 * 3600.0  # seconds that a key is published for
GRACE = 3600.0  # seconds that it is still read after


class Question(NamedTuple):
    """What a node asks: rows (n, ...), or `features` of some, for the model of that name, and what seals the
    answer. `on`: it may be passed on; `left`: seconds that the node still waits.
    """

    model: str
    x: NDArray[np.float32]
    suite: Suite
    back: bytes
    features: bool = False
    on: bool = False
    left: float = 0.0

    def sealed(self, answer: bytes) -> bytes:
        """The answer as only the asker reads it."""
        return self.suite.sealed(self.back, answer)


class _Rows(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    shape: tuple[int, ...]
    rows: bytes
    features: bool
    on: bool
    left: Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Above:
    """The keys of one server. `identity()`: its certificate's key and chain, as they are by now, for they are
    renewed. Clocks in Unix seconds, real entropy.
    """

    def __init__(
        self,
        identity: Callable[[], tuple[PrivateKey, bytes]],
        *,
        now: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._identity, self._now, self._random = identity, now, random
        self._privates: list[tuple[bytes, float]] = []  # newest first, until when they are published

    @classmethod
    def open(cls, folder: Path) -> Above:
        """By key.pem and cert.pem of a member's identity. Raises ConfigError where there is none."""

        def identity() -> tuple[PrivateKey, bytes]:
            try:
                key, chain = load_key((folder / "key.pem").read_bytes()), (folder / "cert.pem").read_bytes()
                member_of(chain)
            except (OSError, StateError, ProtocolError) as error:
                raise ConfigError(f"{folder} holds no identity of a member: {error}") from None
            return key, chain

        identity()
        return cls(identity)

    def key(self) -> bytes:
        """What `/v1/key` answers; a new key when half of the life of the last one is over.

        Raises ConfigError where the identity cannot be read any more.
        """
        now = self._now()
        self._privates = [(private, until) for private, until in self._privates if until + GRACE > now]
        if not self._privates or self._privates[0][1] - now < LIFE / 2:
            self._privates.insert(0, (self._random(pairs.KEY), now + LIFE))
        private, until = self._privates[0]
        return publish(*self._identity(), pairs.public(private), until)

    def read(self, message: bytes, most: int) -> Question:
        """A node's question of at most `most` rows.

        Raises ProtocolError for what no key of now reads, DataError for what is no rows.
        """
        for private, until in self._privates:
            if until + GRACE > self._now():
                try:
                    text, back, suite = unseal(private, message, PURPOSE)
                except ProtocolError:
                    continue
                return _question(text, back, suite, most)
        raise ProtocolError("this is sealed for another key: ask for the key again")


def _question(text: bytes, back: bytes, suite: Suite, most: int) -> Question:
    try:
        told = msgspec.msgpack.decode(text, type=_Rows)
        if not told.shape or not 1 <= told.shape[0] <= most or min(told.shape) < 1:
            raise ValueError
        x = np.frombuffer(told.rows, np.float32).reshape(told.shape)
    except (msgspec.DecodeError, ValueError):
        raise DataError(f"expected 1 to {most} rows of float32") from None
    if not np.isfinite(x).all():
        raise DataError("a row holds a number beyond float32: check its unit")
    return Question(told.model, x, suite, back, told.features, told.on, told.left)
