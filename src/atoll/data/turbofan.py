"""Engines that run until they fail: NASA's C-MAPSS FD001 where its files are, else a generator of the like.

Saxena, Goebel, Simon, Eklund 2008, "Damage propagation modeling for aircraft engine run-to-failure
simulation", §III: wear grows exponentially, from another start and at another rate in each engine, and noise
is on every reading. The generator's sensors, levels and noise are those of FD001, measured there: means of
the first 20 and the last 5 cycles, deviation between one cycle and the next.
Heimes 2008, "Recurrent neural networks for remaining useful life estimation", §IV: the remaining life is
capped, since a new engine shows no wear.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from atoll.core.errors import ConfigError, DataError
from atoll.core.registry import part

from .examples import Dataset, Examples
from .fetch import folders

FOLDER, TRAIN, TEST, REST = "cmapss_fd001", "train_FD001.txt.gz", "test_FD001.txt.gz", "RUL_FD001.txt"
CAP = 125  # cycles
# Sensor: level when new, level at failure, deviation of its noise. The seven others of FD001 do not move.
SENSORS: Mapping[str, tuple[float, float, float]] = {
    "s2": (642.38, 643.67, 0.30),
    "s3": (1586.8, 1602.3, 4.04),
    "s4": (1402.8, 1428.9, 4.01),
    "s7": (553.95, 551.50, 0.41),
    "s8": (2388.06, 2388.23, 0.030),
    "s9": (9056.0, 9098.0, 4.22),
    "s11": (47.35, 48.14, 0.101),
    "s12": (521.91, 519.81, 0.30),
    "s13": (2388.06, 2388.23, 0.030),
    "s14": (8137.4, 8166.9, 3.10),
    "s15": (8.418, 8.520, 0.020),
    "s17": (392.3, 396.2, 0.93),
    "s20": (38.93, 38.45, 0.100),
    "s21": (23.36, 23.07, 0.061),
}
_PLACES = [4 + int(name[1:]) for name in SENSORS]  # columns of the file: unit, cycle, 3 settings, 21 sensors
_WEAR = 4.4  # half of an engine's life is a tenth of its wear


class Life(NamedTuple):
    """One engine: its readings (n, 14), one a cycle, and the cycles that remained after each (n,)."""

    unit: int
    sensors: NDArray[np.float64]
    remaining: NDArray[np.int64]


def lives(*, engines: int = 100, seed: int = 0, generated: bool | None = None) -> list[Life]:
    """The first `engines` training engines, from new to failure.

    `generated`: False for FD001, True for the generator, None for FD001 where `$ATOLL_DATA/cmapss_fd001` is.
    Raises DataError where FD001 is asked for and not there.
    """
    folder = where() if not generated else None
    if folder is None:
        if generated is False:
            raise DataError(f"put {TRAIN} of NASA's C-MAPSS into $ATOLL_DATA/{FOLDER}, or generated=True")
        return [_made(unit, np.random.default_rng([seed, unit])) for unit in range(1, engines + 1)]
    return [
        Life(unit, rows, np.arange(len(rows))[::-1].copy())
        for unit, rows in list(_read(folder / TRAIN))[:engines]
    ]


@part("data")
def engines(
    *,
    window: int = 30,
    cap: int = CAP,
    share: bool = False,
    engines: int = 100,
    generated: bool | None = None,
) -> Dataset:
    """Remaining life, in cycles, from the last `window` readings of 14 sensors; a site is an engine.

    `cap` > 0: the most that a target is. `share`: as a share of it, 0 to 1. `engines`: how many.
    `generated`: as in `lives`.
    x: (n, window * 14) float32, the oldest reading first, unscaled. The test rows are the last windows of
    FD001's test engines, or of as many further made ones, cut off somewhere in their life.
    """
    if window < 1 or cap < 1 or engines < 1:
        raise ConfigError(f"window, cap and engines are at least 1, got {window}, {cap}, {engines}")
    folder = where() if not generated else None
    train = lives(engines=engines, generated=generated)
    test = _cut(engines) if folder is None else _tests(folder)
    parts = [(life.unit, _windows(life.sensors, window), life.remaining[window - 1 :]) for life in train]
    x = np.concatenate([rows for _, rows, _ in parts])
    unit = cap if share else 1
    y = (np.minimum(np.concatenate([rest for _, _, rest in parts]), cap) / unit).astype(np.float32)
    units = np.concatenate([np.full(len(rest), f"engine-{number:03d}") for number, _, rest in parts])
    names = [f"{name} -{back}" for back in range(window - 1, -1, -1) for name in SENSORS]
    last = [_windows(_filled(life.sensors, window), window)[-1:] for life in test]
    rest = (np.minimum([life.remaining[-1] for life in test], cap) / unit).astype(np.float32)
    return Dataset(
        "engines",
        Examples(x, y, names),
        Examples(np.concatenate(last), rest, names),
        task="regression",
        sites=units,
        source="generated" if folder is None else "NASA PCoE: Saxena et al. 2008, C-MAPSS FD001",
        licence="" if folder is None else "US Government work",
    )


def _windows(rows: NDArray[np.float64], window: int) -> NDArray[np.float32]:
    """(n, 14) -> (n - window + 1, window * 14), each row oldest reading first."""
    cut = sliding_window_view(rows, window, axis=0)  # (n - window + 1, 14, window)
    return np.ascontiguousarray(cut.transpose(0, 2, 1), np.float32).reshape(len(cut), -1)


def _filled(rows: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """A shorter history begins with its first reading, repeated."""
    return np.concatenate([np.repeat(rows[:1], max(0, window - len(rows)), axis=0), rows])


def _made(unit: int, rng: np.random.Generator) -> Life:
    """One engine of the generator: its life, level and rate of wear are its own."""
    n = int(np.clip(np.exp(rng.normal(5.3, 0.21)), 120, 380))
    rate = _WEAR * rng.uniform(0.85, 1.15)
    wear = np.expm1(rate * np.arange(1, n + 1) / n) / np.expm1(rate)
    new, worn, noise = np.array(list(SENSORS.values())).T
    start = rng.uniform(-0.05, 0.05, len(new))
    rows = new + (worn - new) * (start + wear[:, None]) + rng.normal(0, 1, (n, len(new))) * noise
    return Life(unit, rows, np.arange(n)[::-1].copy())


def _cut(count: int) -> list[Life]:
    """Made engines that nobody has seen, each cut off somewhere in its life."""
    found = []
    for unit in range(1, count + 1):
        rng = np.random.default_rng([1, unit])
        life = _made(unit, rng)
        seen = int(rng.integers(30, len(life.sensors)))
        found.append(Life(unit, life.sensors[:seen], life.remaining[:seen]))
    return found


def _tests(folder: Path) -> list[Life]:
    """FD001's test engines, with what each had left after its last reading."""
    rest = np.loadtxt(folder / REST, ndmin=1).astype(np.int64)
    found = _read(folder / TEST)
    if len(rest) != len(found):
        raise DataError(f"{REST} has {len(rest)} numbers for {len(found)} engines: fetch the files again")
    return [
        Life(unit, rows, np.arange(len(rows))[::-1] + left)
        for (unit, rows), left in zip(found, rest, strict=True)
    ]


def _read(path: Path) -> Sequence[tuple[int, NDArray[np.float64]]]:
    try:
        with gzip.open(path, "rt") as text:
            table = np.loadtxt(text, ndmin=2)
    except (OSError, ValueError):
        raise DataError(f"{path.name} is not FD001's table of 26 columns: fetch it again") from None
    if table.shape[1] != 26:
        raise DataError(f"{path.name} has {table.shape[1]} columns, FD001 has 26: fetch it again")
    units = table[:, 0].astype(int)
    starts = np.flatnonzero(np.diff(units, prepend=units[0] - 1))
    return [
        (int(units[at]), rows[:, _PLACES])
        for at, rows in zip(starts, np.split(table, starts[1:]), strict=True)
    ]


def where(env: Mapping[str, Any] = os.environ) -> Path | None:
    """Where FD001 lies, None where it does not."""
    own, cache = folders(env)
    places = [p / FOLDER for p in (own, cache) if p is not None]
    return next((p for p in places if all((p / n).is_file() for n in (TRAIN, TEST, REST))), None)
