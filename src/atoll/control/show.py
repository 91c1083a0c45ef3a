"""What a person sees of a run: its progress, its result, and runs side by side."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .. import baselines
from ..core.errors import StateError
from ..run import Run
from ..run import simulate as simulate_job
from ..simulate.folder import Folder
from .config import JobFile

Say = Callable[[str], str]
LINES = 20  # progress lines a long run prints where there is no terminal


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], out: Any = None) -> None:
    """A plain table on standard output."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        made.add_column(head, overflow="fold", no_wrap=i < len(heads) - 1)
    for row in rows:
        made.add_row(*row)
    (out or Console(highlight=False)).print(made)


def simulate(file: JobFile, args: argparse.Namespace, say: Say) -> int:
    """Run a job file: progress while it runs, then the result, the folder and the report."""
    sites = file.sites()
    out = args.out or _free(Path("runs") / file.job.name)
    began = time.perf_counter()
    with _watch(file.job.rounds, say, quiet=args.json) as watch:
        run = simulate_job(
            file.job,
            sites,
            file.seed,
            world=file.world,
            workers=file.workers,
            out=out,
            resume=args.resume,
            watch=watch,
        )
    took = time.perf_counter() - began
    ways = {"federated": baselines.scores(run)}
    if args.baselines:
        ways["each site alone"] = baselines.alone(file.job, sites, file.seed)
        ways["all data pooled"] = baselines.pooled(file.job, sites, file.seed)
        Folder(out).keep("baselines.json", {name: _plain(s) for name, s in ways.items()})
    _report(out)
    if args.json:
        return 0
    _conclude(run, ways, took, say)
    return 0


def _free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that does not exist."""
    names = (path.with_name(f"{path.name}-{n}") for n in range(2, 10**6))
    return path if not path.exists() else next(p for p in names if not p.exists())


def _report(out: Path) -> Path | None:
    try:
        from .report import write
    except ImportError:
        return None
    return write(out)


class _watch:  # noqa: N801  used as a function: with _watch(...) as watch
    """Shows each round's record: a bar on a terminal, some plain lines elsewhere."""

    def __init__(self, rounds: int, say: Say, *, quiet: bool) -> None:
        self._rounds = rounds
        self._say = say
        self._quiet = quiet
        self._bar: Progress | None = None
        self._seen = ""

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        console = Console(stderr=True)
        if console.is_terminal and not self._quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, TextColumn("{task.fields[metric]}"), console=console)
            self._bar.start()
            self._task = self._bar.add_task(self._say("round"), total=self._rounds, metric="")
        return self._record

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _record(self, record: dict[str, Any]) -> None:
        if record.get("metrics"):
            self._seen = "  ".join(
                f"{n} {v:.4f}" for n, v in record["metrics"].items() if isinstance(v, float)
            )
        if self._bar is not None:
            self._bar.update(self._task, completed=record["round"], metric=self._seen)
        elif not self._quiet and (record["round"] % max(1, self._rounds // LINES) == 0):
            pass


def _conclude(run: Run, ways: dict[str, baselines.Scores], took: float, say: Say) -> None:
    metric = main_metric(run.metrics or next(iter(run.sites.values()), {}))
    rows = []
    for name, scores in ways.items():
        s = scores.over_sites(metric)
        value = scores.pooled.get(metric, float("nan"))
        rows.append([say(name), *(_number(x) for x in (value, s.mean, s.worst, s.deviation))])
    heads = [say("trained"), metric, say("mean over sites"), say("worst tenth"), say("spread")]
    table(heads, rows)
    run.history[-1]["round"]
    if run.stopped:
        pass


def main_metric(metrics: Any) -> str:
    """The metric a person asks for first."""
    return next(
        (n for n in ("accuracy", "auc", "r2", "mse", "loss") if n in metrics), next(iter(metrics), "loss")
    )


def size(n: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def _number(x: float) -> str:
    return "–" if x != x else f"{x:.4f}"  # noqa: PLR0124  NaN


def _plain(s: baselines.Scores) -> dict[str, Any]:
    return {"pooled": dict(s.pooled), "sites": {str(k): dict(m) for k, m in s.sites.items()}}


def _result(run: Run, out: Path, took: float, ways: dict[str, baselines.Scores]) -> dict[str, Any]:
    return {
        "folder": str(out),
        "rounds": run.history[-1]["round"],
        "metrics": dict(run.metrics),
        "up": run.traffic.up,
        "down": run.traffic.down,
        "seconds": took,
        "stopped": run.stopped,
        "trained": {name.replace(" ", "_"): _plain(s) for name, s in ways.items()},
    }


def compare(args: argparse.Namespace, say: Say) -> int:
    """Runs side by side: final and best metric, rounds, bytes."""
    rows = []
    for path in args.folders:
        history = Folder(path).history()
        seen = [r for r in history if r.get("metrics")]
        if not seen:
            raise StateError(f"{path} holds no evaluated round: is it a run folder?")
        metric = main_metric(seen[-1]["metrics"])
        values = [r["metrics"][metric] for r in seen]
        best = max(values) if metric not in ("loss", "mse") else min(values)
        rows.append(
            {
                "run": str(path),
                "algorithm": Folder(path).job()["job"]["algorithm"],
                "rounds": seen[-1]["round"],
                "metric": metric,
                "last": values[-1],
                "best": best,
                "best_round": seen[values.index(best)]["round"],
                "up": sum(r.get("up", 0) for r in history),
            }
        )
    if args.json:
        return 0
    heads = [say("run"), "algorithm", say("round"), "metric", "last", "best", say("sent up")]
    cells = [
        (
            r["run"],
            r["algorithm"],
            str(r["rounds"]),
            r["metric"],
            _number(r["last"]),
            _number(r["best"]),
            size(r["up"]),
        )
        for r in rows
    ]
    table(heads, cells)
    return 0


def sites(data: Any, args: argparse.Namespace, say: Say) -> int:
    """Who got what: rows and labels of each client; with --out a CSV file each."""
    import numpy as np

    rows = []
    for name, examples in zip(data.names, data, strict=True):
        labels = {}
        if data.task == "classes":
            found, counts = np.unique(examples.y, return_counts=True)
            labels = {
                str(data.classes[int(f)] if data.classes else int(f)): int(c)
                for f, c in zip(found, counts, strict=True)
            }
        rows.append({"client": name, "rows": len(examples), "labels": labels})
    if args.out is not None:
        _csv(data, args.out)
    if args.json:
        return 0
    cells = [
        (r["client"], str(r["rows"]), " ".join(f"{k}:{v}" for k, v in r["labels"].items())) for r in rows
    ]
    table([say("client"), say("rows"), say("labels")], cells)
    return 0


def _csv(data: Any, out: Path) -> None:
    import csv

    out.mkdir(parents=True, exist_ok=True)
    columns = list(data.columns) or [f"x{i}" for i in range(data.x[0].size)]
    for name, examples in zip(data.names, data, strict=True):
        with (out / f"{name.replace('/', '_')}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "label"])
            flat = examples.x.reshape(len(examples), -1)
            writer.writerows(
                [*map(repr, row.tolist()), label]
                for row, label in zip(flat, examples.y.tolist(), strict=True)
            )
