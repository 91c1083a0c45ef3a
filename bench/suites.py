"""What each crypto suite costs: `python -m bench suites [--json FILE]`.

CPU seconds on one core, the best of some turns: masks over 1 M numbers as a client makes them, and a
client's files, sealed and read again; every mask comes off again and every file reads as it was written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np

from atoll.privacy.hazmat import masks
from atoll.privacy.hazmat.suite import SUITES, Suite
from atoll.privacy.vault import Vault

from .rows import Disagreement
from .wire import Figure

NUMBERS, FILE, SMALL, TURNS = 1_000_000, 16 << 20, 4000, 3
MIB = 1 << 20


def best(call: Callable[[], object], turns: int = TURNS) -> float:
    """CPU seconds of the quickest of some calls."""
    took = []
    for _ in range(turns):
        began = time.process_time()
        call()
        took.append(time.process_time() - began)
    return min(took)


def masking(suite: Suite) -> Iterator[Figure]:
    """Masks of a client that shares with so many others."""
    x = np.random.default_rng(1).integers(0, 1 << 32, NUMBERS, dtype=np.uint64)
    for members in (10, 50):
        keys = [os.urandom(32) for _ in range(members)]
        hidden = masks.masked(suite, x, 32, keys)
        if not (masks.masked(suite, hidden, 32, (), keys) == x).all():
            raise Disagreement("masks do not come off again")
        took = best(lambda keys=keys: masks.masked(suite, x, 32, keys))  # type: ignore[misc]
        yield Figure(f"{suite.name}: 1 M numbers under {members} masks", took * 1e3, "ms")


def files(suite: Suite, folder: Path) -> Iterator[Figure]:
    """A client's files."""
    vault, data = Vault(bytes(32), suite), os.urandom(FILE)
    path, small = folder / "answers" / suite.name, folder / "runs" / suite.name
    path.parent.mkdir(exist_ok=True)

    def write() -> None:
        with path.open("wb") as out, vault.sealing(out, path) as sink:
            for at in range(0, FILE, MIB):
                sink.write(data[at : at + MIB])

    def read() -> None:
        with vault.opened(path) as file:
            while file.read(MIB):
                pass

    yield Figure(f"{suite.name}: sealing a file", FILE / best(write) / 1e6, "MB/s")
    yield Figure(f"{suite.name}: reading it again", FILE / best(read) / 1e6, "MB/s")
    if vault.read(path) != data:
        raise Disagreement("a file reads otherwise than it was written")
    took = best(lambda: vault.write(small, data[:SMALL]), 20)
    yield Figure(f"{suite.name}: a file of {SMALL} bytes, on disk", took * 1e3, "ms")


def main(words: list[str]) -> int:
    """Print the figures, write the file; 1 where something does not come back as it was."""
    parser = argparse.ArgumentParser(prog="python -m bench suites", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args(words)
    found = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            suites = SUITES.values()
            for figure in chain.from_iterable((*masking(s), *files(s, Path(folder))) for s in suites):
                print(figure, flush=True)
                found.append(figure)
    except Disagreement as why:
        print(f"no time counts: {why}", file=sys.stderr)
        return 1
    if asked.json:
        asked.json.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n")
    return 0
