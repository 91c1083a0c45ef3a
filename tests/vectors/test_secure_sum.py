"""Golden bytes of a secure sum, and its parts against their standards, computed in another way."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from atoll.privacy import secure_sum as ss
from atoll.privacy.hazmat import masks, pairs, shamir
from atoll.privacy.hazmat.suite import INTL
from tests.privacy.sitting import LABEL, Sitting

VECTORS = json.loads(Path(__file__).with_name("secure_sum.json").read_text(encoding="utf-8"))


def counted(crypto: str) -> Sitting:
    """Three members whose n-th draw is SHAKE-256 of n, with small vectors."""
    label = replace(LABEL, crypto=crypto)
    sitting = Sitting(3, np.arange(12, dtype=np.uint64).reshape(3, 4), signed=False, label=label)
    numbers = iter(range(1 << 20))
    sitting.draw = lambda n: hashlib.shake_256(bytes([next(numbers)])).digest(n)
    return sitting.run()


def made(crypto: str) -> dict[str, object]:
    sitting = counted(crypto)
    secret = sitting.secrets[1]
    return {
        "keys": ss.keys_out(secret.keys).hex(),
        "roster": sitting.roster.digest.hex(),
        "pair": ss._pair_mask(secret, sitting.roster, 2).hex(),
        "own": ss._own_mask(sitting.roster, 1, secret.seed).hex(),
        "hidden": [int(x) for x in sitting.hidden[1]],
        "opened": hashlib.sha256(sitting.opened[1]).hexdigest(),
        "sum": [int(x) for x in sitting.sum()],
        "threshold": sitting.roster.threshold,
    }


@pytest.mark.parametrize("name", VECTORS["sitting"])
@pytest.mark.parametrize(("crypto", "golden"), [("intl", "sitting"), ("gm", "sitting of gm")])
def test_a_sum_of_three(crypto: str, golden: str, name: str) -> None:
    assert made(crypto)[name] == VECTORS[golden][name]


@pytest.mark.parametrize("case", VECTORS["x25519"], ids=lambda case: case["source"])
def test_x25519(case: dict[str, str]) -> None:
    mine, other = bytes.fromhex(case["private"]), bytes.fromhex(case["public"])
    assert pairs.agreed(mine, other).hex() == case["shared"]


def test_keys_are_hkdf_sha256() -> None:
    """RFC 5869, §2, written out: extract with an empty salt, expand to one block."""
    secret, purpose = bytes(range(32)), ("atoll secure sum 1", "plant", 7, b"digest")
    prk = hmac.digest(bytes(32), secret, "sha256")
    block = hmac.digest(prk, msgspec.msgpack.encode(purpose) + b"\x01", "sha256")
    assert INTL.derived(secret, *purpose) == block


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_masks_are_aes_256_of_a_counter(bits: int) -> None:
    key = bytes(range(32))
    single = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  one block each: a counter mode by hand
    stream = b"".join(single.update(i.to_bytes(16, "big")) for i in range(40))
    size = len(stream) * 8 // bits
    found = masks.masked(INTL, np.zeros(size, np.uint64), bits, [key])
    assert (found == np.frombuffer(stream, f"<u{bits // 8}")).all()


def test_shares_lie_on_a_polynomial_modulo_the_prime() -> None:
    numbers = iter(range(1 << 10))
    shares = shamir.split(b"\x05" * 32, 3, [1, 2, 9], lambda n: bytes(next(numbers) % 256 for _ in range(n)))
    secret = int.from_bytes(b"\x05" * 32, "big")
    a, b = (int.from_bytes(bytes(range(48 * i, 48 * i + 48)), "big") for i in range(2))
    for x, share in shares.items():
        assert int.from_bytes(share, "big") == (secret + a * x + b * x * x) % shamir.PRIME
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))
