"""Heterogeneity: known extremes, advice with its reason, and a picture that is written whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import ConfigError, DataError
from atoll.data import (
    Dataset,
    Examples,
    Sites,
    dirichlet,
    feature_skew,
    heterogeneity,
    iid,
    labels,
    partition,
    quantity,
)


def data(n: int = 4000, classes: int = 4, width: int = 300) -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, width)).astype(np.float32) + y[:, None]  # labels lie apart
    return Dataset("d", Examples(x, y), classes=tuple("abcdefgh"[:classes]))


def test_alike_clients() -> None:
    found = heterogeneity(partition(data(), 20, iid()))
    assert found.label_tv == pytest.approx(found.label_iid, abs=0.02)
    assert (found.gini, found.cv, found.one_label) == (0, 0, 0)
    assert found.shift < 0.05
    assert found.recommend().algorithm == "fedavg"


def test_one_label_each() -> None:
    found = heterogeneity(partition(data(), 20, labels(1)))
    assert found.label_tv == pytest.approx(0.75, abs=0.01)  # 1 - 1/4
    assert found.one_label == 20
    assert found.shift < 0.05  # label skew is not feature skew
    assert found.recommend().algorithm == "scaffold"
    assert found.recommend(share=0.01).algorithm == "fedavgm"


def test_feature_skew_is_seen() -> None:
    found = heterogeneity(partition(data(), 20, feature_skew(shift=1.0)))
    assert found.shift > 0.5
    assert found.recommend().algorithm == "fedbn"
    assert "standard deviations" in found.recommend().reason


def test_small_unequal_clients_are_not_taken_for_label_skew() -> None:
    found = heterogeneity(partition(data(800), 40, quantity(0.4)))
    assert found.label_tv > 0.2
    assert found.skew < 0.2
    assert found.recommend().algorithm == "fednova"


def test_middling_skew_and_few_silos() -> None:
    assert heterogeneity(partition(data(), 20, dirichlet(1.0))).recommend().algorithm in ("fedprox", "fedavg")
    silos = heterogeneity(partition(data(width=10), 4, labels(1)))
    assert silos.recommend().algorithm == "exact statistics"


def test_gini_by_hand() -> None:
    sites = Sites.of([(np.zeros((n, 1)), np.zeros(n, int)) for n in (1, 3)])
    assert heterogeneity(sites).gini == pytest.approx(0.25)  # |1-3| * 2 / (2 * 4 * 4)
    assert heterogeneity(sites).cv == pytest.approx(0.5)


def test_shift_by_hand_without_chance() -> None:
    # two clients of 1000 rows, one label, means 1 sd apart each side: f = 1
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2000, 5))
    noise[:1000] += 1 - noise[:1000].mean(axis=0)
    noise[1000:] -= 1 + noise[1000:].mean(axis=0)
    sites = Sites.of([(noise[:1000], np.zeros(1000, int)), (noise[1000:], np.zeros(1000, int))])
    assert heterogeneity(sites).shift == pytest.approx(1.0, abs=0.05)


def test_regression_by_bins_and_empty_clients() -> None:
    rng = np.random.default_rng(0)
    numbers = Dataset(
        "r", Examples(rng.normal(size=(500, 2)), np.sort(rng.normal(size=500))), task="regression"
    )
    assert heterogeneity(partition(numbers, 20, dirichlet(0.1, min_rows=0))).label_tv > 0.5
    assert heterogeneity(partition(numbers, 5, iid())).label_tv < 0.2


def test_the_table_says_it_in_words() -> None:
    text = str(heterogeneity(partition(data(), 20, labels(1))))
    assert "strong" in text
    assert "scaffold" in text
    assert "smallest / median / largest" in text


@pytest.mark.parametrize("clients", [3, 100])
def test_the_picture_is_the_same_bytes_twice(tmp_path: Path, clients: int) -> None:
    pytest.importorskip("matplotlib")
    found = heterogeneity(partition(data(400, width=2), clients, dirichlet(0.5)))
    one, two = found.draw(tmp_path / "a.svg"), found.draw(tmp_path / "b.svg")
    assert one.read_bytes() == two.read_bytes()
    assert found.draw(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        found.draw(tmp_path / "a.bmp")


def test_a_failed_picture_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space"):
        heterogeneity(partition(data(100, width=2), 3, iid())).draw(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_missing_cells_are_refused() -> None:
    with pytest.raises(DataError, match="site 'site 0', column '0'"):
        heterogeneity(Sites.of([(np.array([[np.nan], [1.0]]), np.array([0, 1]))]))
