"""`atoll watch`: a run as it goes. A table that changes on a terminal, a line for each round elsewhere.

Looking changes nothing: whoever stops looking leaves the run going, and is told so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..core.errors import MisuseError
from .cli_ops import waiting
from .progress import promised
from .remote.sdk import ENDED, Federation, RemoteRun
from .table import number, size

Say = Callable[[str], str]
Row = dict[str, Any]
LOOK = 1.0  # seconds between two looks at what members do, which is no event


def follow(fed: Federation, run: RemoteRun, say: Say, *, quiet: bool) -> int:
    """Look until the run has ended; 0, or 1 where it failed, or 130 where somebody stopped looking."""
    try:
        if quiet:
            last = run.record
            for record in run.watch():
                last = record
        elif sys.stdout.isatty():
            last = _table(fed, run, say)
        else:
            last = _lines(run, say)
    except KeyboardInterrupt:
        print(
            f"\n{run.id} {say('goes on')}: atoll watch {run.id} {say('looks again')},"
            f" atoll stop {run.id} {say('ends it')}",
            file=sys.stderr,
        )
        return 130
    metrics: Mapping[str, Any] = next((r["metrics"] for r in reversed(run.history) if r.get("metrics")), {})
    if quiet:
        print(json.dumps({"run": last, "metrics": {k: v if v == v else None for k, v in metrics.items()}}))  # noqa: PLR0124
    else:
        print(_ending(last, metrics, say))
        if last.get("private") and (spent := _spent(run, say)):
            print(spent)
    return 1 if last["state"] == "failed" else 0


def _ending(last: Row, metrics: Mapping[str, Any], say: Say) -> str:
    reason = f": {last['reason']}" if last["reason"] else ""
    found = "  ".join(f"{say(n)} {number(v)}" for n, v in metrics.items() if isinstance(v, (int, float)))
    sent = f"{say('sent up')} {size(last['up'])}, {say('sent down')} {size(last['down'])}"
    lines = [f"{last['id']} {say(last['state'])}{reason}", f"{last['round']} {say('rounds')}, {sent}"]
    if last["state"] == "failed":
        lines.append(f"{say('next')}: atoll logs {last['id']}")
    return "\n".join([*lines, *([found] if found else [])])


def _spent(run: RemoteRun, say: Say) -> str:
    """What it has spent of its promise; "" where it ended before anybody was asked."""
    with suppress(MisuseError):
        found = run.report()["promise"]
        return promised(found["unit"], found["epsilon spent at most"], found["delta"], say)
    return ""


def _lines(run: RemoteRun, say: Say) -> Row:
    """One line a round, and one for each state it comes into."""
    done, state, waits, record = -1, "", "", run.record
    for record in run.watch():
        if record["state"] not in (state, *ENDED):  # its end is said below, with the result
            state = record["state"]
            print(f"{run.id} {say(state)}", flush=True)
        if (now := waiting(record, say)) != waits and record["state"] not in ENDED:
            waits = now
            print(now or f"{run.id} {say('goes on')}", flush=True)
        for round in run.since(done):
            done = round["round"]
            print(line(round, record["of"], say), flush=True)
    return record


def line(round: Row, of: int, say: Say) -> str:
    """A round in one line: number, metrics, clients, bytes."""
    metrics = round.get("metrics", {})
    found = "  ".join(f"{say(n)} {number(v)}" for n, v in metrics.items() if isinstance(v, float))
    who = f"  {round['clients']}/{round['cohort']} {say('clients')}" if "cohort" in round else ""
    sent = f"  ↑{size(round['up'])} ↓{size(round['down'])}" if "up" in round else ""
    return f"{say('round')} {round['round']:>4}/{of}  {found}{who}{sent}".rstrip()


def _table(fed: Federation, run: RemoteRun, say: Say) -> Row:
    from rich.console import Console
    from rich.live import Live

    last: Row = {}
    with Live(console=Console(), auto_refresh=False, transient=True) as screen:
        for seen in _seen(fed, run):
            last = seen["run"]
            screen.update(picture(seen, say), refresh=True)
    return last


def _seen(fed: Federation, run: RemoteRun) -> Iterator[Row]:
    """The overview of this run, whenever something happened, and each LOOK seconds."""
    _, after = fed.events(after=-1)
    while True:
        seen = fed.overview(run.id)
        yield seen
        if seen["run"]["state"] in ENDED:
            return
        began = time.monotonic()
        _, after = fed.events(after, wait=LOOK)
        if (left := LOOK / 4 - (time.monotonic() - began)) > 0:
            time.sleep(left)  # many events in a moment are one look


def picture(seen: Row, say: Say) -> Any:
    """What rich shows: the run, its curve in a line, a row for each client."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    run, rounds = seen["run"], seen["rounds"]
    head = Text.assemble((run["id"], "bold"), "  ", (say(run["state"]), "cyan"), f"  {run['name']}")
    head.append(f"  {run['algorithm']} · {run['learner']} · {run['data']}", "dim")
    value = "" if run["value"] is None else f"  {say(run['metric'])} {number(run['value'])}"
    sent = f"  ↑{size(run['up'])} ↓{size(run['down'])}"
    curve = [r["metrics"][run["metric"]] for r in rounds if run["metric"] in r.get("metrics", {})]
    count = Text(f"{say('round')} {run['round']}/{run['of']}{value}{sent}  ")
    count.append(sparkline(curve), "green")
    if told := waiting(run, say):
        count.append(f"\n{told}", "yellow")
    rows = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("client", "through", "doing", "sent up", "sent down", run["metric"] or "metric", "note"):
        rows.add_column(
            say(name), justify="right" if name in ("sent up", "sent down", run["metric"]) else "left"
        )
    for cells in clients(seen, say):
        rows.add_row(*cells)
    bar = ProgressBar(total=max(1, run["of"]), completed=run["round"], width=60)
    return Group(head, count, Padding(bar, (0, 0, 1, 0)), rows)


