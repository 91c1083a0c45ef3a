"""Plain tables for terminals and pipes: columns aligned, the last one folded to the terminal's width."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

_LEAST = 24  # columns that are left to the last one, however narrow the terminal is


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print the rows below their heads; numbers to the right, text to the left."""
    cells = [list(heads), *map(list, rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    right = [all(_numeric(c) for c in column) for column in zip(*cells[1:], strict=True)] or [False] * len(
        heads
    )
    room = _room() - sum(widths[:-1]) - 2 * (len(heads) - 1)
    for row in cells:
        *first, last = row
        folded = textwrap.wrap(last, max(room, _LEAST)) if room < widths[-1] else [last]
        line = "".join(_pad(c, w, right=r) + "  " for c, w, r in zip(first, widths, right, strict=False))
        print((line + _pad(folded[0] if folded else "", widths[-1], right=right[-1])).rstrip())
        for more in folded[1:]:
            print(" " * (sum(widths[:-1]) + 2 * len(first)) + more)


def size(n: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            break
        n /= 1000
    return f"{n:.0f} B" if unit == "B" else f"{n:.3g} {unit}" if n < 100 else f"{n:.0f} {unit}"


def number(x: float) -> str:
    """Four places; a dash for what is not known."""
    return "–" if x != x else f"{x:.4f}" if abs(x) < 1000 else f"{x:.4g}"  # noqa: PLR0124  NaN


def _room() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _numeric(cell: str) -> bool:
    return cell[:1] in "–-" or cell[:1].isdigit()
