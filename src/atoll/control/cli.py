"""The command line: `atoll simulate job.toml` and its siblings.

Exit codes: 0 done, 1 the run failed, 2 the command or the job is wrong, 130 interrupted. Results
go to standard output, everything else to standard error; `--json` prints one object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import AtollError, ConfigError, DataError, MisuseError
from .text import Texts, language

Say = Callable[[str], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    say = Texts(language(argv))
    args = _parser(say).parse_args(argv)
    try:
        code: int = args.run(args, say)
    except AtollError as error:
        print(f"{say('error')}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, DataError, MisuseError)) else 1
    except KeyboardInterrupt:
        where = getattr(args, "out", None)
        print(
            f"\n{say('stopped; go on with --resume --out')} {where}" if where else f"\n{say('stopped')}",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 0
    return code


def _parser(say: Say) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="atoll", description=say("federated learning at the edge"))
    lang = argparse.ArgumentParser(add_help=False)
    lang.add_argument("--lang", choices=["en", "zh"], help=say("language of the output: en or zh"))
    lang.add_argument("--json", action="store_true", help=say("print one JSON object"))
    lang.add_argument(
        "--parts", type=Path, metavar="FILE.py", help=say("a Python file with parts of your own")
    )
    top.add_argument("--lang", choices=["en", "zh"], help=say("language of the output: en or zh"))
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=say(text), description=say(text), parents=[lang])
        made.set_defaults(run=run)
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
    _data(commands, lang, say)
    c = command("parts", _parts, "every name a job may use")
    c.add_argument("kind", nargs="?", help=say("only parts of this kind"))
    c = command("new", _new, "make a commented starter project")
    c.add_argument("folder", type=Path, metavar="DIR", help=say("the folder to make"))
    c = command("report", _report, "write a run's report")
    c.add_argument("folder", type=Path, metavar="RUN", help=say("the folder of a run"))
    c = command("compare", _compare, "compare runs")
    c.add_argument("folders", type=Path, nargs="+", metavar="RUN", help=say("the folder of a run"))
    command("version", _version, "print the version")
    return top


def _data(commands: Any, lang: argparse.ArgumentParser, say: Say) -> None:
    text = say("look at data and deal it to clients")
    inner = commands.add_parser("data", help=text, description=text).add_subparsers(
        metavar="COMMAND", required=True
    )
    inner.add_parser("list", help=say("list data sets"), parents=[lang]).set_defaults(run=_data_list)
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", metavar="DATA", help=say("a name, a file or a folder"))
    source.add_argument("--target", help=say("the label column"))
    source.add_argument("--site", help=say("the column that names the site"))
    deal = argparse.ArgumentParser(add_help=False)
    deal.add_argument("--clients", type=int, help=say("number of clients"))
    deal.add_argument(
        "--by", metavar="NAME[,KEY=VALUE]", help=say("how to deal, as in dirichlet or dirichlet,alpha=0.3")
    )
    deal.add_argument("--seed", type=int, default=0, help=say("the seed, instead of the job's"))
    one = inner.add_parser("describe", help=say("describe a data set"), parents=[lang, source])
    one.set_defaults(run=_data_describe)
    two = inner.add_parser(
        "partition",
        help=say("deal a data set to clients and show who gets what"),
        parents=[lang, source, deal],
    )
    two.add_argument("--out", type=Path, metavar="DIR", help=say("write one CSV file per client"))
    two.set_defaults(run=_data_partition)
    three = inner.add_parser(
        "heterogeneity",
        help=say("measure how unlike the clients are, and recommend an algorithm"),
        parents=[lang, source, deal],
    )
    three.add_argument("--draw", type=Path, metavar="FILE.png", help=say("write a picture"))
    three.set_defaults(run=_data_heterogeneity)


def _own_parts(args: argparse.Namespace) -> None:
    """Load a file the user named on the command line: it registers parts of their own."""
    if args.parts is None:
        return
    if not args.parts.is_file():
        raise ConfigError(f"there is no file {args.parts}: --parts takes a Python file")
    spec = importlib.util.spec_from_file_location("own_parts", args.parts)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_parts"] = module
    spec.loader.exec_module(module)


def _simulate(args: argparse.Namespace, say: Say) -> int:
    from . import config, show

    _own_parts(args)
    changes = [*args.set, *([] if args.seed is None else [f"seed={args.seed}"])]
    return show.simulate(config.read(args.job, changes), args, say)


def _report(args: argparse.Namespace, say: Say) -> int:
    from .report import write

    print(f"{say('report')}: {write(args.folder)}")
    return 0


def _compare(args: argparse.Namespace, say: Say) -> int:
    from . import show

    return show.compare(args, say)


def _new(args: argparse.Namespace, say: Say) -> int:
    from .starter import make

    for path in make(args.folder):
        print(path)
    print(f"{say('next')}: cd {args.folder} && atoll simulate job.toml --parts parts.py")
    return 0


def _parts(args: argparse.Namespace, say: Say) -> int:
    from ..core.registry import nearest, parts
    from . import show

    _own_parts(args)
    kinds = sorted({p.kind for p in parts()})
    if args.kind is not None and args.kind not in kinds:
        raise ConfigError(f"no kind of part is called {args.kind!r}: {nearest(args.kind, kinds)}")
    rows = [(p.kind, p.name, p.summary) for p in parts(args.kind)]
    if args.json:
        print(json.dumps([dict(zip(("kind", "name", "summary"), row, strict=True)) for row in rows]))
    else:
        show.table([say("kind"), say("name"), say("what it is")], rows)
    return 0


def _version(args: argparse.Namespace, say: Say) -> int:
    from importlib.metadata import version

    print(json.dumps({"atoll": version("atoll-fl")}) if args.json else f"atoll {version('atoll-fl')}")
    return 0


def _data_list(args: argparse.Namespace, say: Say) -> int:
    args.kind = "data"
    return _parts(args, say)


def _data_describe(args: argparse.Namespace, say: Say) -> int:
    dataset = _load(args)
    print(json.dumps(dataset.describe()) if args.json else dataset)
    return 0


def _data_partition(args: argparse.Namespace, say: Say) -> int:
    from . import show

    return show.sites(_deal(args), args, say)


def _data_heterogeneity(args: argparse.Namespace, say: Say) -> int:
    from ..data import heterogeneity

    found = heterogeneity(_deal(args))
    if args.draw is not None:
        found.draw(args.draw)
    print(json.dumps(found.to_plain()) if args.json else found)
    return 0


def _load(args: argparse.Namespace) -> Any:
    from ..data import load_data

    _own_parts(args)
    options = {k: v for k, v in (("target", args.target), ("site", args.site)) if v is not None}
    return load_data(args.source, **options)


def _deal(args: argparse.Namespace) -> Any:
    from ..core.registry import build
    from ..data import partition
    from .config import override

    table: dict[str, Any] = {}
    if args.by is not None:
        table["name"], *values = args.by.split(",")
        for value in values:
            override(table, value)
    by = build("partition", table, "$.by") if table else None
    return partition(_load(args), clients=args.clients, by=by, seed=args.seed)
