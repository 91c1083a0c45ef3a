"""From raw rows to what a model takes: fill, clip, encode, scale; as values, and as the head of its graph.

    pipeline = at.fit_pipeline(sites, contract)       by sums of all sites (statistics.py)
    sites = pipeline.sites(sites)                     rows to train on
    model = pipeline.frozen(model)                    ONNX: takes raw rows, answers as before

A raw row is a contract's: numbers in their units, a category's place, NaN for a missing cell. Law: `rows` and
the frozen graph are the same arithmetic in float32, step by step; what was trained on is what is served on.
Where a row is a window of readings, (size, d), each reading goes through the same: a sensor has one set of
figures, whatever its place in a window, of all readings that windows hold, each as often as they do.

    clean = min(max(fill where missing else x, low), high)
    out   = clean == value                for each value of a category (all 0 where it is missing)
            (clean - centre) * unit       for the rest
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from .contract import Contract
from .examples import Examples

if TYPE_CHECKING:
    from .sites import Sites

Floats = NDArray[np.float32]
Fill = Literal["mean", "median", "middle"]
Scale = Literal["standard", "range", "none"]
Encode = Literal["onehot", "ordinal"]


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What happens to one raw column. `hot`: how many columns a category becomes, 0 for a number."""

    name: str
    fill: float
    low: float | None = None
    high: float | None = None
    centre: float = 0.0
    unit: float = 1.0
    hot: int = 0


class Pipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The steps of all raw columns, in their order: plain values, as JSON or TOML holds them."""

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any], path: str = "$") -> Pipeline:
        """The pipeline of a table. Raises ConfigError with the path of what is wrong."""
        try:
            return msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            text, _, inner = str(error).partition(" - at `")
            raise ConfigError(text, path + inner.rstrip("`").removeprefix("$")) from None

    def table(self) -> dict[str, Any]:
        """Its values; `Pipeline.of` makes the same one of them."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that come out: a category's are called like it and the place of the value."""
        return tuple(f"{s.name}={v}" if s.hot else s.name for s in self.steps for v in range(s.hot or 1))

    def rows(self, raw: Any) -> Floats:
        """Raw rows (n, d), or windows (n, size, d), as such of len(names) columns, float32.

        Raises DataError for another number of columns.
        """
        x = np.asarray(raw, np.float32)
        if x.ndim not in (2, 3) or x.shape[-1] != len(self.steps):
            raise DataError(f"expected rows of {len(self.steps)} columns, got {x.shape}")
        n = self._numbers
        clean = np.minimum(np.maximum(np.where(np.isnan(x), n["fill"], x), n["low"]), n["high"])
        picked = clean[..., n["place"]]
        same = (picked == n["value"]).astype(np.float32)
        out: Floats = np.where(n["hot"], same, (picked - n["centre"]) * n["unit"])
        return out

    def examples(self, rows: Examples) -> Examples:
        """The same examples with rows as they come out."""
        return Examples(self.rows(rows.x), rows.y, self.names if rows.x.ndim == 2 else ())

    def sites(self, sites: Sites) -> Sites:
        """The same clients with rows as they come out, test rows too."""
        test = None if sites.test is None else self.examples(sites.test)
        tests = tuple(map(self.examples, sites.tests))
        columns = self.names if sites.x.ndim == 2 else ()
        return replace(sites, x=self.rows(sites.x), tests=tests, test=test, columns=columns)

    def frozen(self, model: bytes) -> bytes:
        """An ONNX model of one input "x" (rows, len(names)), made to take raw rows (rows, d) in its place; or
        of windows (rows, size, len(names)).

        Raises ConfigError where onnx is not installed or the model takes other rows.
        """
        try:
            import onnx
            from onnx import helper, numpy_helper
        except ImportError:
            raise ConfigError("writing ONNX needs the onnx package: pip install 'atoll-fl[export]'") from None
        made = onnx.load_from_string(model)
        graph, wide = made.graph, len(self.names)
        *sizes, width = _sizes(graph.input[0]) if [i.name for i in graph.input] == ["x"] else (-1,)
        if width not in (wide, 0):
            raise ConfigError(f'expected a model of one input "x" with {wide} columns')
        for node in graph.node:
            for at, name in enumerate(node.input):
                if name == "x":
                    node.input[at] = "atoll.rows"
        head: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("IsNaN", ["x"], "missing", {}),
            ("Where", ["missing", "fill", "x"], "whole", {}),
            ("Max", ["whole", "low"], "above", {}),
            ("Min", ["above", "high"], "clean", {}),
            ("Gather", ["clean", "place"], "picked", {"axis": 1 + len(sizes)}),
            ("Equal", ["picked", "value"], "same", {}),
            ("Cast", ["same"], "one", {"to": onnx.TensorProto.FLOAT}),
            ("Sub", ["picked", "centre"], "moved", {}),
            ("Mul", ["moved", "unit"], "scaled", {}),
            ("Where", ["hot", "one", "scaled"], "rows", {}),
        ]
        nodes = [
            helper.make_node(op, [n if n == "x" else f"atoll.{n}" for n in takes], [f"atoll.{gives}"], **more)
            for op, takes, gives, more in head
        ]
        body = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *body])
        graph.initializer.extend(
            numpy_helper.from_array(array, f"atoll.{name}") for name, array in self._numbers.items()
        )
        row = [*(size or None for size in sizes), len(self.steps)]
        graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", *row]))
        onnx.checker.check_model(made, full_check=True)
        return made.SerializeToString()

    @cached_property
    def _numbers(self) -> dict[str, Any]:
        """The vectors of the arithmetic: of raw columns, and of those that come out."""
        out = [(at, s, v) for at, s in enumerate(self.steps) for v in range(s.hot or 1)]
        return {
            "fill": np.array([s.fill for s in self.steps], np.float32),
            "low": np.array([-math.inf if s.low is None else s.low for s in self.steps], np.float32),
            "high": np.array([math.inf if s.high is None else s.high for s in self.steps], np.float32),
            "place": np.array([at for at, _, _ in out], np.int64),
            "hot": np.array([bool(s.hot) for _, s, _ in out]),
            "value": np.array([v for _, _, v in out], np.float32),
            "centre": np.array([s.centre for _, s, _ in out], np.float32),
            "unit": np.array([s.unit for _, s, _ in out], np.float32),
        }


