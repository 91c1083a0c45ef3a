"""A run's report: one page of HTML with its charts inside; no script, nothing loaded from elsewhere.

Every chart stands beside its numbers in a table, for readers who do not see it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import draw
from ..baselines import Scores
from ..core.errors import StateError
from ..draw import Band, Dots, Line
from ..learn.stop import lower_is_better, main_metric
from ..simulate import folder as files
from . import html
from .config import flat
from .table import number, size
from .text import Texts

Say = Callable[[str], str]
Record = Mapping[str, Any]

WAYS = {
    "federated": "federated",
    "each site alone": "alone",
    "all data pooled": "pooled",
}  # and their colours


def write(root: Path, say: Say | None = None) -> Path:
    """Make `report.html` in a run folder; its path. Raises StateError where there is no run."""
    path = root / "report.html"
    files.write(path, page(Seen(root), say or Texts("en")).encode())
    return path


class Seen:
    """What a run folder holds: `job`, `history`, `about`, `values` of the job, `ways` to train."""

    def __init__(self, root: Path) -> None:
        run = files.Folder(root)
        self.job = run.job()
        self.history = run.history()
        if not self.history:
            raise StateError(f"{root} holds no round yet: let the run go on with --resume")
        self.about = _json(root / "about.json")
        self.values = run.values() or self.job["job"]
        self.name = str(self.values.get("name", root.name)).strip("'")
        data = self.job.get("data", {})
        last: dict[int, Any] = next((r["sites"] for r in reversed(self.history) if r.get("sites")), {})
        self.sites = {k: _site(data, k) for k in sorted(last)}
        self.clients = int(data.get("clients", len(self.sites)))
        self.rounds = [r for r in self.history if r["round"]]
        self.seen = [r for r in self.history if r.get("metrics")]
        self.metric = main_metric(self.seen[-1]["metrics"]) if self.seen else "loss"
        ways = _json(root / "baselines.json")
        self.ways = {
            name: Scores(ways[name]["pooled"], {int(k): m for k, m in ways[name]["sites"].items()})
            for name in WAYS
            if name in ways
        } or {"federated": Scores(self.seen[-1]["metrics"] if self.seen else {}, last)}


def page(run: Seen, say: Say) -> str:
    """The whole report."""
    parts = [
        _cards(run, say),
        _curves(run, say),
        _ways(run, say),
        _traffic(run, say),
        f'<div class="two">{_staleness(run, say)}{_failures(run, say)}</div>',
        _suspects(run, say),
        _details(run, say),
    ]
    algorithm = str(run.job["job"]["algorithm"]).partition("(")[0]
    line = f"{algorithm} · {run.clients} {say('clients')} · {say('seed')} {run.job['seed']}"
    return html.document(run.name, line, parts, f"Atoll {run.about.get('atoll', '')}", say("en"))


def _cards(run: Seen, say: Say) -> str:
    cards = []
    if run.seen:
        values = [r["metrics"][run.metric] for r in run.seen]
        best = (min if lower_is_better(run.metric) else max)(values)
        at = run.seen[values.index(best)]["round"]
        cards.append(
            (say(run.metric), number(values[-1]), f"{say('best')} {number(best)}, {say('round')} {at}")
        )
    stopped = say("stopped early") if run.history[-1].get("stop") else ""
    cards.append((say("rounds"), str(run.history[-1]["round"]), stopped))
    taking = [r["clients"] for r in run.rounds]
    some = f"{sum(taking) / len(taking):.3g} {say('in a round')}" if taking else ""
    cards.append((say("clients"), str(run.clients), some))
    for way in ("up", "down"):
        total = sum(r.get(way, 0) for r in run.rounds)
        each = f"{size(total / len(run.rounds))} {say('a round')}" if run.rounds else ""
        cards.append((say(f"sent {way}"), size(total), each))
    virtual = sum(r.get("seconds", 0.0) for r in run.rounds)
    clock = f"{_time(virtual)} {say('virtual time')}" if virtual else ""
    if "took" in run.about:
        cards.append((say("time taken"), _time(run.about["took"]), clock))
    shown = "".join(f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in cards)
    return f'<section class="cards" role="group" aria-label="{say("summary")}">{shown}</section>'


def _curves(run: Seen, say: Say) -> str:
    """The main metric and the loss over rounds, with the sites' spread around them."""
    names = list(
        dict.fromkeys([run.metric, *(["loss"] if run.seen and "loss" in run.seen[-1]["metrics"] else [])])
    )
    if not run.seen:
        return ""
    shown = "".join(_curve(run, name, say) for name in names)
    return f'<div class="two">{shown}</div>' if len(names) > 1 else shown


