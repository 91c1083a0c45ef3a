"""Shares of a secret: any `threshold` of them give it back, fewer say nothing about it.

Shamir 1979, "How to share a secret", over the integers modulo the smallest prime above 2**256:

    q(x) = secret + a₁ x + ... + a_{t-1} x^{t-1};   share of place x: q(x);   secret = q(0)

The polynomial is evaluated with Python's integers, whose time depends on the numbers: whoever can measure
a sharing on the same machine to the nanosecond learns something about its secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from ...core.errors import MisuseError, ProtocolError

PRIME = (1 << 256) + 297
SECRET = 32  # bytes
SHARE = 33  # bytes


def split(
    secret: bytes, threshold: int, places: Sequence[int], draw: Callable[[int], bytes]
) -> dict[int, bytes]:
    """A share (33 bytes) for each of the `places`, different whole numbers of at least 1.

    `secret`: 32 bytes. `draw(n)`: n bytes of entropy. Raises MisuseError for other values.
    """
    if len(secret) != SECRET:
        raise MisuseError(f"a secret to share has {SECRET} bytes, got {len(secret)}")
    if len(set(places)) < len(places) or not 1 <= threshold <= len(places) or min(places) < 1:
        raise MisuseError(
            f"shares need different places of at least 1, and a threshold of at most {len(places)},"
            f" got a threshold of {threshold}"
        )
    q = [int.from_bytes(secret, "big")]
    q += [int.from_bytes(draw(48), "big") % PRIME for _ in range(threshold - 1)]  # 2**-127 from uniform
    return {x: _at(q, x).to_bytes(SHARE, "big") for x in places}


def _at(q: Sequence[int], x: int) -> int:
    y = 0
    for a in reversed(q):
        y = (y * x + a) % PRIME
    return y


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of these shares by place, all of which are used: give `threshold` of them.

    Shares that are no shares raise ProtocolError; too few, or some of another secret, give another
    secret: compare what comes out with a commitment.
    """
    places = tuple(sorted(shares))
    values = [int.from_bytes(shares[x], "big") for x in places]
    if any(len(shares[x]) != SHARE for x in places) or any(y >= PRIME for y in values):
        raise ProtocolError(f"a share has {SHARE} bytes and stands for a number below the prime")
    secret = sum(y * w for y, w in zip(values, _weights(places), strict=True)) % PRIME
    if secret >> (8 * SECRET):
        raise ProtocolError("these shares do not belong to one secret")
    return secret.to_bytes(SECRET, "big")


@lru_cache(maxsize=1024)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0: the same for all secrets that the same members hold."""
    weights = []
    for x in places:
        above, below = 1, 1
        for other in places:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
