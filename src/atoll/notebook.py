"""How a Run shows itself in Python: a figure of matplotlib, and a summary for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import draw
from .core.errors import ConfigError
from .learn.stop import main_metric

_LINES = 2


def figure(history: Sequence[Mapping[str, Any]]) -> Any:
    """The first two metrics over rounds, with every site's faintly behind; a matplotlib Figure.

    Raises ConfigError where matplotlib is missing or nothing was evaluated yet.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, nothing to close
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'atoll-fl[plots]'") from None
    names = shown(history)
    if not names:
        raise ConfigError("no round was evaluated yet: there is nothing to plot")
    made = Figure(figsize=(5.2 * len(names), 3.4), layout="constrained")
    for axes, name in zip(made.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for site in sorted({k for r in history for k in r.get("sites", {})}):
            axes.plot(*_curve(history, name, site), color="#0b7a75", alpha=0.12, linewidth=0.8)
        axes.plot(*_curve(history, name), color="#0b7a75", linewidth=2)
        axes.set(xlabel="round", title=name)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return made


def summary(run: Any) -> str:
    """A run as HTML: its last metrics, bytes and one curve."""
    cells = {"rounds": run.history[-1]["round"] if run.history else 0}
    cells |= {name: f"{value:.4f}" for name, value in run.metrics.items() if isinstance(value, float)}
    cells |= {"MB up": f"{run.traffic.up / 1e6:.1f}", "MB down": f"{run.traffic.down / 1e6:.1f}"}
    heads = "".join(f"<th>{escape(name)}</th>" for name in cells)
    values = "".join(f"<td>{escape(str(value))}</td>" for value in cells.values())
    chart = ""
    for name in shown(run.history)[:1]:
        line = draw.Line(name, list(zip(*_curve(run.history, name), strict=True)))
        chart = draw.curves([line], title=f"{name} by round", x="round")
    table = f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{values}</tr></tbody></table>"
    title = f"<strong>{escape(run.job.name)}</strong> · {escape(str(run.job.algorithm))}"
    return (
        f'<div class="atoll" style="max-width:560px"><style>{draw.STYLE}</style>{title}{table}{chart}</div>'
    )


def shown(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics worth a chart: the one a person asks for first, and the loss."""
    names = next((list(r["metrics"]) for r in reversed(history) if r.get("metrics")), [])
    return list(dict.fromkeys(n for n in (main_metric(names), "loss") if n in names))[:_LINES]


def _curve(
    history: Sequence[Mapping[str, Any]], name: str, site: Any = None
) -> tuple[list[float], list[float]]:
    """Rounds and values of a metric, of one site or overall."""
    found = [
        (r["round"], r.get("metrics", {}) if site is None else r.get("sites", {}).get(site, {}))
        for r in history
    ]
    return [float(at) for at, m in found if name in m], [float(m[name]) for _, m in found if name in m]
