"""Engines that run until they fail: FD001's own shapes, and a generator whose engines look like them."""

from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import ConfigError, DataError
from atoll.data import engines, load_data
from atoll.data.turbofan import CAP, SENSORS, lives


def test_made_engines_are_the_same_each_time_and_wear_as_published() -> None:
    first, again = lives(engines=5, generated=True), lives(engines=5, generated=True)
    assert all(np.array_equal(a.sensors, b.sensors) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].sensors[:50], lives(engines=1, seed=1, generated=True)[0].sensors[:50])
    for life in first:
        assert 120 <= len(life.sensors) <= 380
        assert life.remaining[0] == len(life.sensors) - 1
        assert life.remaining[-1] == 0
    new = np.mean([life.sensors[:20].mean(axis=0) for life in lives(generated=True)], axis=0)
    worn = np.mean([life.sensors[-5:].mean(axis=0) for life in lives(generated=True)], axis=0)
    level, failed, noise = np.array(list(SENSORS.values())).T
    assert (np.abs(new - level) < np.maximum(noise, 0.05 * np.abs(failed - level))).all()
    assert (np.abs(worn - failed) < 0.2 * np.abs(failed - level)).all()


def test_a_row_is_the_last_readings_and_its_target_what_remained() -> None:
    life = lives(engines=1, generated=True)[0]
    data = load_data("engines", generated=True, engines=1, window=4)
    assert data.train.x.shape == (len(life.sensors) - 3, 4 * 14)
    assert np.allclose(data.train.x[2].reshape(4, 14), life.sensors[2:6])
    assert data.train.y[-1] == 0
    assert data.train.y[0] == CAP
    assert data.features[:2] == ("s2 -3", "s3 -3")
    assert engines(generated=True, engines=2, share=True).train.y.max() == 1.0


def test_fd001_as_published(atoll_data: Path) -> None:
    data = engines(generated=False)
    assert data.train.x.shape == (17_731, 30 * 14)
    assert data.test is not None
    assert data.test.x.shape == (100, 30 * 14)
    assert data.sites is not None
    assert len(set(data.sites)) == 100
    assert data.test.y[:3].tolist() == [112, 98, 69]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"cap": 0}, {"engines": 0}])
def test_wrong_options_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        engines(generated=True, **wrong)


def test_without_the_files_fd001_is_refused_and_engines_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOLL_DATA", str(tmp_path))
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="generated=True"):
        lives(generated=False)
    assert engines(engines=3).source == "generated"


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cmapss_fd001"
    folder.mkdir()
    for name in ("train_FD001.txt.gz", "test_FD001.txt.gz", "RUL_FD001.txt"):
        (folder / name).write_bytes(b"no table")
    monkeypatch.setenv("ATOLL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"train_FD001.txt.gz is not"):
        engines()
