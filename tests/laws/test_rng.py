"""Random streams are places in a tree: what is drawn at one depends on the seed and its path alone."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.rng import Rng, shuffles

seeds = st.integers(-(2**70), 2**70)
paths = st.lists(st.integers(-(2**63), 2**64) | st.text(max_size=5), max_size=4)


@given(seeds, paths, paths)
def test_a_path_may_be_walked_in_any_number_of_steps(seed, first, then):
    assert Rng.of(seed).at(*first).at(*then) == Rng.of(seed).at(*first, *then)


@given(seeds, paths)
def test_a_place_gives_equal_generators_each_time(seed, path):
    place = Rng.of(seed).at(*path)
    assert (place.generator().random(4) == place.generator().random(4)).all()
    assert 0 <= place.key < 2**64


@given(seeds, st.lists(st.integers(0, 2**64 - 1) | st.text(max_size=8), unique=True, min_size=2, max_size=6))
def test_different_names_and_orders_lead_to_different_places(seed, names):
    root = Rng.of(seed)
    keys = [root.at(name).key for name in names] + [root.at(*pair).key for pair in combinations(names, 2)]
    keys += [root.at(*reversed(pair)).key for pair in combinations(names, 2)]
    assert len(set(keys)) == len(keys)


def test_a_number_and_its_text_are_different_names():
    assert Rng.of(1).at(7) != Rng.of(1).at("7")
    assert Rng.of(1).at("a", "b") != Rng.of(1).at("ab")


def test_the_streams_are_the_same_on_every_machine_and_in_every_version():
    """A run is reproduced from its seed alone, so these numbers never change."""
    assert Rng.of(0).key == 16294208416658607535  # SplitMix64's first output for seed 0
    place = Rng.of(7).at("client", 3, "round", 0)
    assert place.key == 11284582329069366365
    assert place.generator().integers(0, 1000, 5).tolist() == [968, 750, 68, 10, 509]
    assert shuffles(np.array([place.key], np.uint64), 2, 5).tolist() == [[[4, 2, 3, 0, 1], [0, 2, 3, 4, 1]]]


def test_neighbouring_seeds_and_names_look_unrelated():
    keys = np.array([Rng.of(seed).at(name).key for seed in range(40) for name in range(40)], np.uint64)
    bits = np.unpackbits(keys.view(np.uint8)).reshape(len(keys), 64)
    share = bits.mean(axis=0)  # (64,), of 1,600 keys: one standard deviation is 0.0125
    assert np.abs(share - 0.5).max() < 0.06
    flips = np.bitwise_xor(bits[:-1], bits[1:]).sum(axis=1)
    assert abs(flips.mean() - 32) < 0.5


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 12))
def test_a_clients_order_does_not_depend_on_who_else_is_shuffled(keys, epochs, n):
    together = shuffles(np.array(keys, np.uint64), epochs, n)
    assert together.shape == (len(keys), epochs, n)
    for key, order in zip(keys, together, strict=True):
        assert (order == shuffles(np.array([key], np.uint64), epochs, n)[0]).all()
        assert (np.sort(order, axis=-1) == np.arange(n)).all()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_order_comes_up_equally_often(n):
    keys = np.array([Rng.of(5).at(i).key for i in range(24_000)], np.uint64)
    _, counts = np.unique(shuffles(keys, 1, n)[:, 0], axis=0, return_counts=True)
    expected = len(keys) / len(counts)
    assert len(counts) == [2, 6, 24][n - 2]
    assert (np.square(counts - expected) / expected).sum() < 2 * len(counts) + 12  # chi-square, far out
