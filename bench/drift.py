"""How soon drift is heard, and how often it is cried wrongly: `python -m bench drift [--json FILE]`.

An error of .2 that rises to .35 after 5,000 answers, 100 seeds; 100 streams of 10,000 that do not change; and
PSI, Kolmogorov-Smirnov and Wasserstein of two normals d spreads apart, 5,000 values each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from atoll.serve.drift.adwin import Adwin
from atoll.serve.drift.errors import SURE
from atoll.serve.drift.ks import ks
from atoll.serve.drift.page_hinkley import PageHinkley
from atoll.serve.drift.psi import psi
from atoll.serve.drift.wasserstein import normalised

from .wire import Figure

SEEDS, LENGTH, CHANGE = 100, 10_000, 5_000
MAKES: dict[str, Any] = {
    "ADWIN": Adwin,
    "ADWIN as the monitor has it": lambda: Adwin(delta=SURE),
    "Page-Hinkley": PageHinkley,
}


def alarms(make: Any, seed: int, *, changes: bool) -> list[int]:
    """When it alarms."""
    rate = np.full(LENGTH, 0.2)
    rate[CHANGE:] = 0.35 if changes else 0.2
    stream = (np.random.default_rng([seed, changes]).random(LENGTH) < rate).astype(float).tolist()
    detector = make()
    return [t for t, x in enumerate(stream) if detector.add(x)]


def figures() -> Iterator[Figure]:
    """All of it."""
    for name, make in MAKES.items():
        told = [alarms(make, seed, changes=True) for seed in range(SEEDS)]
        delays = [min((t for t in found if t >= CHANGE), default=LENGTH) - CHANGE for found in told]
        of = f"nine of ten within {np.quantile(delays, 0.9):.0f}, all within {max(delays)}"
        yield Figure(f"{name}: answers until heard, median", float(np.median(delays)), "", 400.0, of)
        false = sum(len(alarms(make, seed, changes=False)) for seed in range(SEEDS))
        yield Figure(f"{name}: alarms in {SEEDS} x {LENGTH} of no change", false, "", 0.0)
    for d in (0.25, 0.5, 1.0):
        rng = np.random.default_rng(3)
        x, y = rng.normal(size=5_000), rng.normal(d, 1, 5_000)
        of = f"KS {ks(x, y):.3f}, W1 {normalised(x, y):.3f} spreads"
        yield Figure(f"PSI of a shift of {d:g} spreads; d² is {d * d:g}", psi(x, y), "", None, of)


def main(words: list[str]) -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench drift", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    asked = parser.parse_args(words)
    found = list(figures())
    print("\n".join(map(str, found)))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n")
    return int(any(f.target is not None and f.value > f.target for f in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
