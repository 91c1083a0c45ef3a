"""Commands about privacy: `atoll privacy plan`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[str], str]


def register(commands: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands to the parser."""
    text = say("what a promise of privacy costs")
    top = commands.add_parser("privacy", help=text, description=text)
    inner = top.add_subparsers(metavar=say("COMMAND"), required=True, parser_class=commands._parser_class)
    c = command("plan", _plan, "solve for the one value that is left out", inner)
    text = "the job whose promise is shown, instead of values"
    c.add_argument("job", type=Path, nargs="?", metavar="JOB.toml", help=say(text))
    c.add_argument("--delta", type=float, metavar="D", help=say("the chance that the promise fails"))
    c.add_argument("--epsilon", type=float, metavar="E", help=say("how much one member may show, in all"))
    c.add_argument("--sigma", type=float, metavar="S", help=say("noise over the clip"))
    c.add_argument("--rate", type=float, metavar="Q", help=say("the part of all members in one round"))
    c.add_argument("--rounds", type=int, metavar="T", help=say("number of rounds"))
    c.add_argument("--population", type=int, metavar="N", help=say("how many members there are"))
    c.add_argument(
        "--sampling",
        choices=["poisson", "fixed", "all"],
        default="poisson",
        help=say("how a round draws them"),
    )
    c.add_argument("--size", type=int, metavar="D", help=say("numbers in the model"))


def _plan(args: argparse.Namespace, say: Say) -> int:
    from ..privacy import accountant

    found = _of_job(args) if args.job else _of_values(args)
    warned = accountant.warnings(found, args.population, args.size) if args.population else []
    if args.json:
        print(json.dumps({**dataclasses.asdict(found), "warnings": warned}))
        return 0
    print(found)
    for text in warned:
        print(f"{say('warning')}: {text}")
    return 0


def _of_values(args: argparse.Namespace) -> Any:
    from ..core.errors import ConfigError
    from ..privacy import accountant

    if args.delta is None:
        raise ConfigError("give --delta: the chance that the promise fails, well below one in all members")
    return accountant.plan(
        delta=args.delta,
        epsilon=args.epsilon,
        sigma=args.sigma,
        rate=args.rate,
        rounds=args.rounds,
        sampling=args.sampling,
        population=args.population,
    )


def _of_job(args: argparse.Namespace) -> Any:
    from . import config

    return config.read(args.job).job.epsilon()
