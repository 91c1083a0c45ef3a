"""What a node of the edge set weighs: `python -m bench node [--json FILE]`. Needs a package index.

    wheels     what `pip install 'atoll-fl[edge]'` fetches here
    waits      a client of that installation, alone on its libraries, that has joined and does nothing
    serves     the same once it takes readings in, has served a network of 32 hidden units and watched
               windows, and nothing comes for a while
    at work    the same while windows come, with its process that serves; and how long a request takes that
               has to wait for that
    learns     its process that learns, the most in a job of three rounds
    a plan     the same for the CNN of 1.66 M parameters of `bench plan`, for which this needs PyTorch

Each in MB as RSS (all that the process can see), PSS (its share of it: libraries that its processes have in
common are divided between them) and data (what is in no file, and which the system cannot take from it).
Nothing else runs from that installation, so of the client that waits RSS and PSS say nearly the same: what a
machine of its own would have to give.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from atoll.control import up
from atoll.control.config import dump
from atoll.control.remote import predicting
from atoll.core.errors import AtollError

from .agent import ROOT, Looking, installed
from .federation import LINGER, WAIT, Federation, status
from .wire import Figure, told

NAMES = ("a", "b", "c", "d")
CONTRACT: dict[str, Any] = {
    "name": "press",
    "label": "y",
    "columns": {name: {"low": -9.0, "high": 9.0} for name in NAMES} | {"y": {"low": -99.0, "high": 99.0}},
}
FOLDER = {"path": "in", "every": 0.2, "device": "press-1"}
ENDS = {"linger": LINGER}
SETTINGS: dict[str, Any] = {
    "predict": "127.0.0.1:0",
    "quiet": LINGER,
    "sources": {"press": {"contract": "press.toml", "folder": FOLDER, "window": {"size": 100}}},
    "data": {
        "press": {"source": "press", "holdout": 0.2},
        "images": {"train": "images.csv", "target": "digit"},
    },
    "policy": {"plans": True},
    "watch": {"source": "press", "least": 100, "stable": 5},
}
JOB: dict[str, Any] = {
    "name": "press",
    "rounds": 3,
    "learner": {"name": "mlp", "hidden": [32], "loss": "squared", "lr": 0.05},
    "data": {"name": "press", "contract": CONTRACT, "pipeline": "range"},
}
WINDOWS = 20


def wheels(folder: Path) -> float:
    """MB that pip fetches for the edge set, our own wheel included."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run = [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(run, check=True, capture_output=True)  # noqa: S603  written above
    (own,) = folder.glob("*.whl")
    run = [*pip, "download", "--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder / "all")]
    subprocess.run([*run, f"{own}[edge]"], check=True, capture_output=True)  # noqa: S603
    return sum(file.stat().st_size for file in (folder / "all").iterdir()) / 1e6


def csv(rows: int, rng: np.random.Generator) -> str:
    """Readings of one device, a second apart."""
    x = rng.normal(size=(rows, len(NAMES)))
    y = x @ np.arange(1.0, 5.0) + rng.normal(size=rows) * 0.1
    now = time.time() - rows
    lines = [f"{now + k:.3f},{','.join(f'{v:.6g}' for v in (*x[k], y[k]))}" for k in range(rows)]
    return "\n".join([f"at,{','.join((*NAMES, 'y'))}", *lines, ""])


def held(process: psutil.Process) -> tuple[float, float, float]:
    """MB of one process: RSS, PSS, data."""
    found = process.memory_full_info()
    return found.rss / 1e6, found.pss / 1e6, status(process, "RssAnon") / 1e6


class Learner(Looking):
    """The process of a client that learns: the most that it holds."""

    rss = pss = data = 0.0

    def look(self) -> None:
        """Once."""
        with suppress(psutil.Error, StopIteration, OSError):
            for child in self._process.children():
                if "atoll.control.engine.learner" in child.cmdline():
                    self.rss = max(self.rss, status(child, "VmHWM") / 1e6)
                    _, pss, data = held(child)
                    self.pss, self.data = max(self.pss, pss), max(self.data, data)


def node(folder: Path, command: Path) -> Iterator[Figure]:
    """One client, from waiting to renewing."""
    rng = np.random.default_rng(0)
    with up.reserved(1) as (port,):
        settings = {**SETTINGS, **ENDS, "predict": f"127.0.0.1:{port}"}
    files = {"press.toml": dump(CONTRACT), "in/first.csv": csv(2000, rng), "images.csv": images(rng)}
    client = ["env", "-u", "PYTHONPATH", str(command), "client", "--config"]  # what is installed there
    plain: dict[str, Any] = {"client": client, "transport": "auto"}
    with Federation(folder / "waits", 1, settings=ENDS, **plain):
        pass  # enrolled: what follows is an agent's usual start
    with Federation(folder / "waits", 1, again=True, settings=ENDS, **plain) as fed:
        time.sleep(LINGER + 3)
        yield from figures("waits", *held(fed.processes[fed.names[0]]), 60)
    with Federation(folder / "serves", 1, settings=settings, files=files, **plain) as fed:
        process, place = fed.processes[fed.names[0]], fed.folder / fed.names[0] / "in"
        until((place / "done" / "first.csv").exists)
        with Learner(process) as learner:
            fed.run(JOB)
        until(lambda: bool(predicting.models(f"http://127.0.0.1:{port}")))
        for k in range(WINDOWS):
            (place / f"{k}.part").write_text(csv(100, rng), "utf-8")
            (place / f"{k}.part").rename(place / f"{k}.csv")
            time.sleep(0.5)
        work = [held(one) for one in (process, *process.children())]
        until(lambda: any(event["kind"] == "watch.calibrated" for event in fed.api.events(0)[0]))
        until(lambda: not process.children())
        yield from figures("serves", *held(process), 60)
        yield Figure("at work: PSS", sum(pss for _, pss, _ in work), "MB")
        for what in ("rested", "awake"):
            began = time.perf_counter()
            predicting.models(f"http://127.0.0.1:{port}")
            yield Figure(f"a request, {what}", (time.perf_counter() - began) * 1e3, "ms")
        yield from figures("learns", learner.rss, learner.pss, learner.data, 110)
        if find_spec("torch"):
            with Learner(process) as learner:
                fed.run(
                    {"learner": {"name": "plan", "file": str(cnn(folder))}, "rounds": 2, "data": "images"}
                )
            yield from figures("a plan", learner.rss, learner.pss, learner.data, 110)


def images(rng: np.random.Generator) -> str:
    """400 rows of 784 numbers, and ten classes."""
    head = ",".join([*(f"p{k}" for k in range(784)), "digit"])
    rows = (",".join([*(f"{v:.3f}" for v in rng.random(784)), str(k % 10)]) for k in range(400))
    return "\n".join([head, *rows, ""])


def cnn(folder: Path) -> Path:
    """The CNN of `bench plan`, for rows of 784 numbers."""
    from torch import nn

    from atoll.adapt.torch import torch_learner

    from .plan import nets

    make, _, values = nets()["paper's CNN"]
    learner = torch_learner(
        lambda: nn.Sequential(nn.Unflatten(1, (1, 28, 28)), make()), batch_size=10, **values
    )
    path: Path = learner.plan((784,)).save(folder / "cnn.plan")
    return path


def figures(name: str, rss: float, pss: float, data: float, goal: float) -> Iterator[Figure]:
    """What the goal is held against first."""
    yield Figure(f"{name}: PSS", pss, "MB", goal)
    yield Figure(f"{name}: RSS", rss, "MB")
    yield Figure(f"{name}: data", data, "MB")


def until(true: Callable[[], bool]) -> None:
    """Wait for it. Raises RuntimeError where it does not come."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        with suppress(AtollError):
            if true():
                return
        time.sleep(0.2)
    raise RuntimeError(f"nothing came in {WAIT:g} seconds")


def everything(atoll: Path | None) -> Iterator[Figure]:
    """Of an installation's `atoll`, or of a fresh one and its wheels."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if atoll is None:
            yield Figure("wheels of the edge set", wheels(folder), "MB", 60)
        yield from node(folder, atoll or installed(folder / "edge", "edge"))


def main(words: list[str]) -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench node", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--atoll", type=Path, help="an installation's `atoll`, in place of a fresh one")
    asked = parser.parse_args(words)
    return told(everything(asked.atoll), asked.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
