"""`atoll up`, `atoll down` and the demo as a user runs them: every member is a process of its own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from atoll.control.engine.process import holder
from atoll.control.remote.sdk import connect
from atoll.control.up import launched, plain

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def atoll(*words: str, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atoll", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout, cwd=cwd)


def left(folder: Path) -> list[list[str]]:
    """Processes that have the folder among their words."""
    found = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    return [words for words in found if any(str(folder) in word for word in words)]


@pytest.mark.slow
def test_the_demo_trains_exports_and_predicts_by_processes_that_end(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    done = atoll("demo", "--folder", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"same bytes.*yes", done.stdout), done.stdout
    assert not left(folder)


@pytest.mark.slow
def test_up_starts_a_federation_once_and_down_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    words = ("--folder", str(folder))
    assert "nothing ran" in atoll("down", *words).stdout
    first = atoll("up", *words)
    try:
        assert first.returncode == 0, first.stdout + first.stderr
        again = atoll("up", *words)
        assert again.returncode != 0 and "atoll down" in again.stdout + again.stderr
        where = json.loads((folder / "operator.json").read_text("utf-8"))
        with connect(where["url"], token=where["token"]) as fed:
            above = {node["name"]: node["parent"] for node in fed.nodes() if node["state"] == "online"}
        pid, _ = json.loads((folder / "processes.json").read_text("utf-8"))["coordinator"]
        psutil.Process(pid).kill()
        config = folder / "coordinator" / "coordinator.toml"
        with launched("coordinator", config, tmp_path / "log") as other:  # as somebody does by hand
            until = time.monotonic() + 60
            while holder(config.parent) != other.pid:
                assert time.monotonic() < until, (tmp_path / "log").read_text("utf-8")
                time.sleep(0.05)
            assert "coordinator" in atoll("down", *words).stdout
            assert other.wait(1) == 0
        assert above == {k: v.replace("coordinator", "") for k, v in plain(2, 6).items() if v}
    finally:
        done = atoll("down", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not left(folder)


@pytest.mark.slow
def test_a_starter_project_runs_as_its_readme_says(tmp_path: Path) -> None:
    """Each command of it, in turn: a model and an algorithm of one's own, simulated and by real processes."""
    assert atoll("new", str(tmp_path / "mine")).returncode == 0
    text = (tmp_path / "mine" / "README.md").read_text("utf-8")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    atoll ")]
    assert [words[1] for words in commands] == ["simulate", "up", "submit", "down"]
    said = {}
    try:
        for _, *words in commands:
            done = atoll(*words, cwd=tmp_path / "mine")
            assert done.returncode == 0, done.stdout + done.stderr
            said[words[0]] = done.stdout
    finally:
        atoll("down", cwd=tmp_path / "mine")
    assert "ended: coordinator, edge-a, edge-b, client-1, client-2, client-3, client-4" in said["down"]
    (simulated,) = re.findall(r"(?m)^federated +([\d.]+)", said["simulate"])
    assert f"accuracy {simulated} " in said["submit"].splitlines()[-1], "the same sites, the same rows"
