"""The command line: `atoll simulate job.toml` and its siblings.

Exit codes: 0 done, 1 the run failed, 2 the command, the job or the data are wrong, 130
interrupted. Results go to standard output, everything else to standard error; `--json` prints
one object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ..core.errors import AtollError, ConfigError, DataError, MisuseError
from ..core.registry import nearest, parts
from .table import table
from .text import Texts, language

Say = Callable[[str], str]
Run = Callable[[argparse.Namespace, Say], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    say = Texts(language(argv))
    try:
        args = _parser(say).parse_args(argv or ["--help"])
        if args.parts is not None and not args.apart:
            from .config import own_parts

            own_parts(args.parts)
        code: int = args.run(args, say)
        sys.stdout.flush()
    except SystemExit as done:  # argparse has said why
        return int(done.code or 0)
    except AtollError as error:
        print(f"{say('error')}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, DataError, MisuseError)) else 1
    except KeyboardInterrupt:
        print(f"\n{say('stopped')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, as in `atoll parts | head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


class _Parser(argparse.ArgumentParser):
    """argparse in the language chosen."""

    def __init__(self, say: Say, **values: Any) -> None:
        super().__init__(add_help=False, **values)
        self.say = say
        self._positionals.title = say("arguments")
        self._optionals.title = say("options")
        self.add_argument("-h", "--help", action="help", help=say("show this help"))

    def format_usage(self) -> str:
        return super().format_usage().replace("usage:", f"{self.say('usage')}:", 1)

    def format_help(self) -> str:
        return super().format_help().replace("usage:", f"{self.say('usage')}:", 1)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}{self.say('error')}: {message}\n")


class _Version(argparse.Action):
    """`atoll --version`, what is installed looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"atoll {_installed()}")
        parser.exit()


def _parser(say: Say) -> argparse.ArgumentParser:
    lang = argparse.ArgumentParser(add_help=False)
    lang.add_argument("--lang", choices=["en", "zh"], help=say("language of the output"))
    common = argparse.ArgumentParser(add_help=False, parents=[lang])
    common.add_argument("--json", action="store_true", help=say("print one JSON object"))
    common.add_argument(
        "--parts", type=Path, metavar="FILE.py", help=say("a Python file with parts of your own")
    )
    top = _Parser(say, prog="atoll", description=say("federated learning at the edge"), parents=[lang])
    parser: Any = partial(_Parser, say)
    commands = top.add_subparsers(metavar=say("COMMAND"), required=True, parser_class=parser)

    def command(name: str, run: Run, text: str, inside: Any = commands, *more: Any) -> Any:
        made = inside.add_parser(name, help=say(text), description=say(text), parents=[common, *more])
        made.set_defaults(run=run, apart=False)
        return made

    c = command("simulate", _simulate, "run a job over simulated clients")
    c.add_argument("job", type=Path, metavar="JOB.toml", help=say("the job file"))
    c.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=say("change a value of the job, as in algorithm.mu=0.01"),
    )
    c.add_argument("--seed", type=int, help=say("the seed, instead of the job's"))
    c.add_argument("--out", type=Path, metavar="DIR", help=say("the folder for the run"))
    c.add_argument("--resume", action="store_true", help=say("go on with the run in that folder"))
    c.add_argument(
        "--baselines",
        action="store_true",
        help=say("also train each site alone and all data pooled, to compare"),
    )
    _data(commands, command, say)
    c = command("parts", _parts, "every name a job may use")
    c.add_argument("kind", nargs="?", help=say("only parts of this kind"))
    c = command("new", _new, "make a commented starter project")
    c.add_argument("folder", type=Path, metavar="DIR", help=say("the folder to make"))
    c = command("report", _report, "write a run's report")
    c.add_argument("folder", type=Path, metavar="RUN", help=say("the folder of a run"))
    c = command("compare", _compare, "compare runs")
    c.add_argument("folders", type=Path, nargs="+", metavar="RUN", help=say("the folder of a run"))
    command("version", _version, "print the version")
    top.add_argument("--version", action=_Version, nargs=0, help=say("print the version"))
    _far(commands, command, say)
    return top


