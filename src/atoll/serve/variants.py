"""Variants of one model (fp32, int8, a student): what each loses, what each costs here, and which to serve.

    variants = {"fp32": fp32, "int8": int8(fp32, train.x, held)}
    table = profile(variants, held)             # measured on this device, the first is the reference
    pick(table, p99=5.0)                        # the quickest of the best within the limits

Points are of a hundred: of accuracy for classes, of R² for numbers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError, StateError
from . import probe
from .model import CPU, Model
from .quantise import quantise

INT8 = 0.5  # points that integers may lose
GATE = 3.0  # points that any variant may lose
NEAR = 0.5  # points within which the quicker is the better one
BATCH = 256
DEVICES = Path(__file__).with_name("devices.toml")


class Figures(NamedTuple):
    """A variant here. `provider`: what runs it; `score`: accuracy or R²; `lost`: points below the reference;
    `size`: bytes; `p50`, `p99`: milliseconds for one row; `memory`: MB.
    """

    name: str
    provider: str
    score: float
    lost: float
    size: int
    p50: float
    p99: float
    memory: float


def agreed(data: bytes, x: Any) -> Any:
    """Rows `x` (n, ...) with what the model says of them, to hold against a variant where nothing else is
    known: what it then loses is the share of rows of which the two say another class, or 1 - R².
    """
    model, rows = Model(data), np.ascontiguousarray(x, np.float32)
    size = BATCH if model.many else 1
    said = [guess(model.run(rows[at : at + size])) for at in range(0, len(rows), size)]
    y: Any = np.concatenate(said) if said else np.empty(0)
    if y.ndim > 1:
        y = y.argmax(axis=1) if y.shape[1] > 1 else y.reshape(-1)
    return SimpleNamespace(x=rows, y=y)


def classes(data: bytes, x: Any) -> int:
    """How many classes a model gives scores of; `x`: some rows. 1 where it gives one number or none."""
    found = Model(data).run(np.ascontiguousarray(x, np.float32)).values()
    return max((int(v.shape[1]) for v in found if v.ndim == 2), default=1)


def int8(data: bytes, rows: Any, held: Any, most: float = INT8) -> bytes:
    """The model in integers, calibrated on `rows` (n, ...), if it loses at most `most` points on `held`.

    `held`: rows it learnt nothing from, .x and .y. Weights of 8 bits, else of 7. Raises ConfigError with the
    points where both lose more, and as `quantise`.
    """
    reference, lost = score(Model(data), held), []
    for bits in (8, 7):
        made = quantise(data, rows, bits)
        lost.append(100 * (reference - score(Model(made), held)))
        if lost[-1] <= most:
            return made
    raise ConfigError(
        f"in integers this model loses {min(lost):.2f} points on {len(held.y)} held-out rows, more than"
        f" {most}: serve it as it is, or train a smaller one by distillation"
    )


def profile(
    variants: Mapping[str, bytes], held: Any, *, lost: float = GATE, runs: int = probe.RUNS
) -> list[Figures]:
    """Each variant by each provider there is, measured; those that lose more than `lost` points are left out.

    The first is the reference, and stands in the table in any case. `held`: rows they did not learn from,
    .x (n, ...) and .y (n,). Raises StateError for a variant that does not run or take them.
    """
    table: list[Figures] = []
    reference = None
    for name, data in variants.items():
        found = score(Model(data, name), held)
        reference = found if reference is None else reference
        points = 100 * (reference - found)
        if points > lost:
            continue
        for provider in probe.providers():
            try:
                speed = probe.measure(data, held.x.shape[1:], provider, runs)
            except StateError:
                if provider == CPU:
                    raise
                continue  # an accelerator that cannot run it
            table.append(Figures(name, provider, found, points, len(data), *speed))
    return table


def pick(
    table: list[Figures],
    *,
    p99: float | None = None,
    memory: float | None = None,
    size: int | None = None,
    lost: float = GATE,
) -> Figures:
    """The quickest of those within NEAR points of the best that keeps the limits; None limits nothing.

    `p99`: milliseconds; `memory`: MB; `size`: bytes; `lost`: points. Raises ConfigError where none keeps
    them, with the limit that leaves the fewest.
    """
    limits = {"p99": p99, "memory": memory, "size": size, "lost": lost}
    kept = {
        name: [f for f in table if most is None or getattr(f, name) <= most] for name, most in limits.items()
    }
    able = [f for f in table if all(f in few for few in kept.values())]
    if not able:
        name = min(kept, key=lambda one: len(kept[one]))
        raise ConfigError(f"no variant keeps these limits; {name} <= {limits[name]} leaves {len(kept[name])}")
    best = max(f.score for f in able)
    return min((f for f in able if 100 * (best - f.score) <= NEAR), key=lambda f: (f.p50, f.size))


def architecture(tops: float, table: str | Path = DEVICES) -> dict[str, Any]:
    """Which model to train for a device of so many TOPS, where no candidate can be measured on it.

    `table`: a TOML file with [[device]] tables of `below` and `model`, in rising order; see devices.toml.
    Raises ConfigError for another file or a number below 0.
    """
    try:
        devices = tomllib.loads(Path(table).read_text("utf-8"))["device"]
        found = [dict(one) for one in devices if 0 <= tops < float(one.pop("below", np.inf))]
    except (OSError, tomllib.TOMLDecodeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{table}: expected [[device]] tables of below = TOPS and model = NAME ({error})"
        ) from None
    if not found:
        raise ConfigError(f"{table} has no device for {tops} TOPS: add one without `below`")
    return found[0]


def score(model: Model, held: Any) -> float:
    """Accuracy where y are classes, R² where they are numbers. Raises DataError without rows."""
    x, y = np.ascontiguousarray(held.x, np.float32), np.asarray(held.y)
    if not len(x) or len(x) != len(y):
        raise DataError(f"held-out rows: got {len(x)} of x and {len(y)} of y; expected some, and as many")
    size = BATCH if model.many else 1
    found = np.concatenate([guess(model.run(x[at : at + size])) for at in range(0, len(x), size)])
    if y.dtype.kind in "iub":
        right = found.argmax(axis=1) if found.ndim > 1 and found.shape[1] > 1 else np.rint(found.reshape(-1))
        return float(np.mean(right == y))
    return float(1 - np.mean((found.reshape(len(y), -1) - y.reshape(len(y), -1)) ** 2) / max(y.var(), 1e-30))


def guess(answers: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """What tells a model's choice: labels where it gives them as numbers, else its first answer."""
    label = answers.get("label")
    if label is not None and label.dtype.kind in "iu":
        return label
    return next(iter(answers.values())) if label is None else next(v for v in answers.values() if v.ndim > 1)
