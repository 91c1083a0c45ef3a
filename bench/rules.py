"""What robust rules cost: `python -m bench.rules [--clients 50] [--size 6000000] [--folder DIR]`.

Updates are float32 in one file, mapped, as answers of a real federation are. Of each rule: CPU seconds and
wall seconds, and how far the process's own memory (RssAnon, which the file's pages are not part of) rose.
Linux only. The file, 4 bytes a number, is deleted at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import atoll as at
from atoll.learn.defend import recommended
from atoll.learn.rules import Rule, Stack

F = 0.2
RULES = {
    "average": at.average(),
    "median": at.median(),
    "trimmed_mean": at.trimmed_mean(F),
    "multi_krum": at.multi_krum(F),
    "geometric_median": at.geometric_median(),
    "centred_clipping": at.centred_clipping(),
    "fltrust": at.fltrust(0),
    "nnm, trimmed_mean": at.nnm(F, at.trimmed_mean(F)),
    "recommended": recommended(F),
}


def own() -> int:
    """Bytes of memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def peak(work: Callable[[], object]) -> int:
    """How many bytes memory rose while `work` ran, looked at every five milliseconds."""
    before, over = own(), threading.Event()
    seen = [before]

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return max(seen) - before


def written(path: Path, clients: int, size: int) -> list[np.ndarray]:
    """Updates that have a third of their direction in common, in a file."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(size, dtype=np.float32) / 3
    whole = np.memmap(path, np.float32, "w+", shape=(clients, size))
    for row in whole:
        row[:] = common + rng.standard_normal(size, dtype=np.float32)
    whole.flush()
    return list(np.memmap(path, np.float32, "r", shape=(clients, size)).view(np.ndarray))


def cost(rule: Rule, rows: list[np.ndarray]) -> str:
    """One line about one rule."""
    began, cpu = time.perf_counter(), time.process_time()
    rose = peak(lambda: rule.walk(Stack.of(rows, range(len(rows)))))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    models = rose / (4 * len(rows[0]))
    return f"{cpu:7.2f} s of CPU {wall:7.2f} s {rose / 1e6:7.0f} MB, {models:.2f} models"


def main() -> None:
    """Print a line a rule."""
    parser = argparse.ArgumentParser(prog="python -m bench.rules", description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--size", type=int, default=6_000_000)
    parser.add_argument("--folder", type=Path, help="where the file is made")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        rows = written(Path(folder) / "updates", asked.clients, asked.size)
        for name, rule in RULES.items():
            print(f"{name:20}{cost(rule, rows)}", flush=True)


if __name__ == "__main__":
    main()
