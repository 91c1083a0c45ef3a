"""Commands that attack a job of one's own, in simulation: `atoll attack poison`."""

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
    c.add_argument("--only", nargs="+", metavar="ATTACK", help=say("only these attacks"))
    text = "change a value of the job, as in algorithm.mu=0.01"
    c.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=say(text))
    c.add_argument("--seed", type=int, help=say("the seed, instead of the job's"))


def _poison(args: argparse.Namespace, say: Say) -> int:
    from ..attack import attackers, trials, ways
    from ..core.registry import build, parts
    from . import config

    file = config.read(args.job, [*args.set, *([] if args.seed is None else [f"seed={args.seed}"])])
    sites = file.sites()
    liars = attackers(len(sites), args.attackers, file.seed)
    attacks = [build("attack", name) for name in args.only or [p.name for p in parts("attack")]]
    found = []
    for trial in trials(ways(file.job, args.attackers), sites, attacks, liars, file.seed):
        found.append(trial)
        if sys.stderr.isatty():
            print(f"{trial.attack}: {trial.rule} {number(trial.accuracy or 0.0)}", file=sys.stderr)
    if args.json:
        print(json.dumps({"attackers": liars, "trials": [dataclasses.asdict(t) for t in found]}))
        return 0
    names = ("attack", "accuracy", "kept", "trigger works", "rule")
    table([say(name) for name in names], [_row(trial, say) for trial in found])
    return 0


def _row(trial: Any, say: Say) -> list[str]:
    works = "" if trial.success is None else f"{trial.success:.1%}"
    accuracy = number(float("nan") if trial.accuracy is None else trial.accuracy)
    return [trial.attack, accuracy, f"{trial.kept:.1%}", works, trial.rule]
