"""Full and failing disks: read-only and saying so, nothing half-written, healthy again by itself."""

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from atoll.control.store import Store
from atoll.core.errors import StateError
from atoll.wire import failpoint
from atoll.wire.files import Files

FULL = "the disk is full: .* is read-only; free some space"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now

    def later(self) -> None:
        self.now += 60


class Small(Files):
    """A disk whose space a test takes and gives."""

    number = 0

    def _sync(self, file: BinaryIO) -> None:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        super()._sync(file)


def until_full(step: Callable[[int], object]) -> int:
    """How often `step` could be done."""
    done, said = 0, "it never filled up"
    try:
        for done in range(5000):
            assert step(done)
    except StateError as error:
        said = str(error)
    assert re.match(FULL, said)
    return done


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, FULL), (errno.EDQUOT, FULL), (errno.EIO, r"the disk fails \(.*\)")]
)
def test_no_room_for_blobs(number: int, said: str, url: str, tmp_path: Path) -> None:
    clock, files = Clock(), Small()
    with Store.open(url, tmp_path, clock=clock, files=files) as store:
        run = store.submit({}, 0, "ann")
        files.number = number
        with pytest.raises(StateError, match=said):
            store.blobs.put(b"update")
        with pytest.raises(StateError, match=said):  # rows would have room: the store is read-only as one
            store.move(run, "running", frm=("queued",))
        health = store.health()
        assert not health["ok"]
        assert "the disk" in health["reason"]
        assert store.run(run)["state"] == "queued"
        assert not list(store.blobs.names())
        clock.later()
        assert not store.health()["ok"]
        files.number = 0
        assert not store.health()["ok"]  # not asked again so soon
        clock.later()
        assert {**store.health(), "free": 0} == {**store.health(), "free": 0, "ok": True, "reason": ""}
        assert store.move(run, "running", frm=("queued",))
        assert store.blobs.exists(store.blobs.put(b"update"))


def test_a_write_heals_as_well(tmp_path: Path) -> None:
    clock, files = Clock(), Small()
    with Store.open("", tmp_path, clock=clock, files=files) as store:
        files.number = errno.ENOSPC
        with pytest.raises(StateError):
            store.blobs.put(b"update")
        files.number = 0
        clock.later()
        assert store.submit({}, 0, "ann")


def test_no_room_for_rows(tmp_path: Path) -> None:
    clock = Clock()
    with Store.open("", tmp_path, clock=clock) as store:
        journal = store.journal(store.submit({}, 0, "ann"))
        journal.asked(0, {})

        def pages(most: int) -> None:
            with store.engine.connect() as conn:
                used = conn.exec_driver_sql("PRAGMA page_count").scalar()
                conn.exec_driver_sql(f"PRAGMA max_page_count={max(most, used or 0)}")

        pages(0)
        written = until_full(lambda n: journal.answered(0, f"peer{n}", info={"x": "y" * 1000}))
        assert len(journal.resume().answers) == written
        assert store.verify().ok
        with pytest.raises(StateError, match=FULL):
            journal.note(0, {})
        clock.later()
        with pytest.raises(StateError, match=FULL):  # it looked again
            journal.note(0, {})
        pages(10**6)
        clock.later()
        assert journal.note(0, {})
        assert journal.answered(0, f"peer{written}")
        assert store.health()["ok"]


@pytest.mark.parametrize("name", ["store.note.before_commit", "files.sync.before", "files.folder.before"])
def test_an_error_in_the_middle_leaves_nothing(name: str, url: str, tmp_path: Path) -> None:
    clock = Clock()
    with Store.open(url, tmp_path, clock=clock) as store:
        journal = store.journal(store.submit({}, 0, "ann"))
        end = store.head()
        failpoint.arm(f"{name}:1:raise")
        with pytest.raises(StateError, match="the disk fails"):
            journal.note(len(store.blobs.put(b"x")) - 64, {})
        failpoint.arm("")
        assert store.head() == end
        assert not list((store.blobs.folder / "tmp").glob("*"))
        clock.later()
        assert journal.note(0, {})


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system; test_no_room_for_rows does without")
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(tiny: Path) -> None:
    clock = Clock()
    ballast = tiny / "ballast"
    with Store.open("", tiny / "store", clock=clock) as store:
        run = store.submit({}, 0, "ann")
        journal = store.journal(run)
        journal.asked(0, {})
        ballast.write_bytes(b"\0" * (1 << 19))
        kept = until_full(
            lambda n: journal.answered(0, f"peer{n}", blob=store.blobs.put(n.to_bytes(4, "little") * 1000))
        )
        assert kept > 3
        assert len(journal.resume().answers) == kept
        clock.later()
        assert not store.health()["ok"]
    with Store.open("", tiny / "store", clock=clock) as store:  # started on a full disk
        journal = store.journal(run)
        assert len(journal.resume().answers) == kept
        until_full(lambda n: store.blobs.put(n.to_bytes(4, "big") * 1000))
        ballast.unlink()
        clock.later()
        assert store.health()["ok"]
        journal.answered(0, f"peer{kept}", blob=store.blobs.put(b"more"))
        assert store.verify().ok
