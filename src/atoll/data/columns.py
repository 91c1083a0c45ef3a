"""Read a table, column by column: CSV (stdlib and numpy only) and Parquet.

A CSV is read in blocks of rows; each block becomes one array per wanted column and its text is
forgotten, so memory stays near the size of the numbers. A column is float64 where every cell is a
number or missing, text otherwise; missing cells are NaN or "".
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import DataError
from atoll.core.registry import nearest

from .examples import Array

MISSING = frozenset(("", "?", "NA", "N/A", "na", "n/a", "NaN", "nan", "NULL", "null", "None"))
_BLOCK = 8192  # rows; small enough to stay in cache, large enough to hide the loop
_CELLS = 1 << 15  # of a block of more than one row: as text they take about 60 bytes each


def read_csv(path: Path, wanted: Sequence[str] | None = None, delimiter: str = ",") -> dict[str, Array]:
    """The columns of a CSV file with a header line, in file order; a byte order mark is skipped.

    `wanted`: only these, in this order. Raises DataError, with the file and line, for a missing
    file or column, a ragged line, a doubled header, no rows, or text that is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            names = _names(path, header, wanted)
            blocks = list(_blocks(path, reader, header, names))
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataError(f"{path.name} cannot be read as CSV: {kind}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if not blocks:
        raise DataError(f"{path.name} has no rows below its header")
    return {name: _stack([block[name] for block in blocks]) for name in names}


def read_parquet(path: Path, wanted: Sequence[str] | None = None) -> dict[str, Array]:
    """The columns of a Parquet file, by polars or pyarrow, whichever is installed.

    Raises DataError for a missing or damaged file, a missing column, or neither library.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        table, names = _parquet(path)
    except DataError:
        raise
    except Exception as error:  # both libraries raise classes of their own
        raise DataError(f"{path.name} cannot be read as Parquet ({type(error).__name__})") from error
    return {name: _typed(table(name)) for name in _names(path, names, wanted)}


def number_column(column: Array, name: str, where: str) -> Array:
    """The column as float64. Raises DataError, with the line below the header, if a cell is text."""
    if column.dtype.kind == "f":
        return column
    row = next(i for i, cell in enumerate(column) if cell and not _is_number(cell))
    raise DataError(
        f"{where}: column {name!r} holds text, first in row {row + 1} below the header;"
        " leave it out with features=[...] or encode it as numbers"
    )


def _names(path: Path, header: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    if not header or not any(header):
        raise DataError(f"{path.name} is empty: expected a header line with column names")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path.name} has two columns called {twice!r}: rename one")
    for name in wanted or ():
        if name not in header:
            raise DataError(f"{path.name} has no column {name!r}: {nearest(name, header)}")
    return list(header if wanted is None else wanted)


def _blocks(
    path: Path, reader: Iterable[list[str]], header: Sequence[str], names: Sequence[str]
) -> Iterable[dict[str, Array]]:
    rows = iter(reader)
    seen = 1
    plain = list(names)  # columns that were numbers without gaps so far
    size = max(1, min(_BLOCK, _CELLS // len(header)))
    while block := list(islice(rows, size)):
        if not {*map(len, block)} <= {0, len(header)}:
            odd = next(i for i, row in enumerate(block) if len(row) not in (0, len(header)))
            raise DataError(
                f"{path.name}, line {seen + odd + 1}:"
                f" {len(block[odd])} cells under {len(header)} column names"
            )
        seen += len(block)
        cells = dict(zip(header, zip(*filter(None, block), strict=True), strict=False))
        if not cells:
            continue
        try:  # all at once: an array for each column of a small block is most of what reading would take
            flat = np.fromiter(map(float, chain.from_iterable(cells[name] for name in plain)), np.float64)
            made = dict(zip(plain, flat.reshape(len(plain), -1), strict=True))
        except ValueError:
            made = {}
        found = {name: made[name] if name in made else _typed(cells[name]) for name in names}
        if not made:
            plain = [name for name in plain if _clean(cells[name])]
        yield found


def _clean(cells: Iterable[str]) -> bool:
    """Whether all are numbers."""
    return all(map(_is_number, cells))


def _typed(cells: Any) -> Array:
    """One block of one column: float64 if all cells are numbers or missing, else text."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
        return cells.astype(np.float64)
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))  # fast, for text without gaps
    except (ValueError, TypeError):
        pass
    tidy = ["" if c is None or (s := str(c).strip()) in MISSING else s for c in cells]
    try:
        return np.array([c or "nan" for c in tidy], dtype=np.float64)
    except ValueError:
        return np.array(tidy, dtype=np.str_)


def _stack(blocks: Sequence[Array]) -> Array:
    if all(block.dtype.kind == "f" for block in blocks):
        return np.concatenate(blocks)
    return np.concatenate([_text(block) for block in blocks])  # text in any block makes it text


def _text(column: Array) -> Array:
    if column.dtype.kind != "f":
        return column
    return np.array(["" if v != v else f"{v:g}" for v in column.tolist()], dtype=np.str_)  # noqa: PLR0124


def text_column(column: Array) -> Array:
    """The column as text, whole numbers without a point, missing cells as ""."""
    return _text(column)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> tuple[Callable[[str], Any], list[str]]:
    """How to read one column of the file, and the columns' names."""
    try:
        import polars as pl

        frame = pl.read_parquet(path)
        return lambda name: _plain(frame[name], frame[name].null_count()), list(frame.columns)
    except ImportError:
        pass
    try:
        from pyarrow import parquet

        table = parquet.read_table(path)
    except ImportError as error:
        raise DataError("reading Parquet needs polars or pyarrow: pip install polars") from error
    return lambda name: _plain(table[name], table[name].null_count), list(table.column_names)


def _plain(column: Any, gaps: int) -> Any:
    """Numbers as an array; a column with empty cells as a list, its gaps None."""
    if not gaps:
        return column.to_numpy()
    return column.to_pylist() if hasattr(column, "to_pylist") else column.to_list()
