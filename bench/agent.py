"""A client's own memory, and a client of the base installation, without any extra."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from .federation import Federation, status

ROOT = Path(__file__).parents[1]


def installed(folder: Path) -> Path:
    """A fresh environment with nothing but the wheel and what it needs; its `atoll` command."""
    folder.mkdir(parents=True)
    _run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    _run(*pip, "install", "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    return folder / "venv" / "bin" / "atoll"


def _run(*command: str) -> None:
    done = subprocess.run(  # noqa: S603  commands written above
        command, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} {command[1]} ... failed: {done.stderr[-1000:]}")


def measure(folder: Path, base: Path, transport: str) -> dict[str, float]:
    """MB of a joined client that waits (`pss`; `rss` with all it shares), and of one in a job (`peak`)."""
    folder.mkdir(parents=True)
    command = [str(base), "client", "--config"]
    with Federation(folder, 1, transport=transport, client=command):
        pass  # enrolled: what follows is an agent's usual start
    with Federation(folder, 1, transport=transport, client=command, again=True) as fed:
        time.sleep(2)
        found = fed.processes[fed.names[0]].memory_full_info()
    with Federation(folder, 1, transport=transport, again=True) as fed:
        fed.train(10_000_000, 3)
        peak = status(fed.processes[fed.names[0]], "VmHWM")
    return {"pss": found.pss / 1e6, "rss": found.rss / 1e6, "peak": peak / 1e6}


def trained(folder: Path, base: Path) -> int:
    """Rounds that such a client trained a numpy learner in, of three."""
    folder.mkdir(parents=True)
    with Federation(folder, 1, client=[str(base), "client", "--config"]) as fed:
        return len(fed.run({"learner": {"name": "softmax"}, "rounds": 3}))
