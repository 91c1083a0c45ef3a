"""Pieces of a page: the document around a report, figures with their numbers, tables, keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from .. import draw
from ..draw import Band, Line

_MOST_ROWS = 500  # of a table; the files beside a report hold them all
_SITES = ((26, 7, 5), (44, 20, 4), (41, 38, 5.5), (24, 45, 4), (8, 33, 5), (10, 15, 3.5))
_LOGO = (
    '<svg viewBox="0 0 52 52" aria-hidden="true">'
    '<circle cx="26" cy="26" r="19" fill="none" class="s-federated" stroke-width="2" opacity=".35"/>'
    + "".join(f'<circle cx="{x}" cy="{y}" r="{r}" class="f-federated"/>' for x, y, r in _SITES)
    + "</svg>"
)


def document(title: str, line: str, parts: Iterable[str], foot: str, language: str) -> str:
    """A whole page: `title` and `line` are text, `parts` are markup."""
    css = draw.STYLE + Path(__file__).with_name("report.css").read_text("utf-8")
    return (
        f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · Atoll</title><style>{css}</style></head>\n"
        f'<body class="atoll"><main><header>{_LOGO}<div><h1>{escape(title)}</h1><p>{escape(line)}</p></div>'
        "</header>\n" + "\n".join(parts) + f"\n<footer>{escape(foot)}</footer></main></body></html>\n"
    )


def figure(title: str, note: str, chart: str, numbers: str = "") -> str:
    """A chart in a section of its own, its `numbers` folded below it."""
    caption = f"<figcaption>{note}</figcaption>"
    return f"<section><h2>{title}</h2><figure>{caption}{chart}</figure>{numbers}</section>"


def fold(title: str, inner: str) -> str:
    """Markup that opens on a click."""
    return f"<details><summary>{title}</summary>{inner}</details>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Rows of markup below their heads; of very many rows, every so manieth."""
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    some = rows[:: -(-len(rows) // _MOST_ROWS) or 1]
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in some)
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{inner}</table></div>'


def key(lines: Sequence[Line], bands: Sequence[Band]) -> str:
    """What the colours of a chart stand for."""
    items = [(v.name, v.tone, "flat" if v.flat else "") for v in lines]
    items += [(b.name, b.tone, "solid" if b.solid else "area") for b in bands]
    shown = "".join(f'<li><i class="b-{tone} {kind}"></i>{escape(name)}</li>' for name, tone, kind in items)
    return f'<ul class="key">{shown}</ul>'