def clients(seen: Row, say: Say) -> Iterator[list[str]]:
    """A row for each client: name, parent, phase, bytes up and down, its metric, what it failed at."""
    run = seen["run"]
    numbers = {name: number for number, name in run.get("names", {}).items()}
    for node in seen["nodes"]:
        if node["role"] != "client":
            continue
        here, client = node["live"], numbers.get(node["name"], "")
        found = seen["sites"]["metrics"].get(client, {}).get(run["metric"])
        failed = str(seen["sites"]["failed"].get(client, "")).strip().splitlines()
        yield [
            node["name"],
            node["parent"] or "–",
            say(here.get("phase") or node["state"]),
            size(here["up"]) if "up" in here else "–",
            size(here["down"]) if "down" in here else "–",
            number(found) if isinstance(found, (int, float)) else "–",
            failed[-1][:60] if failed else say(standing(seen, node, client)) or _held(node, say),
        ]


def standing(seen: Row, node: Row, client: str) -> str:
    """Whether a client is in quarantine, left out of this run's rounds, or suspected of lying."""
    if node["quarantined"]:
        return "quarantined"
    out = seen["sites"]["suspects"].get(client)
    return "" if out is None else "set aside" if out else "suspect"


def _held(node: Row, say: Say) -> str:
    return f"{say('holds back')}: {say(node['holds']['rule'])}" if node["holds"] else ""


def sparkline(values: list[Any], width: int = 32) -> str:
    """A curve in one line of text: ▁ is the least value, █ the most."""
    known = [v for v in values if isinstance(v, (int, float))][-width:]
    if not known:
        return ""
    low, high = min(known), max(known)
    steps = [round(7 * (v - low) / (high - low)) if high > low else 0 for v in known]
    return "".join("▁▂▃▄▅▆▇█"[s] for s in steps)