def _far(commands: Any, command: Any, say: Say) -> None:
    """Commands of a federation of machines, each family in a file of its own."""
    from . import cli_admin, cli_attack, cli_models, cli_ops, cli_pki, cli_privacy, cli_readings, cli_serve

    for family in (cli_serve, cli_readings, cli_ops, cli_admin, cli_models, cli_privacy, cli_attack):
        family.register(commands, command, say)
    cli_pki.register(commands, command, say, cli_ops.remote(say), cli_ops.connected)


def _data(commands: Any, command: Any, say: Say) -> None:
    text = say("look at data and deal it to clients")
    top = commands.add_parser("data", help=text, description=text)
    parser: Any = partial(_Parser, say)
    inner = top.add_subparsers(metavar=say("COMMAND"), required=True, parser_class=parser)
    command("list", _data_list, "list data sets", inner)
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", metavar="DATA", help=say("a name, a file or a folder"))
    source.add_argument("--target", help=say("the label column"))
    source.add_argument("--site", help=say("the column that names the site"))
    deal = argparse.ArgumentParser(add_help=False)
    deal.add_argument("--clients", type=int, help=say("number of clients"))
    deal.add_argument(
        "--by", metavar="NAME[,KEY=VALUE]", help=say("how to deal, as in iid or dirichlet,alpha=0.3")
    )
    deal.add_argument("--seed", type=int, default=0, help=say("the seed"))
    command("describe", _look("describe"), "describe a data set", inner, source)
    text = "deal a data set to clients and show who gets what"
    two = command("partition", _look("deal"), text, inner, source, deal)
    two.add_argument("--out", type=Path, metavar="DIR", help=say("write one CSV file per client"))
    text = "measure how unlike the clients are, and recommend an algorithm"
    three = command("heterogeneity", _look("unlike"), text, inner, source, deal)
    three.add_argument("--draw", type=Path, metavar="FILE.png", help=say("write a picture"))


# Each command imports what it shows with when it runs, which keeps the others quick.


def _simulate(args: argparse.Namespace, say: Say) -> int:
    from . import config, show

    changes = [*args.set, *([] if args.seed is None else [f"seed={args.seed}"])]
    return show.simulate(config.read(args.job, changes), args, say)


def _look(name: str) -> Run:
    def run(args: argparse.Namespace, say: Say) -> int:
        from . import look

        code: int = getattr(look, name)(args, say)
        return code

    return run


def _report(args: argparse.Namespace, say: Say) -> int:
    from .report import write

    path = write(args.folder, say)
    print(json.dumps({"report": str(path)}) if args.json else f"{say('report')}: {path}")
    return 0


def _compare(args: argparse.Namespace, say: Say) -> int:
    from . import show

    return show.compare(args, say)


def _new(args: argparse.Namespace, say: Say) -> int:
    from .starter import make

    made = make(args.folder)
    command = f"cd {args.folder} && atoll simulate job.toml --parts parts.py"
    if args.json:
        print(json.dumps({"files": list(map(str, made)), "next": command}))
        return 0
    for path in made:
        print(path)
    print(f"{say('next')}: {command}")
    return 0


def _parts(args: argparse.Namespace, say: Say) -> int:
    kinds = sorted({p.kind for p in parts()})
    if args.kind is not None and args.kind not in kinds:
        raise ConfigError(f"no kind of part is called {args.kind!r}: {nearest(args.kind, kinds)}")
    rows = [(p.kind, p.name, p.summary) for p in parts(args.kind)]
    if args.json:
        print(json.dumps({"parts": [dict(zip(("kind", "name", "summary"), r, strict=True)) for r in rows]}))
    else:
        table([say("kind"), say("name"), say("what it is")], rows)
    return 0


def _data_list(args: argparse.Namespace, say: Say) -> int:
    args.kind = "data"
    return _parts(args, say)


def _version(args: argparse.Namespace, say: Say) -> int:
    print(json.dumps({"atoll": _installed()}) if args.json else f"atoll {_installed()}")
    return 0


def _installed() -> str:
    from importlib.metadata import version

    return version("atoll-fl")
