"""What a federation agrees that its rows are: names, kinds, units, ranges, the label. Values, as TOML.

    name = "engine"
    label = "fails"

    [columns.heat]
    kind = "number"
    unit = "degC"
    low = -40
    high = 150
    stuck = 600                                  seconds one value may last; then the sensor is stuck
    from = { degF = [0.5555556, -17.7777778] }   a reading in degF is taken times the first plus the second

    [columns.state]
    kind = "category"
    values = ["idle", "run"]
    missing = true

    [columns.fails]
    kind = "flag"

A row is the columns but the label, in their order, as float32: numbers as they are, a category by its place
in `values`, a flag as 0 or 1, NaN for a missing cell. A picture is a column of kind "image" and stands alone
beside the label: its row is its pixels in 0..1. A unit that is neither the column's nor in `from` is refused:
nobody guesses. Reasons name columns and bounds, never the value that came.

A job that names a contract carries it, under the coordinator's signature; each site compares its own with it
before it trains.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..core.errors import ConfigError
from ..core.registry import nearest

_FLAGS = {"true": 1.0, "yes": 1.0, "1": 1.0, "on": 1.0, "false": 0.0, "no": 0.0, "0": 0.0, "off": 0.0}


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One column. `low`, `high`: what a number may be, in `unit`. `values`: the names of a category.

    `missing`: whether a cell may be. `stuck`: seconds, > 0, None for as long as it likes. `shape`: of a
    picture, [height, width] or [height, width, 3].
    """

    kind: Literal["number", "category", "flag", "image"] = "number"
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    values: tuple[str, ...] = ()
    missing: bool = False
    stuck: float | None = None
    shape: tuple[int, ...] = ()
    from_: dict[str, tuple[float, float]] = msgspec.field(default={}, name="from")

    def number(self, value: Any, unit: str = "") -> tuple[float, str]:
        """The cell as a number (NaN for a missing one), or the reason why it is none."""
        if value is None or value == "":
            return math.nan, "" if self.missing else "is missing"
        if self.kind == "category":
            if isinstance(value, str) and value in self.values:
                return float(self.values.index(value)), ""
            return math.nan, f"is none of its {len(self.values)} categories"
        if self.kind == "flag":
            found = _FLAGS.get(str(value).lower() if isinstance(value, (str, bool)) else f"{value:g}"
                               if isinstance(value, (int, float)) else "")  # fmt: skip
            return (math.nan, "is no flag: true or false") if found is None else (found, "")
        return self._measured(value, unit)

    def _measured(self, value: Any, unit: str) -> tuple[float, str]:
        try:
            if isinstance(value, bool):
                raise TypeError
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            return math.nan, "is no number"
        if not math.isfinite(found):
            return math.nan, "is not finite"
        if unit not in ("", self.unit):
            if unit not in self.from_:
                return math.nan, f"came in another unit than {self.unit or 'none'}"
            scale, shift = self.from_[unit]
            found = found * scale + shift
        if not self.low <= found <= self.high:
            return math.nan, f"lies outside {self.low:g} to {self.high:g}"
        return found, ""


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A federation's columns by name, in the order of a row. `label`: the one to predict, "" for none."""

    name: str
    columns: dict[str, Column]
    label: str = ""

    def __post_init__(self) -> None:
        if not self.columns:
            raise ConfigError("a contract has columns, as in [columns.heat]", "$.columns")
        if self.label and self.label not in self.columns:
            raise ConfigError(
                f"there is no column {self.label!r}: {nearest(self.label, self.columns)}", "$.label"
            )
        for name, column in self.columns.items():
            _sound(column, f"$.columns.{name}")
        if any(self.columns[name].kind == "image" for name in self.features) and len(self.features) > 1:
            raise ConfigError("a picture stands alone beside the label", "$.columns")
        if not self.features:
            raise ConfigError("a contract has a column to learn from beside its label", "$.columns")

    @classmethod
    def read(cls, path: Path) -> Contract:
        """The contract in a TOML file. Raises ConfigError with the path of what is wrong in it."""
        try:
            return cls.of(tomllib.loads(path.read_text("utf-8")), str(path))
        except FileNotFoundError:
            raise ConfigError(f"there is no contract {path}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "") -> Contract:
        """The contract of a table; columns by name, or listed. Raises ConfigError as `read`."""
        made = dict(values)
        try:
            if isinstance(listed := made.get("columns"), list):
                made["columns"] = {c["name"]: {k: v for k, v in c.items() if k != "name"} for c in listed}
            return msgspec.convert(made, cls)
        except (LookupError, TypeError, AttributeError):
            raise ConfigError("a list of columns gives each its name", "$.columns") from None
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `")
            raise ConfigError(f"{where}: {text}".removeprefix(": "), path.rstrip("`") or "$") from None

    def table(self) -> dict[str, Any]:
        """Its values; `Contract.of` makes the same one of them.

        Columns are a list there: what sorts the keys of a table, as JSON that is signed, keeps their order.
        """
        found: dict[str, Any] = msgspec.to_builtins(self)
        found["columns"] = [{"name": name, **column} for name, column in found["columns"].items()]
        return found

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The columns to learn from, in their order."""
        return tuple(name for name in self.columns if name != self.label)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the label's classes, () where it is a number or there is none."""
        if not self.label or self.columns[self.label].kind == "number":
            return ()
        return self.columns[self.label].values or ("0", "1")

    @cached_property
    def form(self) -> str:
        """What the numbers of a row mean, as 16 hexadecimal digits: rows of one form go together."""
        told = [
            [n, c.kind, c.unit, list(c.values), list(c.shape), n == self.label]
            for n, c in self.columns.items()
        ]
        return sha256(msgspec.json.encode(told)).hexdigest()[:16]

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of a row."""
        first = self.columns[self.features[0]]
        return first.shape if first.kind == "image" else (len(self.features),)

    def check(self, values: Mapping[str, Any], units: Mapping[str, str] | None = None) -> str:
        """Why a reading's values do not keep the contract, "" where they do. A label may come later."""
        return self.taken(values, units)[1]

    def taken(
        self, values: Mapping[str, Any], units: Mapping[str, str] | None = None
    ) -> tuple[list[Any], str]:
        """The cells in the order of `columns`, in their units, and why they cannot be taken, or "".

        Cells are floats, NaN for missing ones, and a picture's bytes.
        """
        for name in values:
            if name not in self.columns:
                return [], f"an unknown column: {nearest(str(name)[:40], self.columns)}"
        cells: list[Any] = []
        for name, column in self.columns.items():
            value = values.get(name)
            if column.kind == "image" and isinstance(value, bytes):
                cells.append(value)
                reason = "" if len(value) == math.prod(column.shape) else "is a picture of another size"
            elif value is None and name == self.label:
                cells.append(math.nan)
                continue
            else:
                cell, reason = column.number(value, (units or {}).get(name, ""))
                cells.append(cell)
            if reason:
                return [], f"column {name!r} {reason}"
        return cells, ""

    def differs(self, other: Contract) -> str:
        """In what rows of `other` would not be rows of this one, "" in nothing that matters to a model."""
        if self.label != other.label:
            return "another label"
        if tuple(self.columns) != tuple(other.columns):
            return "other columns, or another order of them"
        for name, mine in self.columns.items():
            its = other.columns[name]
            for what in ("kind", "unit", "values", "shape"):
                if getattr(mine, what) != getattr(its, what):
                    return f"column {name!r} has another {what.removesuffix('s')}"
            if its.low < mine.low or its.high > mine.high:
                return f"column {name!r} has a wider range"
            if its.missing and not mine.missing:
                return f"column {name!r} may have missing cells"
        return ""


def _sound(column: Column, path: str) -> None:
    if column.kind == "category" and not column.values:
        raise ConfigError('a category names its values, as in values = ["idle", "run"]', f"{path}.values")
    if column.kind != "category" and column.values and column.kind != "flag":
        raise ConfigError("only a category has values", f"{path}.values")
    if len(set(column.values)) != len(column.values):
        raise ConfigError("a value stands there twice", f"{path}.values")
    if column.kind != "number" and (column.unit or column.from_):
        raise ConfigError("only a number has a unit", f"{path}.unit")
    if not column.low <= column.high:
        raise ConfigError("low lies above high", f"{path}.low")
    if column.stuck is not None and column.stuck <= 0:
        raise ConfigError("stuck is a time in seconds, above 0", f"{path}.stuck")
    if (column.kind == "image") != bool(column.shape) or any(n < 1 for n in column.shape):
        raise ConfigError("a picture, and it alone, has a shape: [height, width] or [height, width, 3]",
                          f"{path}.shape")  # fmt: skip
