"""Worlds by the thousand: `python -m bench faults --only worlds --worlds 10000`, or `make nightly`."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from tests.federation.faults import troubled
from tests.federation.weather import weathered
from tests.federation.world import run


async def _weathered(folder: Path, seed: int) -> list[str]:
    return (await weathered(folder, seed))[0]


KINDS = {"faults": troubled, "weather": _weathered}


def play(first: int, end: int, kind: str = "faults") -> list[tuple[int, list[str]]]:
    """The worlds of these seeds: those that broke something, and what."""
    logging.disable(logging.CRITICAL)
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own in it
    found = []
    for seed in range(first, end):
        with tempfile.TemporaryDirectory(dir=memory if memory.exists() else None) as folder:
            try:
                wrong = run(KINDS[kind](Path(folder), seed))
            except Exception as error:  # noqa: BLE001  it is what we look for
                wrong = [f"{type(error).__name__}: {error}"]
        if wrong:
            found.append((seed, wrong))
    return found
