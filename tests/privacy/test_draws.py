"""What draws cohorts and rows under a promise: a cipher's stream, uniform, and not foreseen by any seed."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from atoll.core.errors import MisuseError
from atoll.core.rng import Rng
from atoll.learn.select import Choice, poisson, sample
from atoll.privacy import dp
from atoll.privacy.draws import Draws, Hidden

SECRET = bytes(range(32))


def test_uniform_numbers_are_the_keystream_of_aes_256_in_counter_mode() -> None:
    stream = Cipher(algorithms.AES(SECRET), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 5))
    whole = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(5)]
    assert Draws(SECRET).random(5).tolist() == [(n >> 11) / 2**53 for n in whole]


def test_all_256_bits_of_the_secret_and_the_whole_path_count() -> None:
    first = tuple(Hidden.below(SECRET, "cohort", 3).generator().random(4))
    others = {
        tuple(Hidden.below(bytes(flipped), "cohort", 3).generator().random(4))
        for flipped in (np.frombuffer(SECRET, np.uint8) ^ np.eye(32, dtype=np.uint8))
    }
    others |= {tuple(Hidden.below(SECRET, "cohort", n).generator().random(4)) for n in (0, 1, 2, 4)}
    others.add(tuple(Hidden.below(SECRET, "rows", 3).generator().random(4)))
    assert len(others) == 32 + 5
    assert first not in others
    assert tuple(Hidden.below(SECRET, "cohort", 3).generator().random(4)) == first
    below = Hidden.below(SECRET, "cohort", 3)
    assert below.at("a", 1) == below.at("a", 1) != below.at("a", 2)


def test_two_secrets_whose_64_bits_are_equal_draw_others() -> None:
    one, two = Hidden(7, SECRET), Hidden(7, SECRET[::-1])
    assert one.generator().random(4).tolist() != two.generator().random(4).tolist()
    assert one.at("x") != two.at("x")


def test_coins_and_samples_are_as_likely_as_they_must_be() -> None:
    coins = Draws(SECRET).random(100_000)
    assert stats.kstest(coins, "uniform").pvalue > 1e-4
    draws = Draws(SECRET)
    counts = np.zeros(20)
    for _ in range(5_000):
        chosen = draws.choice(np.arange(20), 5)
        assert len(set(chosen.tolist())) == 5
        counts[chosen] += 1
    assert stats.chisquare(counts).pvalue > 1e-4
    orders = np.array([draws.permutation(4) for _ in range(6_000)]) @ [64, 16, 4, 1]
    _, found = np.unique(orders, return_counts=True)
    assert len(found) == 24
    assert stats.chisquare(found).pvalue > 1e-4


def test_draws_that_no_accountant_knows_are_refused() -> None:
    with pytest.raises(MisuseError, match="equal chances"):
        Draws(SECRET).choice(np.arange(4), 2, p=[0.7, 0.1, 0.1, 0.1])
    with pytest.raises(MisuseError, match="drawn once"):
        Draws(SECRET).choice(np.arange(4), 2, replace=True)


@pytest.mark.parametrize("cohort", [poisson(0.3), sample(0.3)], ids=str)
def test_cohorts_are_drawn_from_it(cohort: Any) -> None:
    async def losses(clients: Any) -> dict[int, float]:
        raise AssertionError("nobody asks")

    def picked(key: Rng) -> tuple[int, ...]:
        return tuple(asyncio.run(cohort.pick(Choice(range(200), None, key, losses))))

    key = dp.cohort_stream(SECRET, 2)
    chosen, again, public = picked(key), picked(key), picked(Rng(key.key))
    assert chosen == again != public
    assert 30 < len(chosen) < 90
