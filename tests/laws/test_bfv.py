"""Encrypted integers: what is decrypted is the exact sum, and what is no ciphertext or key is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tenseal")

from atoll.core.errors import ConfigError, ProtocolError
from atoll.privacy.hazmat import bfv
from atoll.privacy.hazmat.bfv import Ring, decrypt, encrypt, fresh


@given(st.integers(8, 32), st.integers(2, 40), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_what_is_decrypted_is_the_exact_sum(bits: int, members: int, seed: int) -> None:
    ring, rng = Ring(bits, members), np.random.default_rng(seed)
    key = fresh(ring)
    x = rng.integers(0, ring.t, (members, 2, bfv.N), dtype=np.uint64)
    x[:, 0, 0], x[:, 0, 1], x[:, 1] = ring.t - 1, 0, 0  # the largest of all; and polynomials of zeros
    sums = sum(encrypt(ring, key, y) for y in x) & np.uint64((1 << ring.width) - 1)
    assert (decrypt(ring, key, sums) == x.sum(axis=0) % np.uint64(ring.t)).all()


@pytest.mark.parametrize(("bits", "members"), [(32, 16), (32, 256), (32, 4096), (16, 1000), (8, 2)])
def test_as_many_as_it_says_fit(bits: int, members: int) -> None:
    """One ciphertext so many times: its error counts in full each time, and no independence helps."""
    ring = Ring(bits, members)
    key = fresh(ring)
    x = np.random.default_rng(0).integers(0, ring.t, (8, bfv.N), dtype=np.uint64)
    c = encrypt(ring, key, x)
    assert int(c.max()) * members < 2**ring.width
    assert (decrypt(ring, key, c * np.uint64(members)) == x * np.uint64(members) % np.uint64(ring.t)).all()


def test_one_integer_is_never_encrypted_to_the_same() -> None:
    ring = Ring(32, 4)
    x, key = np.zeros((2, bfv.N), np.uint64), fresh(ring)
    a = encrypt(ring, key, x)
    assert (a != encrypt(ring, key, x)).mean() > 0.99
    assert (a[:, 0] != a[:, 1]).mean() > 0.99


def test_another_key_reads_nonsense() -> None:
    ring = Ring(32, 4)
    x = np.arange(bfv.N, dtype=np.uint64)[None]
    c = encrypt(ring, fresh(ring), x)
    assert (decrypt(ring, fresh(ring), c) == x).mean() < 0.01


def test_what_is_no_key_is_refused() -> None:
    ring, x = Ring(32, 4), np.zeros((1, bfv.N), np.uint64)
    key = fresh(ring)
    for bad in (b"", key[:-1], key[: len(key) // 2], b"\0" * 64, bytes(1 << 20), fresh(Ring(16, 4))):
        with pytest.raises(ProtocolError, match=r"damaged|none to encrypt"):
            encrypt(ring, bad, x)


def test_what_is_no_ciphertext_is_refused() -> None:
    ring = Ring(32, 4)
    key = fresh(ring)
    c = encrypt(ring, key, np.zeros((2, bfv.N), np.uint64))
    for bad in (c[:1], c[:, :, :-1], c[0], c.astype(np.int64)):
        with pytest.raises(ProtocolError, match="coefficients"):
            decrypt(ring, key, bad)


@pytest.mark.parametrize(("bits", "members"), [(32, 1 << 14), (48, 4), (40, 1000)])
def test_what_has_no_room_is_refused(bits: int, members: int) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        Ring(bits, members)


def test_plain_integers_are_modulo_a_prime() -> None:
    sympy = pytest.importorskip("sympy")

    for bits in range(8, 33):
        assert Ring(bits, 2).t == sympy.nextprime(1 << bits)


def test_where_there_are_no_files_in_memory(monkeypatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    ring = Ring(16, 4)
    key = fresh(ring)
    x = np.arange(2 * bfv.N, dtype=np.uint64).reshape(2, bfv.N)
    assert (decrypt(ring, key, encrypt(ring, key, x)) == x).all()
