"""Commands that attack a job of one's own, in simulation: `atoll attack poison`, `atoll attack leak`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cli_ops import group
from .table import number, table

Say = Callable[[str], str]


def register(commands: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands to the parser."""
    inner = group(commands, "attack", "attack a job of your own, in simulation", say)
    text = "poison it: what each attack leaves, without a robust rule and with one"
    c = command("poison", _poison, text, inner)
    c.add_argument("job", type=Path, metavar="JOB.toml", help=say("the job file"))
    text = "which part of the clients lies, below 0.5"
    c.add_argument("--attackers", type=float, default=0.2, metavar="SHARE", help=say(text))
    c.add_argument("--only", nargs="+", action="extend", metavar="ATTACK", help=say("only these attacks"))
    _job_options(c, say)
    text = "see what it leaks: rows, labels and members, with and without each protection"
    c = command("leak", _leak, text, inner)
    c.add_argument("job", type=Path, metavar="JOB.toml", help=say("the job file"))
    text = "the noise to try, where the job promises no privacy itself"
    c.add_argument("--epsilon", type=float, default=2.0, metavar="E", help=say(text))
    text = "numbers of summed clients"
    c.add_argument("--clients", type=int, nargs="+", action="extend", metavar="N", help=say(text))
    text = "guesses with a canary, and without: more find smaller lapses"
    c.add_argument("--runs", type=int, default=1000, metavar="N", help=say(text))
    text = "canaries of the audit of a whole run"
    c.add_argument("--canaries", type=int, default=1000, metavar="N", help=say(text))
    text = "rows and their reconstructions as pictures, into this folder"
    c.add_argument("--pictures", type=Path, metavar="DIR", help=say(text))
    _job_options(c, say)


def _job_options(c: Any, say: Say) -> None:
    text = "change a value of the job, as in algorithm.mu=0.01"
    c.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=say(text))
    c.add_argument("--seed", type=int, help=say("the seed, instead of the job's"))


def _read(args: argparse.Namespace) -> Any:
    from . import config

    return config.read(args.job, [*args.set, *([] if args.seed is None else [f"seed={args.seed}"])])


def _poison(args: argparse.Namespace, say: Say) -> int:
    from ..attack import attackers, trials, ways
    from ..core.registry import build, parts

    file = _read(args)
    sites = file.sites()
    liars = attackers(len(sites), args.attackers, file.seed)
    attacks = [build("attack", name) for name in args.only or [p.name for p in parts("attack")]]
    found = []
    for trial in trials(ways(file.job, args.attackers, len(sites)), sites, attacks, liars, file.seed):
        found.append(trial)
        if sys.stderr.isatty():
            print(f"{trial.attack}: {trial.rule} {number(trial.accuracy or 0.0)}", file=sys.stderr)
    if args.json:
        print(json.dumps({"attackers": liars, "trials": [dataclasses.asdict(t) for t in found]}))
        return 0
    names = ("attack", "accuracy", "kept", "trigger works", "epsilon", "rule")
    table([say(name) for name in names], [_row(trial, say) for trial in found])
    return 0


def _row(trial: Any, say: Say) -> list[str]:
    works = "" if trial.success is None else f"{trial.success:.1%}"
    accuracy = number(float("nan") if trial.accuracy is None else trial.accuracy)
    promise = "" if trial.epsilon is None else f"{trial.epsilon:.3g} ({say(trial.unit)})"
    return [trial.attack, accuracy, f"{trial.kept:.1%}", works, promise, say(trial.rule)]


def _leak(args: argparse.Namespace, say: Say) -> int:
    from ..attack import audit, leaks, memberships, one_run
    from ..attack.invert import CLIENTS, private

    file = _read(args)
    sites = file.sites()
    most = sum(map(len, sites)) - 1
    sizes = args.clients or [n for n in CLIENTS if n <= most]
    shown = list(leaks(file.job, sites, sizes, args.epsilon, file.seed))
    told = list(memberships(file.job, sites, args.epsilon, file.seed))
    promised = private(file.job, len(sites), args.epsilon)
    found = audit(promised, args.runs, seed=file.seed)
    alone = promised.privacy is not None and promised.privacy.noise == "local"
    whole = None if alone else one_run(promised, args.canaries, seed=file.seed)
    saved = _pictures(args.pictures, shown, sites[0].x.shape[1:]) if args.pictures else []
    if args.json:
        rows = [{k: v for k, v in vars(leak).items() if k != "pairs"} for leak in shown]
        parts = {"inversion": rows, "membership": [vars(m) for m in told]}
        audits = {"audit": _audited(found), "one_run": None if whole is None else _audited(whole)}
        print(json.dumps({**parts, **audits, "pictures": saved}))
        return 0
    heads: tuple[str, ...] = ("clients", "dB", "mean image", "rows shown", "labels", "guessed", "protection")
    table([say(head) for head in heads], [_shown(leak, say) for leak in shown])
    print()
    heads = ("members told", "at most", "accuracy", "protection")
    table([say(head) for head in heads], [_told(m, say) for m in told])
    print()
    text = "a canary, round by round, finds epsilon of {} at least, {} is promised: {}"
    print(say(text).format(f"{found.epsilon:.3g}", f"{found.claim:g}", _kept(found, say)))
    if whole is not None:
        text = "{} canaries in a whole run find {} at least, and {} whatever the noise: {}"
        numbers = (f"{whole.epsilon:.3g}", f"{whole.proven:.3g}")
        print(say(text).format(whole.canaries, *numbers, _kept(whole, say)))
    return 0


def _audited(found: Any) -> dict[str, Any]:
    return {**vars(found), "kept": found.kept}


def _kept(found: Any, say: Say) -> str:
    return say("nothing contradicts it" if found.kept else "the promise is broken")


def _shown(leak: Any, say: Say) -> list[str]:
    parts = ["–" if part is None else f"{part:.0%}" for part in (leak.clear, leak.labels, leak.guessed)]
    return [str(leak.clients), f"{leak.psnr:.1f}", f"{leak.mean_image:.1f}", *parts, say(leak.protection)]


def _told(m: Any, say: Say) -> list[str]:
    accuracy = number(float("nan") if m.accuracy is None else m.accuracy)
    return [f"{m.advantage:+.3f} ± {m.spread:.3f}", f"{m.bound:.3f}", accuracy, say(m.protection)]


def _pictures(folder: Path, found: Any, shape: tuple[int, ...]) -> list[str]:
    from ..attack.pictures import write

    return [str(path) for path in write(folder, found, shape)]
