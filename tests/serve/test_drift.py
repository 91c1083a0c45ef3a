"""Samples compared against SciPy and the papers' figures; streams that change, and streams that do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from atoll.serve.drift.adwin import Adwin
from atoll.serve.drift.ks import ks, p_value, threshold
from atoll.serve.drift.page_hinkley import PageHinkley
from atoll.serve.drift.psi import psi
from atoll.serve.drift.wasserstein import normalised, wasserstein

SAMPLES = [(1, 1), (5, 200), (300, 300), (1000, 37)]


def pair(n: int, m: int, *, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, n, m])
    x, y = rng.normal(size=n), rng.normal(0.3, 1.5, size=m)
    return (x.round(), y.round()) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m"), SAMPLES)
def test_ks_and_wasserstein_are_scipys(n: int, m: int, *, ties: bool) -> None:
    x, y = pair(n, m, ties=ties)
    assert ks(x, y) == pytest.approx(stats.ks_2samp(x, y).statistic, abs=1e-12)
    assert wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-12)


def test_the_p_value_of_ks_is_scipys() -> None:
    for scale in (0.02, 0.05, 0.1, 0.2):
        z = scale * math.sqrt(800 * 700 / 1500)
        assert p_value(scale, 800, 700) == pytest.approx(stats.kstwobign.sf(z), rel=1e-6, abs=1e-12)
    assert p_value(threshold(800, 700, 0.01), 800, 700) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("d", [0.25, 0.5, 1.0])
def test_a_shift_of_d_spreads_gives_psi_d_squared_and_w1_d(d: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(20.0, 4.0, 20_000)
    found = [psi(x, rng.normal(20.0 + 4.0 * d, 4.0, 20_000)) for _ in range(5)]
    assert np.mean(found) == pytest.approx(d * d, rel=0.12)
    assert normalised(x, rng.normal(20.0 + 4.0 * d, 4.0, 20_000)) == pytest.approx(d, rel=0.08)


def test_psi_of_the_same_is_nothing_and_of_what_was_never_seen_is_finite() -> None:
    x = np.arange(100.0)
    assert psi(x, x) == 0.0
    assert 3.0 < psi(x, x + 1000.0) < 20.0
    assert psi(np.ones(50), np.ones(10)) == 0.0
    assert psi(np.ones(50), np.full(10, 2.0)) > 1.0


def stream(seed: int, n: int, change: int | None = None) -> list[float]:
    rate = np.full(n, 0.2)
    if change is not None:
        rate[change:] = 0.35
    return (np.random.default_rng([seed, n]).random(n) < rate).astype(float).tolist()


@pytest.mark.parametrize("make", [Adwin, PageHinkley])
def test_an_error_that_rises_from_20_to_35_percent_is_found(make: Callable[[], Any]) -> None:
    delays = []
    for seed in range(15):
        detector = make()
        alarms = [t for t, x in enumerate(stream(seed, 7000, 5000)) if detector.add(x)]
        assert [t for t in alarms if t < 5000] == []
        delays.append(min(alarms, default=9999) - 5000)
    assert float(np.median(delays)) <= 400


def test_a_model_that_is_always_wrong_from_then_on_is_found_too() -> None:
    detector, least = Adwin(delta=0.0002), 0.0
    for x in [*(np.random.default_rng(1).random(512) < 0.3), *np.ones(600)]:
        detector.add(float(x))
        least = min(least, detector.spread)
    assert least < 0, "rounding leaves less than no variance"
    assert (detector.mean, detector.n) == (1.0, 600)


@pytest.mark.parametrize("make", [Adwin, PageHinkley])
def test_a_stream_that_does_not_change_alarms_nobody(make: Callable[[], Any]) -> None:
    for seed in range(10):
        detector = make()
        assert [t for t, x in enumerate(stream(100 + seed, 10_000)) if detector.add(x)] == []
