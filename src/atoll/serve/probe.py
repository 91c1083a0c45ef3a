"""How fast a model answers on this machine, and what memory it takes: measured in a process of its own.

    python -m atoll.serve.probe MODEL.onnx PROVIDER RUNS ROW...     prints one JSON object

Its own process, because memory is only known where nothing else runs, and because a runtime for an
accelerator that ends its process must not end the service.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from ..core.errors import StateError
from .model import CPU, Model

RUNS = 300
WARM = 20  # runs before it counts
LONGEST = 300.0  # seconds


class Speed(NamedTuple):
    """Of one row at a time. `p50`, `p99`: milliseconds; `memory`: MB that the process grew by."""

    p50: float
    p99: float
    memory: float


def measure(data: bytes, row: Sequence[int], provider: str = CPU, runs: int = RUNS) -> Speed:
    """Run a model on rows of that shape. Raises StateError where it does not run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        command = [sys.executable, "-m", "atoll.serve.probe", str(path), provider, str(runs), *map(str, row)]
        try:
            done = subprocess.run(  # noqa: S603  ourselves
                command, capture_output=True, text=True, timeout=LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            raise StateError(f"{runs} runs by {provider} took more than {LONGEST:.0f} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StateError(f"the model does not run by {provider}: {reason[:300]}")
    return Speed(**json.loads(done.stdout))


def providers() -> tuple[str, ...]:
    """What can run a model here: the processor last."""
    import onnxruntime as ort

    found = ort.get_available_providers()
    return (*(name for name in found if name not in (CPU, "AzureExecutionProvider")), CPU)


def main(path: str, provider: str, runs: str, *row: str) -> None:
    """Measure in this process, and print."""
    import onnxruntime  # noqa: F401  it is no part of the model's memory

    data, process = Path(path).read_bytes(), psutil.Process()
    before = process.memory_info().rss
    model = Model(data, provider=provider)
    x = np.random.default_rng(0).normal(size=(1, *map(int, row))).astype(np.float32)
    took = []
    for _ in range(WARM + int(runs)):
        began = time.perf_counter()
        model.run(x)
        took.append(time.perf_counter() - began)
    grown = process.memory_info().rss - before
    p50, p99 = np.percentile(took[WARM:], [50, 99]) * 1e3
    sys.stdout.write(json.dumps({"p50": float(p50), "p99": float(p99), "memory": grown / 1e6}))


if __name__ == "__main__":
    main(*sys.argv[1:])
