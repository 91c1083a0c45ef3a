"""A member's folder has one process at a time, and none that died keeps it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.control.engine.process import alone, holder
from atoll.core.errors import StateError

HOLD = """
import os, sys, time
from pathlib import Path
from atoll.control.engine.process import alone

with alone(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker of it, which outlives it
        time.sleep(60)
        os._exit(0)
    print("mine", flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as made:
        assert made.stdout is not None
        try:
            assert made.stdout.readline() == "mine\n"
            yield made
        finally:
            os.killpg(made.pid, signal.SIGKILL)


def test_a_second_process_of_a_folder_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    with holding(folder) as first:
        said = f"hub is in use by process {first.pid}: end that one"
        with pytest.raises(StateError, match=said), alone(folder, ends=0.3):
            pass
        with alone(tmp_path / "other", ends=0.3):
            pass
        first.kill()
        first.wait()
        with alone(folder, ends=0.3):
            assert (folder / ".lock").read_text() == f"{os.getpid()}\n", "while a worker of the first lives"
    with alone(folder, ends=0.3):
        pass


def test_one_that_ends_is_waited_for(tmp_path: Path) -> None:
    with holding(tmp_path) as first:
        ending = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {first.pid}"])
        with alone(tmp_path, ends=20):
            pass
        assert ending.wait() == 0


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".lock").mkdir()
    with alone(tmp_path, ends=0.3):
        assert "cannot be locked: Is a directory. Start one process only there" in caplog.text
    with pytest.raises(FileNotFoundError), alone(tmp_path, ends=0.3):
        (tmp_path / "missing").read_text()


def test_who_keeps_a_folder(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with holding(tmp_path) as first:
        assert holder(tmp_path) == first.pid
    assert holder(tmp_path) is None, "its number stands there still"