def _curve(run: Seen, name: str, say: Say) -> str:
    points = [(float(r["round"]), float(r["metrics"][name])) for r in run.seen if name in r["metrics"]]
    spread = [(r["round"], [m[name] for m in r.get("sites", {}).values() if name in m]) for r in run.seen]
    band = [(float(at), *_middle(values)) for at, values in spread if len(values) > 1]
    lines = [Line(say("federated"), points)]
    for way, tone in list(WAYS.items())[1:]:
        level = run.ways[way].pooled.get(name) if way in run.ways else None
        if level is not None and (name == run.metric or level < 2 * max(p[1] for p in points)):
            lines.append(Line(say(way), [(0.0, level)], tone, flat=True))
    bands = [Band(say("eight of ten sites"), band)] if band else []
    top = 1.0 if name in ("accuracy", "auc") else None
    chart = draw.curves(lines, bands, title=f"{say(name)}, {say('by round')}", x=say("round"), top=top)
    rows = [(str(int(a)), number(b)) for a, b in points]
    numbers = html.fold(say("numbers"), html.table([say("round"), say(name)], rows))
    note = say("on all test rows, by round")
    return html.figure(say(name).capitalize(), note, html.key(lines, bands) + chart, numbers)


def _ways(run: Seen, say: Say) -> str:
    """Every site's metric, however it was trained; and the comparison as a table."""
    rows, table = [], []
    for name, scores in run.ways.items():
        over = scores.over_sites(run.metric)
        found = {k: m[run.metric] for k, m in scores.sites.items() if run.metric in m}
        labels = [run.sites.get(k, str(k)) for k in found]
        rows.append(
            Dots(say(name), list(found.values()), labels, over.mean, over.worst, WAYS.get(name, "federated"))
        )
        pooled = scores.pooled.get(run.metric, float("nan"))
        cells = [number(v) for v in (pooled, over.mean, over.worst, over.deviation)]
        table.append((f'<i class="b-{WAYS.get(name, "federated")}"></i>{escape(say(name))}', *cells))
    chart = draw.dots(rows, title=f"{say(run.metric)}, {say('site by site')}")
    if not chart:
        return ""
    heads = [say("trained"), say("all test rows"), say("mean over sites"), say("worst tenth"), say("spread")]
    sites = [
        (escape(name), *(number(s.sites.get(k, {}).get(run.metric, float("nan"))) for s in run.ways.values()))
        for k, name in run.sites.items()
    ]
    return (
        f"<section><h2>{say('Site by site')}</h2><p>{say('One dot is one site, on its own test rows')}:"
        f" {say(run.metric)}. {say('The bar is the mean, the ring the mean of the worst tenth')}.</p>"
        f'<figure class="wide scroll">{chart}</figure>{html.table(heads, table)}'
        + html.fold(say("every site"), html.table([say("site"), *map(say, run.ways)], sites))
        + "</section>"
    )


def _traffic(run: Seen, say: Say) -> str:
    records = [r for r in run.rounds if "up" in r]
    if not records:
        return ""
    each, total = [], []
    ups = downs = 0.0
    for r in records:
        ups, downs, at = ups + r["up"], downs + r["down"], float(r["round"])
        each += [(at - 1, r["up"], r["down"]), (at, r["up"], r["down"])]
        total.append((at, ups, downs))
    total = [(each[0][0], 0.0, 0.0), *total]
    rows = [(str(r["round"]), size(r["up"]), size(r["down"])) for r in records]
    heads = [say("round"), say("sent up"), say("sent down")]
    note, shown = say("models sent down, updates sent up"), ""
    for title, points, table in (("Bytes in each round", each, rows), ("Bytes so far", total, [])):
        bands = [
            Band(say("sent up"), [(a, 0.0, up) for a, up, _ in points], "up", solid=True),
            Band(say("sent down"), [(a, up, up + down) for a, up, down in points], "down", solid=True),
        ]
        chart = draw.curves([], bands, title=say(title), x=say("round"), number=size)
        numbers = html.fold(say("numbers"), html.table(heads, table)) if table else ""
        shown += html.figure(say(title), note, html.key([], bands) + chart, numbers)
    return f'<div class="two">{shown}</div>'


