"""The command line in this process: `atoll("parts", "--json")` gives its exit code and what it printed."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll.control.cli import main
from atoll.control.starter import make


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def atoll(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    for name in ("LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: object) -> Said:
        capsys.readouterr()
        code = main([os.fspath(a) if isinstance(a, Path) else str(a) for a in argv])
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The starter's data with a job of built-in parts, as the current folder."""
    folder = tmp_path / "project"
    make(folder)
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


JOB = """
name = "machines"
rounds = 6
data = { name = "csv", path = "data", target = "fails", holdout = 0.25 }
learner = { name = "logistic", lr = 0.5, epochs = 2 }
"""
