"""Files that appear whole, the failpoints around them, and the disk that forgets."""

import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import ConfigError, MisuseError
from atoll.wire import failpoint, files
from atoll.wire.files import Files, whole
from tests.wire.lossy import SECTOR, Lossy, tear


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoint.arm("")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file"
    with whole(target) as out:
        out.write(b"one")
        assert not target.exists()
    with suppress(KeyError), whole(target) as out:
        out.write(b"two")
        raise KeyError
    assert target.read_bytes() == b"one"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("name", sorted(n for n in failpoint.NAMES if n.startswith("files.")))
def test_an_error_at_each_step_leaves_the_old_or_the_new(name: str, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    failpoint.arm(f"{name}:1:full")
    with pytest.raises(OSError, match=name), whole(target) as out:
        out.write(b"new")
    assert target.read_bytes() in {b"old", b"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_place_fires_once_at_its_count() -> None:
    failpoint.arm("files.sync.before:3:raise")
    failpoint.hit("files.sync.before")
    failpoint.hit("files.sync.after")
    failpoint.hit("files.sync.before")
    with pytest.raises(OSError, match=r"failpoint files\.sync\.before"):
        failpoint.hit("files.sync.before")
    failpoint.hit("files.sync.before")


@pytest.mark.parametrize(
    "text", ["x", "x:1", "x:0:kill", "x:-1:kill", "x:1:explode", ":1:kill", "x:1:kill:2"]
)
def test_a_wrong_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="name:count:action"):
        failpoint.arm(text)


def test_names_are_declared_once() -> None:
    with pytest.raises(MisuseError, match="there already"):
        failpoint.declare("files.sync.before")


def test_the_environment_arms(tmp_path: Path) -> None:
    code = "import pathlib; from atoll.wire.files import whole\n"
    code += f"with whole(pathlib.Path({str(tmp_path / 'x')!r})): pass"
    for place, there in (("replace.before", False), ("replace.after", True)):
        env = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "ATOLL_FAILPOINTS": f"files.{place}:1:kill"}
        done = subprocess.run([sys.executable, "-c", code], check=False, env=env)
        assert done.returncode == -9
        assert (tmp_path / "x").exists() == there


def survivors(files: Lossy, tmp_path: Path, seeds: int = 200) -> list[dict[str, bytes]]:
    found = []
    for seed in range(seeds):
        into = tmp_path / f"after{seed}"
        files.survivors(random.Random(seed), into)
        found.append({p.name: p.read_bytes() for p in into.rglob("*") if p.is_file()})
    return found


def test_what_is_synced_survives(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    files = Lossy(root)
    with files.whole(root / "file") as out:
        out.write(b"x" * 5000)
    assert all(found == {"file": b"x" * 5000} for found in survivors(files, tmp_path))


def test_what_is_not_synced_may_be_lost_torn_or_kept(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    files = Lossy(root)
    with files.create(root / "file") as out:
        out.write(b"x" * 5000)
    found = survivors(files, tmp_path)
    assert {} in found
    assert {"file": b""} in found
    assert {"file": b"x" * 5000} in found
    assert any(b"\0" in each.get("file", b"") for each in found)


def test_a_rename_is_one_change(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    (root / "file").write_bytes(b"old")
    files = Lossy(root)
    with files.create(root / "part") as out:
        out.write(b"new")
        files.sync(out)
    files.sync_folder(root)
    files.replace(root / "part", root / "file")
    outcomes = [{"file": b"new"}, {"file": b"old", "part": b"new"}]
    assert all(found in outcomes for found in survivors(files, tmp_path))


def test_torn_bytes_come_from_both(tmp_path: Path) -> None:
    old, new = b"o" * 4 * SECTOR, b"n" * 6 * SECTOR
    kinds = {frozenset(tear(random.Random(seed), old, new)) for seed in range(200)}
    assert {frozenset(b"o"), frozenset(b"n"), frozenset(b"on")} <= kinds


def test_files_and_lossy_files_do_the_same(tmp_path: Path) -> None:
    for name, make in (("plain", lambda _: Files()), ("lossy", Lossy)):
        root = tmp_path / name
        root.mkdir()
        files = make(root)
        files.make_folder(root / "a" / "b")
        with files.whole(root / "a" / "b" / "file") as out:
            out.write(b"x")
        files.unlink(root / "missing")
    assert {p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*")} == {
        p.relative_to(tmp_path / "lossy") for p in (tmp_path / "lossy").rglob("*")
    }


@given(st.lists(st.integers(1, 3 * files.EARLY), max_size=8))
def test_the_disk_is_told_of_each_full_part_once(sizes: list[int]) -> None:
    told: list[tuple[int, int]] = []

    def begin(file: int, start: int, size: int, how: int) -> int:
        assert (file, how) == (7, 2)
        told.append((start, size))
        return 0

    at = 0
    with mock.patch.object(files, "_begin", return_value=begin):
        for size in sizes:
            files.early(7, at, size)
            at += size
    ends = [0, *(start + size for start, size in told)]
    assert [start for start, _ in told] == ends[:-1]
    assert ends[-1] == at // files.EARLY * files.EARLY


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_the_system_takes_the_call(tmp_path: Path) -> None:
    begin = files._begin()
    assert begin is not None
    with (tmp_path / "file").open("wb") as out:
        out.write(bytes(1 << 20))
        assert begin(out.fileno(), 0, 1 << 20, 2) == 0
    assert begin(-1, 0, 1 << 20, 2) == -1  # and an error stays without effect
    files.early(-1, 0, files.EARLY)
