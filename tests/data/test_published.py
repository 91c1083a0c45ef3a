"""The published sets: sizes as their papers say, damaged files refused. Real files from $ATOLL_DATA."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import ConfigError, DataError
from atoll.data import ai4i, ai4i2020, heart_disease, load_data, mnist, partition
from atoll.data.images import idx

needs_files = pytest.mark.skipif(
    not os.environ.get("ATOLL_DATA"), reason="set ATOLL_DATA to the folder of datasets"
)


@needs_files
def test_heart_is_flambys() -> None:
    sites = partition(heart_disease())
    assert sites.names == ("cleveland", "hungarian", "switzerland", "va")
    assert sites.sizes.tolist() == [199, 172, 30, 85]
    assert [len(test) for test in sites.tests] == [104, 89, 16, 45]
    assert sites.features == len(sites.columns) == 13
    assert set(sites["switzerland"].y) == {1}
    assert sites.test is not None
    assert len(sites.test) == 254
    sites.check()


@needs_files
def test_ai4i() -> None:
    data = ai4i2020()
    assert data.train.x.shape == (10_000, 6)
    assert int(data.train.y.sum()) == 339
    assert dict(zip(*np.unique(data.sites, return_counts=True), strict=True)) == {
        "H": 1003,
        "L": 6000,
        "M": 2997,
    }
    assert load_data("ai4i2020", type="onehot").train.x.shape == (10_000, 8)
    with pytest.raises(ConfigError, match=r"\$\.type"):
        ai4i2020(type="binary")


@needs_files
def test_mnist() -> None:
    data = mnist()
    assert data.train.x.shape == (60_000, 784)
    assert data.train.x.dtype == np.float32
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1
    assert data.test is not None
    assert np.bincount(data.test.y).tolist()[:2] == [980, 1135]
    pixels = np.round(data.test.x * 255).astype(np.uint8).tobytes()
    head = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (10_000, 28, 28))
    assert (
        hashlib.md5(head + pixels, usedforsecurity=False).hexdigest() == "2646ac647ad5339dbf082846283269ea"
    )  # the publisher's


def test_no_copy_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ATOLL_DATA", raising=False)
    monkeypatch.setenv("ATOLL_CACHE", str(tmp_path))
    monkeypatch.setattr(ai4i, "_FILE", replace(ai4i._FILE, url="file:///absent/ai4i2020.csv"))
    with pytest.raises(DataError, match=r"Put these files into \$ATOLL_DATA/ai4i2020"):
        ai4i2020()


HEAD = bytes((0, 0, 8, 2)) + (3).to_bytes(4, "big") + (2).to_bytes(4, "big")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEAD[:5],
        HEAD + bytes(5),  # a value short
        HEAD + bytes(7),  # a value over
        bytes((0, 0, 13, 2)) + HEAD[4:] + bytes(24),  # floats
        bytes((0, 0, 8, 2)) + b"\xff" * 8 + bytes(6),  # 2**64 values: refused before allocation
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    for name in ("a", "a.gz"):
        with pytest.raises(DataError, match="fetch it again"):
            idx(tmp_path / name, (3, 2))


def test_good_idx_and_a_broken_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(packed := gzip.compress(HEAD + bytes(range(6))))
    assert idx(tmp_path / "a.gz", (3, 2)).tolist() == [[0, 1], [2, 3], [4, 5]]
    (tmp_path / "b.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        idx(tmp_path / "b.gz", (3, 2))


def test_a_damaged_hospital_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "heart_disease").mkdir()
    for hospital in ("cleveland", "hungarian", "switzerland", "va"):
        (tmp_path / "heart_disease" / f"processed.{hospital}.data").write_text("63,1,SECRET\n")
    monkeypatch.setenv("ATOLL_DATA", str(tmp_path))
    with pytest.raises(DataError, match="line 1: expected 14 numbers") as refused:
        heart_disease()
    assert "SECRET" not in str(refused.value)