@dataclass(frozen=True)
class Recipe:
    """What a pipeline's figures are taken from. `fill`: what a missing cell becomes: the mean, the median, or
    the middle of the contract's range. `scale`: less the mean in units of the standard deviation, the
    contract's range to -1..1, or none. `encode`: a category as a column for each value, or as its place.

    Raises ConfigError for another word.
    """

    fill: Fill = "mean"
    scale: Scale = "standard"
    encode: Encode = "onehot"

    def __post_init__(self) -> None:
        for name, words in (("fill", Fill), ("scale", Scale), ("encode", Encode)):
            given = getattr(self, name)
            if given not in get_args(words):
                raise ConfigError(f"expected one of {', '.join(get_args(words))}, got {given!r}", f"$.{name}")

    @property
    def moments(self) -> bool:
        """Whether it takes means and deviations of rows."""
        return self.fill == "mean" or self.scale == "standard"

    @property
    def median(self) -> bool:
        """Whether it takes medians of rows."""
        return self.fill == "median"

    def check(self, contract: Contract) -> None:
        """Raise ConfigError where the contract has no range that is asked for, or pictures."""
        zeros = np.zeros(len(contract.features))
        self.made(contract, zeros, zeros, zeros)

    def made(self, contract: Contract, mean: Any, deviation: Any, median: Any) -> Pipeline:
        """The pipeline of a contract from figures of its features, (d,) each; those it does not take may be
        None.
        """
        count = len(contract.features)
        middle = half = np.ones(count)
        if self.scale == "range" or self.fill == "middle":
            middle, half = _middles(contract)
        full = {"mean": mean, "median": median, "middle": middle}[self.fill]
        scales = {
            "standard": (mean, deviation),
            "range": (middle, half),
            "none": (np.zeros(count), np.ones(count)),
        }
        return fitted(contract, full, *scales[self.scale], encode=self.encode)


