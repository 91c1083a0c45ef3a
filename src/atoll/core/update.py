"""Update: named leaves over one contiguous buffer. Models, deltas and totals are all Updates.

A leaf is dense (a slice of the one buffer, in its shape) or `rows` (some rows of a big table:
sorted ids and their values). The buffer is real (float32 or float64) or, after a `ring`
transform, integers modulo 2**bits held in uint64. An Update is a value: its arrays are read-only.

Laws (tests/laws/test_update.py): `+` is commutative, and in a ring exactly associative;
`zeros` is neutral; `Update.of(dict(u))` equals `u`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite, prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import MisuseError

Array: TypeAlias = NDArray[Any]
BLOCK = 1 << 17  # numbers worked on at a time, so that what is made on the way stays small: 1 MiB of float64


def blocks(stop: int, width: int = BLOCK, start: int = 0) -> Iterator[slice]:
    """range(start, stop) in slices of at most `width`."""
    return (slice(at, min(at + width, stop)) for at in range(start, stop, width))


class Leaf(NamedTuple):
    """A named array: `name` as in "layer0.weight", `shape` in rows and columns."""

    name: str
    shape: tuple[int, ...]


class Layout:
    """Which leaves stand where in the buffer; Updates with equal layouts can be added.

    `slices` and `shapes` look a leaf up by name, `size` counts the numbers of all dense leaves.
    `stops`: where each leaf ends. Raises MisuseError where two leaves share a name.
    """

    __slots__ = ("leaves", "shapes", "size", "slices", "stops")

    def __init__(self, leaves: tuple[Leaf, ...]) -> None:
        self.leaves = leaves
        self.shapes = dict(leaves)
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, shape in leaves:
            self.slices[name] = slice(self.size, self.size + prod(shape))
            self.size += prod(shape)
        self.stops = [s.stop for s in self.slices.values()]
        if len(self.slices) != len(leaves):
            raise MisuseError("leaf names must differ: each names one slice of the buffer")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and (self is other or self.leaves == other.leaves)

    def __hash__(self) -> int:
        return hash(self.leaves)

    def __repr__(self) -> str:
        return f"Layout({', '.join(f'{name}{list(shape)}' for name, shape in self.leaves)})"


class Rows(NamedTuple):
    """Some rows of a table: `ids` (k,) int64, sorted, unique; `values` (k, width) real."""

    ids: NDArray[np.int64]
    values: Array

    def __add__(self, other: Rows) -> Rows:  # type: ignore[override]
        ids, place = np.unique(np.concatenate([self.ids, other.ids]), return_inverse=True)
        values = np.zeros((len(ids), self.values.shape[1]), np.result_type(self.values, other.values))
        values[place[: len(self.ids)]] += self.values
        values[place[len(self.ids) :]] += other.values
        return Rows(ids, values)


def wrap(whole: Array, bits: int | None) -> Array:
    """Integers modulo 2**bits, in place; None leaves them alone."""
    if bits and bits < 64:
        whole &= np.uint64((1 << bits) - 1)
    return whole


def add_rows(a: Mapping[str, Rows], b: Mapping[str, Rows]) -> dict[str, Rows]:
    """Sparse leaves added by name; one that stands on one side only is kept."""
    return {**a, **{name: a[name] + more if name in a else more for name, more in b.items()}}


def _view(array: Array, *, write: bool = True) -> Array:
    view = array.view()
    view.flags.writeable = write
    return view


class Update(Mapping[str, Array]):
    """Named arrays over one buffer; reads like a dict of arrays.

    `buffer`: (layout.size,) float32 or float64, or uint64 when `bits` is set (1..64).
    `rows`: sparse leaves by name, beside the buffer.
    Raises MisuseError where the buffer does not fit the layout.
    """

    __slots__ = ("bits", "buffer", "layout", "rows")

    def __init__(
        self,
        layout: Layout,
        buffer: Array,
        *,
        bits: int | None = None,
        rows: Mapping[str, Rows] | None = None,
    ) -> None:
        if buffer.shape != (layout.size,):
            raise MisuseError(f"this layout needs a buffer of shape ({layout.size},), got {buffer.shape}")
        self.layout = layout
        self.buffer = _view(buffer, write=False)
        self.bits = bits
        self.rows = rows or {}

    @classmethod
    def of(cls, leaves: Mapping[str, Any]) -> Update:
        """Copy named arrays (or Rows) into one buffer; float64 if any leaf is, else float32."""
        if isinstance(leaves, Update):
            return leaves
        if not isinstance(leaves, Mapping):
            raise MisuseError(
                f'a model or update is named arrays, as in {{"w": array}}, got {type(leaves).__name__}'
            )
        rows = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Rows)}
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items() if name not in rows}
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise MisuseError(f"leaf {name!r} must hold numbers, got dtype {array.dtype}")
        layout = Layout(tuple(Leaf(name, array.shape) for name, array in arrays.items()))
        wide = any(array.dtype == np.float64 for array in arrays.values())
        buffer = np.empty(layout.size, np.float64 if wide else np.float32)
        for name, array in arrays.items():
            buffer[layout.slices[name]] = array.reshape(-1)
        return cls(layout, buffer, rows=rows)

    def __getitem__(self, name: str) -> Array:
        return self.buffer[self.layout.slices[name]].reshape(self.layout.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.slices)

    def __len__(self) -> int:
        return len(self.layout.leaves)

    def __repr__(self) -> str:
        kind = f"ring {self.bits}" if self.bits else str(self.buffer.dtype)
        return f"Update({len(self)} leaves, {self.layout.size} numbers, {kind})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Update)
            and self.layout == other.layout
            and self.bits == other.bits
            and np.array_equal(self.buffer, other.buffer)
            and self.rows.keys() == other.rows.keys()
            and all(
                np.array_equal(a.ids, b.ids) and np.array_equal(a.values, b.values)
                for a, b in ((self.rows[name], other.rows[name]) for name in self.rows)
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Update) -> Update:
        return self._with(other, np.add, add_rows(self.rows, other.rows))

    def __sub__(self, other: Update) -> Update:
        if self.rows or other.rows:
            raise MisuseError("sparse rows are added, never subtracted")
        return self._with(other, np.subtract, {})

    def _with(self, other: Update, f: Callable[[Array, Array], Array], rows: Mapping[str, Rows]) -> Update:
        self._same(other)
        both = wrap(f(self.buffer, other.buffer), self.bits)
        return Update(self.layout, both, bits=self.bits, rows=rows)

    def map(self, f: Callable[[Array], Array]) -> Update:
        """The same leaves with `f` applied to the buffer and to every row's values."""
        rows = {name: Rows(r.ids, f(r.values)) for name, r in self.rows.items()}
        return Update(self.layout, f(self.buffer), rows=rows)

    def scale(self, factor: float, *, own: bool = False) -> Update:
        """Every number times `factor`, in the buffer's own precision.

        `own`: in place; for whoever made this update's buffer and shares it with nobody.
        """
        self._real("scale")
        return self.map(lambda v: np.multiply(v, v.dtype.type(factor), out=_view(v) if own else None))

    def zeros(self) -> Update:
        """The neutral element: same leaves, all zero, no rows."""
        return Update(self.layout, np.zeros_like(self.buffer), bits=self.bits)

    def astype(self, dtype: Any) -> Update:
        """The same numbers in `dtype`, float32 or float64."""
        return self.map(lambda v: v.astype(dtype))

    def norm(self) -> float:
        """The L2 norm over the buffer and all rows, in float64."""
        self._real("norm")
        parts = [self.buffer, *(r.values for r in self.rows.values())]
        return float(np.sqrt(sum(float(np.square(p, dtype=np.float64).sum()) for p in parts)))

    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        parts = [self.buffer, *(r.values for r in self.rows.values())]
        return all(isfinite(p.max(initial=0)) and isfinite(p.min(initial=0)) for p in parts)

    def pick(self, keep: Callable[[str], bool]) -> Update:
        """Only the leaves whose name satisfies `keep`, copied into a buffer of their own."""
        leaves = tuple(leaf for leaf in self.layout.leaves if keep(leaf.name))
        parts = [self.buffer[self.layout.slices[name]] for name, _ in leaves]
        buffer = np.concatenate(parts) if parts else self.buffer[:0]
        rows = {name: r for name, r in self.rows.items() if keep(name)}
        return Update(Layout(leaves), buffer, bits=self.bits, rows=rows)

    def join(self, other: Update) -> Update:
        """These leaves followed by the other's, under one layout; names must differ."""
        layout = Layout(self.layout.leaves + other.layout.leaves)
        buffer = np.concatenate([self.buffer, other.buffer])
        return Update(layout, buffer, bits=self.bits, rows={**self.rows, **other.rows})

    def rename(self, name: Callable[[str], str]) -> Update:
        """The same numbers under other names: `rename(lambda n: "control/" + n)`."""
        layout = Layout(tuple(Leaf(name(old), shape) for old, shape in self.layout.leaves))
        rows = {name(old): r for old, r in self.rows.items()}
        return Update(layout, self.buffer, bits=self.bits, rows=rows)

    def _same(self, other: Update) -> None:
        if self.layout != other.layout:
            mine, theirs = dict(self.layout.leaves), dict(other.layout.leaves)
            odd = next(n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n) or [*mine] != [*theirs])
            raise MisuseError(
                f"updates differ at leaf {odd!r}: {mine.get(odd, 'absent')} and {theirs.get(odd, 'absent')};"
                " add only updates of one model"
            )
        if self.bits != other.bits:
            raise MisuseError(f"cannot add an update of ring {self.bits} to one of ring {other.bits}")

    def _real(self, what: str) -> None:
        if self.bits:
            raise MisuseError(f"{what} needs real numbers, this update is in a ring of {self.bits} bits")
