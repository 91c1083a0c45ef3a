"""How many bits a secure sum has: 16 only where the job's own numbers show that they do."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import atoll as at
from atoll.core.errors import ConfigError
from atoll.core.rng import Rng
from atoll.learn.integers import INT8, Hidden, Scale, Width, share_of

NOISE = st.one_of(
    st.none(), st.builds(Hidden, st.floats(0.3, 20), st.just(1.0), st.integers(0, 2), st.booleans())
)


@given(
    st.integers(2, 400),
    st.integers(1, 100_000),
    st.floats(1e-3, 100),
    st.floats(1e-3, 100),
    NOISE,
)
def test_sixteen_bits_are_taken_only_where_room_and_rounding_allow(
    members: int, size: int, largest: float, bound: float, noise: Hidden | None
) -> None:
    noise = noise and replace(noise, bound=bound)
    width = Width(largest, 1.0, bound, noise)
    try:
        made = width.scale(members, size)
    except ConfigError:  # the noise of too many has no room: said as it is with 32 bits that were asked for
        with pytest.raises(ConfigError):
            Scale(32, largest, members, 1.0, noise)
        return
    if made.bits == 32:
        assert made == Scale(32, largest, members, 1.0, noise)
        return
    steps = made.largest * made.unit
    sigma = 0.0 if noise is None else noise.sigma * bound * made.unit
    assert steps >= INT8
    assert INT8 * members + 9 * sigma <= 2.0**15
    assert steps * members + (noise.reach(members) * made.unit if noise else 0) <= 2.0**14
    assert sqrt(size) / 2 <= bound * made.unit / 8
    assert noise is None or members / 4 <= sigma**2 / 100 * (1 + 1e-9)
    assert made.largest >= min(largest, bound), "no update that keeps its bound is refused"


def test_without_a_bound_there_are_thirty_two() -> None:
    assert Width(0.001, 1.0, None).scale(2, 1).bits == 32
    assert "nothing in the job bounds" in Width(0.001, 1.0, None).why(2, 1)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 30), st.sampled_from([True, False]))
def test_sums_in_the_bits_that_are_chosen_are_right(seed: int, members: int, noisy: bool) -> None:
    """They do not overflow, and are off by no more than rounding and noise."""
    size, rng = 200, np.random.default_rng(seed)
    width = Width(16.0, 1.0, 1.0, Hidden(1.0, 1.0, 0) if noisy else None)
    scale = width.scale(members, size)
    assert scale.bits == 16
    layout = at.Update.of({"w": np.zeros(size)}).layout
    total, true = np.zeros(size + scale.digits, np.uint64), np.zeros(size)
    for k in range(members):
        x = rng.normal(size=size) if k else np.eye(size)[0]
        x /= np.linalg.norm(x)
        true += x
        noise = share_of(rng.bytes(32), scale.noise.crew(members)) if scale.noise else None
        total += scale.out(at.Update(layout, x), 1.0, Rng.of(seed).at(k), noise)
    found = scale.back(total & np.uint64(0xFFFF), layout, members).update.buffer
    spread = sqrt(members) / 2 / scale.unit + (
        1.5 * sqrt(members / scale.noise.crew(members)) if noisy else 0
    )
    assert np.abs(found - true).max() <= 7 * spread + (0.02 * members if noisy else 0)


CLIPPED = at.Algorithm("clipped", at.chain(at.mean(), at.clip(1.0)), weigh="equal")


@pytest.mark.parametrize("topology", [at.flat(), at.tree((2,))], ids=["flat", "edges"])
def test_a_run_takes_what_follows_from_its_job(topology) -> None:
    """The same bytes as with those bits asked for, at the coordinator and at edges; and what it says."""
    sites = at.partition(at.load_data("digits"), clients=6, seed=1)
    job = at.Job(at.softmax(lr=0.1), rounds=2, topology=topology)
    for algorithm, bits in ((CLIPPED, 16), (at.fedavg(), 32)):
        mine = job.replace(algorithm=algorithm, exchange=at.secure_sum())
        found = at.simulate(mine, sites, seed=3)
        asked = at.simulate(mine.replace(exchange=_fixed(mine, bits)), sites, seed=3)
        np.testing.assert_array_equal(found.params.buffer, asked.params.buffer)
        assert [r.get("up") for r in found.history] == [r.get("up") for r in asked.history]
        told = mine.exchange.integers(mine.trained, 6, 650)
        assert told.startswith(f"{bits} bits")


def _fixed(job: at.Job, bits: int):
    largest = 16.0 if bits == 32 else 1.0 + 1e-5  # which follows from the clip
    return at.secure_sum(bits=bits, largest=largest)


def test_bits_that_are_too_few_are_refused() -> None:
    sites = at.partition(at.load_data("digits"), clients=70, seed=1)
    job = at.Job(at.softmax(lr=0.1), rounds=1, exchange=at.secure_sum(bits=8))
    with pytest.raises(ConfigError, match="do not fit 8 bits"):
        at.simulate(job, sites, seed=3)
    with pytest.raises(ConfigError, match="bits must be from 8 to 64"):
        at.secure_sum(bits=7)
    assert at.secure_sum(bits=16).integers(job.trained, 30, 650) == "16 bits: the job says so"
