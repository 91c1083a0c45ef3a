"""The picture of a federation: what each client holds, and how much.

Above, the label mix of each client as bars of equal height, the pooled mix at the left; below, its
rows. Many clients become thin bars without gaps, ordered by their commonest label so that skew
shows as blocks and iid as stripes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll.core.errors import ConfigError
from atoll.wire.files import whole

from .examples import Array

if TYPE_CHECKING:
    from .skew import Heterogeneity

# Ten colours that stay apart for colour-blind readers as well as ten can (Tol 2021, "muted").
_COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933",
    "#ddcc77", "#cc6677", "#882255", "#aa4499", "#bbbbbb",
)  # fmt: skip
_INK, _FAINT = "#22313f", "#8a97a3"
_NAMED = 16  # clients up to which each has its name below its bar


def draw(found: Heterogeneity, path: Path) -> Path:
    """Write the picture to `path` (.png or .svg), the same bytes for the same data.

    Raises ConfigError for another ending, or without matplotlib.
    """
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"a picture ends in .png or .svg, got {path.suffix or 'no ending'!r}")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib: pip install matplotlib") from error
    with mpl.rc_context({"svg.hashsalt": "atoll", "font.size": 10, "text.color": _INK}):
        figure = Figure(figsize=(10, 5.6), dpi=150, facecolor="white")
        mix, size = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
        _paint(found, mix, size)
        figure.subplots_adjust(left=0.08, right=0.85, top=0.86, bottom=0.12, hspace=0.12)
        _title(found, figure)
        unstamped = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with whole(path) as out:
            figure.savefig(out, format=path.suffix[1:], metadata=unstamped)
    return path


def _paint(found: Heterogeneity, mix: Any, size: Any) -> None:
    sizes = found.sizes
    clients = len(sizes)
    few = clients <= _NAMED
    order = np.arange(clients) if few else _by_mix(found.counts)
    shares = (found.counts / np.maximum(sizes, 1)[:, None])[order]
    colours = _palette(found.counts.shape[1])
    place, wide = np.arange(clients), 0.82 if few else 1.0
    floor = np.zeros(clients)
    edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6} if clients <= 60 else {"aa": False}
    pooled, left, stack = found.counts.sum(axis=0) / sizes.sum(), _pooled_place(clients), 0.0
    for label, colour in enumerate(colours):
        mix.bar(place, shares[:, label], wide, floor, color=colour, **edge)
        mix.bar(left[0], pooled[label], left[1], stack, color=colour, edgecolor="white", linewidth=0.6)
        floor, stack = floor + shares[:, label], stack + pooled[label]
    mix.annotate("all", (left[0], -0.02), ha="center", va="top", annotation_clip=False)
    size.bar(place, sizes[order], wide, color="#5b7c99", **edge)
    size.axhline(sizes.mean(), color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    size.annotate(
        f"mean {sizes.mean():.0f}",
        (1.008, sizes.mean()),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=9,
    )
    _axes(found, mix, size, few=few)
    _legend(found, mix, colours)


def _pooled_place(clients: int) -> tuple[float, float]:
    """Where the bar of the pooled mix stands, left of the clients, and how wide it is."""
    wide = max(0.6, 0.04 * clients)
    return -0.5 - 1.1 * wide, wide


def _axes(found: Heterogeneity, mix: Any, size: Any, *, few: bool) -> None:
    clients = len(found.names)
    mix.set(ylabel="label mix", ylim=(0, 1), yticks=(0, 0.5, 1), yticklabels=("0", "50 %", "100 %"))
    size.set(ylabel="rows", ylim=(0, found.sizes.max() * 1.12))
    edge = 0.01 * clients
    left, wide = _pooled_place(clients)
    size.set_xlim(left - wide / 2 - edge, clients - 0.5 + edge)
    size.ticklabel_format(axis="y", style="plain")
    if few:
        tilt = {"rotation": 25, "ha": "right"} if sum(map(len, found.names)) > 80 else {}
        size.set_xticks(range(clients), [name[:18] for name in found.names], **tilt)
    else:
        size.set_xticks([])
        size.set_xlabel(f"{clients} clients, ordered by their commonest label", color=_INK)
    for axes in (mix, size):
        axes.tick_params(colors=_INK, length=0)
        axes.yaxis.label.set_color(_INK)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    size.grid(axis="y", color="#e3e8ec", linewidth=0.8)
    size.set_axisbelow(True)


def _legend(found: Heterogeneity, mix: Any, colours: list[str]) -> None:
    from matplotlib.patches import Patch

    shown = min(len(colours), 20)
    handles = [Patch(color=c, label=n[:16]) for c, n in zip(colours[:shown], found.labels, strict=False)]
    mix.legend(
        handles=handles[::-1],  # top to bottom as the bars are stacked
        loc="upper left",
        bbox_to_anchor=(1.005, 1.02),
        frameon=False,
        fontsize=9,
        handlelength=1,
        handleheight=1,
        title="label" if shown == len(colours) else f"label (first {shown} of {len(colours)})",
        alignment="left",
    )


def _title(found: Heterogeneity, figure: Any) -> None:
    rows = f"{found.sizes.sum():,}".replace(",", "\N{NO-BREAK SPACE}")  # as in ISO 80000
    figure.text(0.08, 0.945, f"{len(found.names)} clients, {rows} rows", fontsize=14, weight="bold")
    line = (
        f"label distance {found.label_tv:.2f}  ·  Jensen-Shannon {found.label_js:.2f} bits  ·  "
        f"size Gini {found.gini:.2f}  ·  feature shift {found.shift:.2f}  ·  "
        f"start with {found.recommend().algorithm}"
    )
    figure.text(0.08, 0.905, line, fontsize=10, color=_FAINT)


def _by_mix(counts: Array) -> Array:
    """Clients ordered by commonest label, then by how much of it they hold."""
    share = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    return np.lexsort((-share.max(axis=1), share.argmax(axis=1)))


def _palette(count: int) -> list[str]:
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    colormap = colormaps["turbo"]
    return [to_hex(colormap((k + 0.5) / count)) for k in range(count)]