def _staleness(run: Seen, say: Say) -> str:
    """How old updates were when they went in: asynchronous runs only."""
    counts: Counter[int] = Counter()
    for r in run.rounds:
        counts.update(dict(enumerate(r.get("ages", ()))))
    if not counts:
        return ""
    ages = range(max(k for k, n in counts.items() if n) + 1)
    chart = draw.bars([counts[a] for a in ages], list(map(str, ages)), title=say("Staleness"), x=say("steps"))
    rows = [(str(a), str(counts[a])) for a in ages]
    note = say("how many steps the model had moved while a client trained")
    numbers = html.fold(say("numbers"), html.table([say("steps"), say("updates")], rows))
    return html.figure(say("Staleness"), note, chart, numbers)


def _failures(run: Seen, say: Say) -> str:
    """Why clients that were asked contributed nothing, or could not evaluate."""
    reasons, unseen = failures(run.history), failures(run.history, "sites_failed")
    if not reasons and not unseen:
        return ""
    asked = sum(r.get("cohort", 0) for r in run.rounds)
    shown = f"<h2>{say('Failures')}</h2>"
    for counted, note in (
        (reasons, f"{sum(reasons.values())} / {asked} {say('tasks brought nothing')}"),
        (unseen, f"{sum(unseen.values())} {say('evaluations at sites failed')}"),
    ):
        rows = [(str(n), escape(reason)) for reason, n in counted.most_common(20)]
        heads = [say("times"), say("reason")]
        shown += f"<p>{note}</p>{html.table(heads, rows, 'text')}" if rows else ""
    return f"<section>{shown}</section>"


def failures(history: Sequence[Record], key: str = "failed") -> Counter[str]:
    """How often each reason occurs under `key`: the last line of each, which of a traceback says what."""
    return Counter(reason.strip().rpartition("\n")[2] for r in history for reason in r.get(key, {}).values())


def _suspects(run: Seen, say: Say) -> str:
    """Clients that seemed to lie: how surely, since when, and how many rounds did without them."""
    judged = [r for r in run.history if "suspects" in r]
    named = sorted({client for r in judged for client in r["suspects"]})
    if not named:
        return ""
    rows = []
    for client in named:
        score = next(r["scores"][client] for r in reversed(judged) if client in r["scores"])
        first = next(r["round"] for r in judged if client in r["suspects"])
        without = sum(client in r["aside"] for r in judged)
        rows.append((escape(_site(run.job["data"], client)), f"{score:.2f}", str(first), str(without)))
    heads = [say("client"), say("score"), say("suspect since round"), say("rounds without it")]
    note = f"<p>{say('what they sent was unlike what all others sent, round after round')}</p>"
    return f"<section><h2>{say('Suspects')}</h2>{note}{html.table(heads, rows)}</section>"


def _details(run: Seen, say: Say) -> str:
    values = flat(run.values) if run.values is not run.job["job"] else list(run.values.items())
    job = [(escape(k), escape(v)) for k, v in values]
    about = [(escape(k), escape(str(v))) for k, v in run.about.items() if k != "took"]
    heads = [say("name"), say("value")]
    return (
        f'<div class="two"><section><h2>{say("The job")}</h2>{html.table(heads, job, "pairs")}</section>'
        f"<section><h2>{say('Where it ran')}</h2>{html.table(heads, about, 'pairs')}</section></div>"
    )


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """The first and last decile: eight of ten values lie between."""
    ranked = sorted(values)
    cut = len(ranked) // 10
    return ranked[cut], ranked[-1 - cut]


def _site(data: Mapping[str, Any], k: int) -> str:
    names = data.get("names") or []
    return str(names[k]) if k < len(names) else f"client {k}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError:
        raise StateError(f"{path} is damaged: start the run again in a new folder") from None
    return found
