"""Charts as SVG text: curves with bands, dots per site, bars. Standard library only.

Colours are CSS variables, so one picture serves light, dark and paper; `STYLE` sets them for
everything inside an element of class "atoll". Lengths are in units of the picture's own box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10
from typing import TypeVar

WIDTH, HEIGHT = 560.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 14.0, 40.0
TONES = ("federated", "alone", "pooled", "up", "down")
_MOST = 400  # points of one line; more would only overlap
P = TypeVar("P", bound=tuple[float, ...])
_GAPS = (1, 2, 2.5, 5, 10)

STYLE = """
.atoll{--ink:#16242b;--soft:#5b6b73;--line:#dfe6e8;--paper:#fff;--page:#f5f8f8;
--federated:#0b7a75;--alone:#c8641b;--pooled:#5a63c9;--up:#0b7a75;--down:#8fb8de;
color:var(--ink);font-family:system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","Noto Sans CJK SC",sans-serif}
@media screen and (prefers-color-scheme:dark){
.atoll{--ink:#e4edee;--soft:#94a5ab;--line:#2b3a41;--paper:#16212a;
--page:#0e161c;--federated:#3cc9b8;--alone:#f0975a;--pooled:#98a0ff;--up:#3cc9b8;--down:#456f99}}
.atoll svg{display:block;width:100%;height:auto;overflow:visible}
.atoll svg text{font-size:13px;fill:var(--soft);font-variant-numeric:tabular-nums}
.atoll svg .strong{fill:var(--ink);font-weight:600}
.atoll svg .grid{stroke:var(--line);stroke-width:1}
.atoll svg .level{stroke-width:1.5;stroke-dasharray:5 4}
.atoll svg .curve{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
""" + "".join(
    f".atoll .s-{t}{{stroke:var(--{t})}}.atoll .f-{t}{{fill:var(--{t})}}"
    f".atoll .b-{t}{{background:var(--{t})}}\n"
    for t in TONES
)


@dataclass(frozen=True)
class Line:
    """A curve through `points` (x, y); `flat` makes it one dashed level, whatever its x."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: str = "federated"
    flat: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two curves: `points` (x, low, high); `solid` where it is an amount."""

    name: str
    points: Sequence[tuple[float, float, float]]
    tone: str = "federated"
    solid: bool = False


@dataclass(frozen=True)
class Dots:
    """One number per site, by `values`; `labels` name them, `mean` and `worst` are marked."""

    name: str
    values: Sequence[float]
    labels: Sequence[str]
    mean: float
    worst: float
    tone: str = "federated"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about so many of them, evenly spaced."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** floor(log10(span / about))
    gap = next(g * unit for g in _GAPS if span / (g * unit) <= about)
    first, last = floor(low / gap + 1e-9), ceil(high / gap - 1e-9)
    return [round(k * gap, 12) for k in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    height: float = HEIGHT
    width: float = WIDTH
    left: float = LEFT

    def x(self, v: float) -> float:
        low, high = self.xs
        return self.left + (v - low) / (high - low or 1) * (self.width - self.left - RIGHT)

    def y(self, v: float) -> float:
        low, high = self.ys
        return self.height - BOTTOM - (v - low) / (high - low or 1) * (self.height - TOP - BOTTOM)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)


def curves(
    lines: Sequence[Line],
    bands: Sequence[Band] = (),
    *,
    title: str,
    x: str,
    number: Callable[[float], str] = "{:g}".format,
    top: float | None = None,
) -> str:
    """Lines and bands over a shared x axis, as an <svg>; `top` caps the y axis where it is known."""
    lines = [Line(v.name, _finite(v.points), v.tone, v.flat) for v in lines]
    bands = [Band(b.name, _finite(b.points), b.tone, b.solid) for b in bands]
    ys = [y for v in lines for _, y in v.points] + [y for b in bands for p in b.points for y in p[1:]]
    xs = [p[0] for v in lines if not v.flat for p in v.points] + [p[0] for b in bands for p in b.points]
    if not ys or not xs:
        return ""
    marks = ticks(min(0.0, *ys) if min(ys) < 0 or min(ys) < max(ys) / 2 else min(ys), max(ys))
    if top is not None:
        marks = [m for m in marks if m <= top + 1e-9]
    axes = _Axes((min(xs), max(xs)), (marks[0], max(marks[-1], *ys)))
    body = _grid(axes, marks, number) + _bottom(axes, [t for t in ticks(*axes.xs, 6) if t <= axes.xs[1]], x)
    for b in bands:
        edge = [(p[0], p[2]) for p in b.points] + [(p[0], p[1]) for p in reversed(b.points)]
        opacity = 0.85 if b.solid else 0.15
        body += f'<path class="f-{b.tone}" opacity="{opacity}" d="{axes.path(edge)}Z"/>'
    for v in lines:
        if v.flat:
            y = axes.y(v.points[0][1])
            body += (
                f'<line class="level s-{v.tone}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        else:
            body += f'<path class="curve s-{v.tone}" d="{axes.path(_thin(v.points))}"/>'
    return _svg(body, title, HEIGHT)


def dots(rows: Sequence[Dots], *, title: str, number: Callable[[float], str] = "{:.3g}".format) -> str:
    """A row of dots for each way to train, on one axis: a bar at the mean, a ring at the worst tenth."""
    values = [v for row in rows for v in row.values if isfinite(v)]
    if not values:
        return ""
    wide, left, pitch = 1.85 * WIDTH, 150.0, 74.0
    height = TOP + pitch * len(rows) + BOTTOM - 12
    marks = ticks(min(values), max(values), 8)
    axes = _Axes((marks[0], marks[-1]), (0.0, 1.0), height, wide, left)
    body = "".join(
        f'<line class="grid" x1="{axes.x(m):.1f}" x2="{axes.x(m):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        for m in marks
    ) + _bottom(axes, marks, "", number)
    for i, row in enumerate(rows):
        base = TOP + pitch * i + 50
        body += f'<text class="strong" x="0" y="{base - 4:.1f}">{escape(row.name)}</text>'
        body += f'<line class="grid" x1="{left}" x2="{wide - RIGHT}" y1="{base}" y2="{base}"/>'
        body += "".join(_swarm(row, axes, base))
        body += _marks(row, axes, base)
    return _svg(body, title, height, wide)


def _marks(row: Dots, axes: _Axes, base: float) -> str:
    body = ""
    if isfinite(row.mean):
        at = f'x1="{axes.x(row.mean):.1f}" x2="{axes.x(row.mean):.1f}"'
        body += f'<line class="s-{row.tone}" stroke-width="3" {at} y1="{base - 34}" y2="{base + 10}"/>'
    if isfinite(row.worst):
        at = f'cx="{axes.x(row.worst):.1f}" cy="{base}"'
        body += f'<circle class="s-{row.tone}" {at} r="9" fill="none" stroke-width="2"/>'
    return body


def _swarm(row: Dots, axes: _Axes, base: float) -> Iterable[str]:
    """Dots that would overlap are stacked upwards, closer where there are many."""
    radius = 5.0 if len(row.values) <= 60 else 3.0
    heights: dict[int, int] = {}
    places = sorted((v, label) for v, label in zip(row.values, row.labels, strict=True) if isfinite(v))
    cells = [round(axes.x(v) / (2 * radius)) for v, _ in places]
    step = min(2 * radius, 38 / max(1, max((cells.count(c) for c in set(cells)), default=1) - 1))
    for (v, label), cell in zip(places, cells, strict=True):
        up = heights.get(cell, 0)
        heights[cell] = up + 1
        yield (
            f'<circle class="f-{row.tone}" opacity=".6" cx="{axes.x(v):.1f}" cy="{base - up * step:.1f}"'
            f' r="{radius}"><title>{escape(label)}: {v:.4g}</title></circle>'
        )


def bars(counts: Sequence[float], labels: Sequence[str], *, title: str, x: str) -> str:
    """One bar for each count, from 0."""
    if not counts:
        return ""
    marks = ticks(0.0, max(*counts, 1.0))
    axes = _Axes((-0.5, len(counts) - 0.5), (0.0, marks[-1]))
    body = _grid(axes, marks, "{:g}".format)
    wide = max(1.0, 0.72 * (WIDTH - LEFT - RIGHT) / len(counts))
    every = ceil(len(counts) / 16)
    for i, (count, label) in enumerate(zip(counts, labels, strict=True)):
        at, y = axes.x(i), axes.y(count)
        body += (
            f'<rect class="f-federated" opacity=".85" x="{at - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}"'
            f' height="{axes.y(0) - y:.1f}" rx="2"><title>{escape(label)}: {count:g}</title></rect>'
        )
        if i % every == 0:
            body += _tick(at, HEIGHT, label)
    return _svg(body + _name(x, axes), title, HEIGHT)


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    every = ceil(len(points) / _MOST)
    return [p for i, p in enumerate(points) if i % every == 0 or i == len(points) - 1]


def _finite(points: Sequence[P]) -> list[P]:
    return [p for p in points if all(map(isfinite, p))]


def _grid(axes: _Axes, marks: Sequence[float], number: Callable[[float], str]) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{axes.y(m):.1f}" y2="{axes.y(m):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{axes.y(m) + 4:.1f}" text-anchor="end">{escape(number(m))}</text>'
        for m in marks
    )


def _bottom(
    axes: _Axes, marks: Sequence[float], x: str, number: Callable[[float], str] = "{:g}".format
) -> str:
    return "".join(_tick(axes.x(m), axes.height, number(m)) for m in marks) + _name(x, axes)


def _tick(at: float, height: float, text: str) -> str:
    return f'<text x="{at:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{escape(text)}</text>'


def _name(x: str, axes: _Axes) -> str:
    at = f'x="{axes.width - RIGHT}" y="{axes.height - 3}"'
    return f'<text {at} text-anchor="end">{escape(x)}</text>' if x else ""


def _svg(body: str, title: str, height: float, width: float = WIDTH) -> str:
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}">{body}</svg>'
