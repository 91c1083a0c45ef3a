"""Noise from a cipher: normal, the same for the same key, on its grid, and independent otherwise."""

from __future__ import annotations

from math import cos, log, pi, sqrt

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from atoll.core.errors import MisuseError
from atoll.privacy import noise

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def drawn(key: bytes, size: int) -> np.ndarray:
    return np.concatenate(list(noise.normals(key, size)))


def test_numbers_are_normal() -> None:
    found = drawn(KEY, 400_000)
    assert stats.kstest(found, "norm").pvalue > 1e-3
    assert abs(found.mean()) < 4 / np.sqrt(len(found))
    assert abs(stats.kurtosis(found)) < 0.05


def test_a_key_is_a_noise() -> None:
    assert np.array_equal(drawn(KEY, 100_000), drawn(KEY, 100_000))
    assert np.array_equal(drawn(KEY, 200_000)[:70_000], drawn(KEY, 70_000)), "whatever the size"
    assert abs(np.corrcoef(drawn(KEY, 100_000), drawn(OTHER, 100_000))[0, 1]) < 0.02
    first = drawn(KEY, 65_536)
    assert abs(np.corrcoef(first[:32_768], first[32_768:])[0, 1]) < 0.03, "both halves of a pair"


def test_the_first_number_by_hand() -> None:
    """Box and Muller on 53 bits of each half of AES-256-CTR's first block of numbers."""
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(8 << 16))
    first, second = (int.from_bytes(stream[at : at + 8], "little") >> 11 for at in (0, 4 << 16))
    expected = sqrt(-2 * log((first + 1) / 2**53)) * cos(2 * pi * second / 2**53)
    assert drawn(KEY, 1)[0] == pytest.approx(expected, rel=1e-12)


def test_a_sum_with_noise_stands_on_its_grid() -> None:
    total = np.random.default_rng(1).normal(size=200_000) * 3
    noisy, deviation = noise.add(total, 1.0, 2.5, KEY)
    step = noise.grid(2.5)
    assert np.array_equal(noisy, np.rint(noisy / step) * step)
    assert 2.5 <= deviation < 2.51, "what rounding may add is covered"
    assert np.std(noisy - total) == pytest.approx(deviation, rel=0.01)
    assert stats.kstest((noisy - total) / deviation, "norm").pvalue > 1e-3


def test_totals_that_round_to_the_same_cannot_be_told_apart() -> None:
    step = noise.grid(1.0)
    a, b = np.full(1000, 7 * step), np.full(1000, 7 * step + step * 0.49)
    assert np.array_equal(noise.add(a, 1.0, 1.0, KEY)[0], noise.add(b, 1.0, 1.0, KEY)[0])


def test_a_key_of_another_length() -> None:
    with pytest.raises(MisuseError, match="32 bytes"):
        drawn(b"short", 1)
