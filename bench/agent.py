"""A client's own memory, and a client of the base installation, without any extra."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from .federation import LINGER, Federation, memory

ROOT = Path(__file__).parents[1]


def installed(folder: Path, extras: str = "") -> Path:
    """A fresh environment with nothing but the wheel, what it needs and `extras`; its `atoll` command."""
    folder.mkdir(parents=True)
    _run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    _run(*pip, "install", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[{extras}]")
    return folder / "venv" / "bin" / "atoll"


def _run(*command: str) -> None:
    done = subprocess.run(  # noqa: S603  commands written above
        command, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} {command[1]} ... failed: {done.stderr[-1000:]}")


def measure(folder: Path, base: Path, transport: str) -> dict[str, float]:
    """MB of a joined client and its processes: `pss` as it waits, `after` a job, `rss` with what they share;
    `peak`: the most in a job.
    """
    folder.mkdir(parents=True)
    command = [str(base), "client", "--config"]
    plain: dict[str, Any] = {"transport": transport, "client": command, "settings": {"linger": LINGER}}
    with Federation(folder, 1, **plain):
        pass  # enrolled: what follows is an agent's usual start
    with Federation(folder, 1, again=True, **plain) as fed:
        time.sleep(LINGER + 3)
        pss, rss = memory(fed.processes[fed.names[0]])
        with Peak(fed.processes[fed.names[0]]) as peak:
            fed.train(10_000_000, 3)
        time.sleep(LINGER + 3)
        after, _ = memory(fed.processes[fed.names[0]])
    return {"pss": pss / 1e6, "rss": rss / 1e6, "after": after / 1e6, "peak": peak.most / 1e6}


class Looking:
    """Looks at a process in a thread, as often as it can be, while a block lasts."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    def look(self) -> None:
        """Once."""
        raise NotImplementedError


class Peak(Looking):
    """The most memory (PSS) of a process and those it starts."""

    most = 0

    def look(self) -> None:
        """Once."""
        with suppress(psutil.NoSuchProcess):
            self.most = max(self.most, memory(self._process)[0])


def trained(folder: Path, base: Path) -> int:
    """Rounds that such a client trained a numpy learner in, of three."""
    folder.mkdir(parents=True)
    with Federation(folder, 1, client=[str(base), "client", "--config"]) as fed:
        return len(fed.run({"learner": {"name": "softmax"}, "rounds": 3}))
