"""A model saved is the model loaded, and a file is whole or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atoll.core.errors import MisuseError, StateError
from atoll.core.update import Layout, Leaf, Rows, Update
from atoll.wire.manifest import Limits
from atoll.wire.tensorfile import load_safetensors, save_safetensors

MODEL = Update.of({"z.weight": np.arange(6.0).reshape(2, 3), "a.bias": np.ones(2), "scale": np.array(2.0)})


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_model_comes_back_with_its_order(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(MODEL.astype(dtype), path)
    back = load_safetensors(path)
    assert back == MODEL.astype(dtype)
    assert back.buffer.dtype == dtype
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    theirs = load_file(path)
    assert all((theirs[name] == MODEL[name]).all() for name in MODEL)


def test_a_file_of_others_is_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_file({"b": np.ones(2, "f4"), "a": np.arange(3)}, path)
    assert list(load_safetensors(path)) == ["a", "b"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    save_safetensors(MODEL, path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        save_safetensors(MODEL.scale(2), path)
    assert load_safetensors(path) == MODEL
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from atoll.core.update import Update
from atoll.wire.tensorfile import save_safetensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # as a disk that has no more room
try:
    save_safetensors(Update.of({"w": np.ones(1 << 16, np.float32)}), Path(sys.argv[1]))
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits on the sizes of files are POSIX's")
def test_an_error_of_the_disk_is_one_of_the_systems(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_safetensors(MODEL, path)
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG), str(path)], done.stderr
    assert load_safetensors(path) == MODEL
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_is_synced_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = {}, os.fsync

    def noted(fd: int) -> None:
        found = os.fstat(fd)
        synced[found.st_ino] = found.st_size
        sync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    path = tmp_path / "m"
    save_safetensors(MODEL, path)
    assert synced[path.stat().st_ino] == path.stat().st_size > 0
    assert tmp_path.stat().st_ino in synced  # its name, too


def test_nan_is_refused_unless_asked_for(tmp_path: Path) -> None:
    bad = MODEL.scale(float("nan"))
    with pytest.raises(MisuseError, match="NaN"):
        save_safetensors(bad, tmp_path / "m")
    assert not list(tmp_path.iterdir())
    save_safetensors(bad, tmp_path / "m", finite=False)
    with pytest.raises(StateError, match="NaN"):
        load_safetensors(tmp_path / "m")
    assert np.isnan(load_safetensors(tmp_path / "m", finite=False).buffer).all()


def test_only_dense_reals_are_saved(tmp_path: Path) -> None:
    ring = Update(Layout((Leaf("w", (2,)),)), np.zeros(2, np.uint64), bits=8)
    rows = Update.of({"t": Rows(np.array([1]), np.ones((1, 2)))})
    for update in (ring, rows):
        with pytest.raises(MisuseError, match="dense"):
            save_safetensors(update, tmp_path / "m")


def test_damaged_and_oversized_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with pytest.raises(StateError, match="No such file"):
        load_safetensors(path)
    save_safetensors(MODEL, path)
    good = path.read_bytes()
    for bad in (
        b"",
        good[:-1],
        good[:5],
        good + b"x",
        b"\xff" * 8 + good[8:],
        good.replace(b'"shape":[2]', b'"shape":[9]'),
    ):
        path.write_bytes(bad)
        with pytest.raises(StateError):
            load_safetensors(path)
    path.write_bytes(good)
    for limits in (Limits(bytes=100), Limits(head=10), Limits(leaves=2), Limits(dims=1)):
        with pytest.raises(StateError):
            load_safetensors(path, limits=limits)
