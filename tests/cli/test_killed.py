"""A run killed in the middle, with a real SIGKILL, goes on to the bytes of the undisturbed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
rounds = 40
[data]
name = "digits"
clients = 8
[learner]
name = "mlp"
hidden = [32]
[algorithm]
name = "scaffold"
"""
SAME = ("model.safetensors", "metrics.jsonl", "metrics.csv", "sites.csv", "job.json")


def command(job: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "atoll", "simulate", str(job), "--out", str(out), *more]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("after", [1, 17])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, after: int) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    subprocess.run(command(job, tmp_path / "whole"), check=True, capture_output=True)
    run = subprocess.Popen(command(job, tmp_path / "cut"), stderr=subprocess.PIPE, text=True)
    for line in run.stderr:  # kill once that round has been reported
        if line.startswith("round") and int(line.split()[1].split("/")[0]) >= after:
            run.send_signal(signal.SIGKILL)
            break
    run.stderr.close()
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    subprocess.run(command(job, tmp_path / "cut", "--resume"), check=True, capture_output=True)
    for name in SAME:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("place", ["simulate.record.before", "simulate.record.after"])
def test_a_run_killed_around_the_sync_of_a_record_goes_on(tmp_path: Path, place: str) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB.replace("rounds = 40", "rounds = 4"))
    subprocess.run(command(job, tmp_path / "whole"), check=True, capture_output=True)
    armed = {**os.environ, "ATOLL_FAILPOINTS": f"{place}:3:kill"}
    cut = subprocess.run(command(job, tmp_path / "cut"), check=False, capture_output=True, env=armed)
    assert cut.returncode == -signal.SIGKILL
    subprocess.run(command(job, tmp_path / "cut", "--resume"), check=True, capture_output=True)
    for name in SAME:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
