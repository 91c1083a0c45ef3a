"""Worlds by the thousand: `python -m bench faults --only worlds --worlds 10000`, or `make nightly`."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from tests.federation.faults import troubled
from tests.federation.world import run


def play(first: int, end: int) -> list[tuple[int, list[str]]]:
    """The worlds of these seeds: those that broke something, and what."""
    logging.disable(logging.CRITICAL)
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own in it
    found = []
    for seed in range(first, end):
        with tempfile.TemporaryDirectory(dir=memory if memory.exists() else None) as folder:
            try:
                wrong = run(troubled(Path(folder), seed))
            except Exception as error:  # noqa: BLE001  it is what we look for
                wrong = [f"{type(error).__name__}: {error}"]
        if wrong:
            found.append((seed, wrong))
    return found
