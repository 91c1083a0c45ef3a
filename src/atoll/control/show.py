"""Simulating from a job file: progress while it runs, then the result, its folder and report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import baselines
from ..core.errors import ConfigError, StateError
from ..learn.stop import lower_is_better, main_metric
from ..run import Run
from ..run import simulate as simulate_job
from ..simulate.folder import Folder
from . import config, report
from .progress import costs, progress
from .table import number, size, table

Say = Callable[[str], str]


def simulate(file: config.JobFile, args: argparse.Namespace, say: Say) -> int:
    """Run a job file; its exit code."""
    if args.resume and args.out is None:
        raise ConfigError("--resume needs the folder of the run to go on with: add --out DIR")
    out = args.out or _free(Path("runs") / file.job.name)
    folder = Folder(out)
    if not args.resume:
        folder.free()
    sites = file.sites()
    costs(file.job, say)
    try:
        with progress(file.job.rounds, say, quiet=args.json) as watch:
            began = time.perf_counter()
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
    except KeyboardInterrupt:
        print(f"\n{say('stopped; go on with')} --resume --out {out}", file=sys.stderr)
        return 130
    folder.keep("job.toml", config.dump(file.table))
    ways = {"federated": baselines.scores(run)}
    if args.baselines:
        ways |= _others(file, sites, say, quiet=args.json)
        folder.keep("baselines.json", {name: _plain(s) for name, s in ways.items()})
    written = report.write(out, say)
    if args.json:
        print(json.dumps(_result(run, out, took, ways)))
        return 0
    _conclude(run, ways, took, say)
    print(f"{say('model')}: {out / 'model.safetensors'}")
    print(f"{say('report')}: {written}")
    return 0


def _others(file: config.JobFile, sites: Any, say: Say, *, quiet: bool) -> dict[str, baselines.Scores]:
    """What federated learning is measured against."""
    if not quiet:
        print(f"{say('for comparison: each site alone, all data pooled')} …", file=sys.stderr, flush=True)
    return {
        "each site alone": baselines.alone(file.job, sites, file.seed),
        "all data pooled": baselines.pooled(file.job, sites, file.seed),
    }


def _free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that does not exist."""
    names = (path.with_name(f"{path.name}-{n}") for n in range(2, 10**6))
    return path if not path.exists() else next(p for p in names if not p.exists())


def _conclude(run: Run, ways: dict[str, baselines.Scores], took: float, say: Say) -> None:
    metric = main_metric(run.metrics or next(iter(run.sites.values()), {}))
    rows = []
    for name, scores in ways.items():
        s = scores.over_sites(metric)
        values = scores.pooled.get(metric, float("nan")), s.mean, s.worst, s.deviation
        rows.append([say(name), *map(number, values)])
    heads = [say("trained"), say(metric), say("mean over sites"), say("worst tenth"), say("spread")]
    table(heads, rows)
    sent = f"{say('sent up')} {size(run.traffic.up)}, {say('sent down')} {size(run.traffic.down)}"
    print(f"{run.history[-1]['round']} {say('rounds')}, {took:.1f} {say('seconds')}, {sent}")
    for key, what in (("failed", "tasks brought nothing"), ("sites_failed", "evaluations at sites failed")):
        reasons = report.failures(run.history, key)
        if reasons:
            often, times = reasons.most_common(1)[0]
            print(f"{sum(reasons.values())} {say(what)}: {times} × {often}")
    if run.suspects:
        print(f"{say('clients that seem to lie')}: {', '.join(map(str, run.suspects))}")
    if run.stopped:
        print(f"{say('stopped early')}: {run.stopped}")


def _plain(s: baselines.Scores) -> dict[str, Any]:
    return {"pooled": dict(s.pooled), "sites": {str(k): dict(m) for k, m in s.sites.items()}}


def _result(run: Run, out: Path, took: float, ways: dict[str, baselines.Scores]) -> dict[str, Any]:
    return {
        "folder": str(out),
        "rounds": run.history[-1]["round"],
        "metrics": dict(run.metrics),
        "up": run.traffic.up,
        "down": run.traffic.down,
        "seconds": run.seconds,
        "took": round(took, 3),
        "stopped": run.stopped,
        "suspects": list(run.suspects),
        "trained": {name.replace(" ", "_"): _plain(s) for name, s in ways.items()},
    }


def compare(args: argparse.Namespace, say: Say) -> int:
    """Runs side by side: final and best metric, rounds, bytes."""
    rows = [_compared(path) for path in args.folders]
    if args.json:
        print(json.dumps({"runs": rows}))
        return 0
    heads = ["run", "algorithm", "rounds", "metric", "last", "best", "in round", "sent up"]
    cells = [
        [r["run"], r["algorithm"], str(r["rounds"]), say(r["metric"]), number(r["last"]), number(r["best"])]
        for r in rows
    ]
    for cell, r in zip(cells, rows, strict=True):
        cell += [str(r["best_round"]), size(r["up"])]
    table(list(map(say, heads)), cells)
    return 0


def _compared(path: Path) -> dict[str, Any]:
    history = Folder(path).history()
    seen = [r for r in history if r.get("metrics")]
    job = Folder(path).job()["job"]
    if not seen:
        raise StateError(f"{path} holds no evaluated round: let the run go on with --resume")
    metric = main_metric(seen[-1]["metrics"])
    values = [r["metrics"][metric] for r in seen]
    best = (min if lower_is_better(metric) else max)(values)
    return {
        "run": str(path),
        "algorithm": job["algorithm"],
        "rounds": history[-1]["round"],
        "metric": metric,
        "last": values[-1],
        "best": best,
        "best_round": seen[values.index(best)]["round"],
        "up": sum(r.get("up", 0) for r in history),
    }