def fitted(
    contract: Contract,
    fill: Iterable[float],
    centre: Iterable[float],
    spread: Iterable[float],
    *,
    encode: Encode = "onehot",
) -> Pipeline:
    """The pipeline of a contract from figures of its features, (d,) each: what fills, centres and divides.

    A category is encoded, and its figures are used with "ordinal" alone. A spread of 0 or NaN divides by 1.
    """
    steps = []
    figures = zip(contract.features, fill, centre, spread, strict=True)
    for name, full, middle, wide in figures:
        column = contract.columns[name]
        if column.kind == "image":
            raise ConfigError("pictures take no pipeline: their pixels are in 0..1 already")
        if column.kind == "category" and encode == "onehot":
            steps.append(Step(name, -1.0, hot=len(column.values)))  # -1 is no value's place
            continue
        low, high = _bounds(column)
        unit = 1.0 / float(wide) if wide > 0 and math.isfinite(wide) else 1.0
        known = [float(v) if math.isfinite(v) else 0.0 for v in (full, middle)]
        steps.append(Step(name, known[0], low, high, known[1], unit))
    return Pipeline(tuple(steps))


def by_range(contract: Contract, *, encode: Encode = "onehot") -> Pipeline:
    """The pipeline that a contract's bounds alone make: low to high becomes -1 to 1, the middle fills gaps.

    It needs nobody's statistics. Raises ConfigError for a number without bounds.
    """
    middle, half = _middles(contract)
    return fitted(contract, middle, middle, half, encode=encode)


def _middles(contract: Contract) -> tuple[Any, Any]:
    """The middle and half the width of each range. Raises ConfigError for a number without bounds."""
    ends = {name: _bounds(contract.columns[name]) for name in contract.features}
    for name, bounds in ends.items():
        if None in bounds and contract.columns[name].kind == "number":
            raise ConfigError("scaling by range needs low and high", f"$.columns.{name}")
    lows, highs = np.array([[low or 0.0, high or 0.0] for low, high in ends.values()]).T
    return (lows + highs) / 2, (highs - lows) / 2


def breaks(rows: Examples, classes: Sequence[str], contract: Contract) -> str:
    """Why raw rows are none of a contract, "" where they are; no cell is told, but how many there are."""
    windows = rows.x.ndim == 3 and rows.x.shape[2:] == contract.row
    if tuple(rows.names) != contract.features and rows.x.shape[1:] != contract.row and not windows:
        return "other columns"
    if rows.names and tuple(rows.names) != contract.features:
        return "other columns, or another order of them"
    if unknown := [name for name in classes if contract.classes and name not in contract.classes]:
        return f"{len(unknown)} classes that the contract does not know"
    for j, name in enumerate(contract.features):
        column = contract.columns[name]
        if column.kind != "image" and (reason := _broken(rows.x[..., j], column)):
            return f"column {name!r} {reason}"
    return ""


def _broken(cells: Any, column: Any) -> str:
    missing = np.isnan(cells)
    if missing.any() and not column.missing:
        return f"has {int(missing.sum())} missing cells"
    here = cells[~missing]
    if column.kind != "number" and (here != np.round(here)).any():
        return f"holds other numbers than the places of a {column.kind}"
    low, high = _bounds(column)
    outside = (here < (-math.inf if low is None else low)) | (here > (math.inf if high is None else high))
    if outside.any():
        return f"has {int(outside.sum())} cells out of its range"
    return ""


def _bounds(column: Any) -> tuple[float | None, float | None]:
    if column.kind == "number":
        return (
            column.low if math.isfinite(column.low) else None,
            column.high if math.isfinite(column.high) else None,
        )
    return 0.0, float(max(len(column.values) - 1, 1))


def _sizes(value: Any) -> tuple[int, ...]:
    """Of a row: (columns,) or (size, columns); 0 for what is open, (-1,) for none of both."""
    sizes = tuple(int(size.dim_value) for size in value.type.tensor_type.shape.dim[1:])
    return sizes if len(sizes) in (1, 2) else (-1,)
