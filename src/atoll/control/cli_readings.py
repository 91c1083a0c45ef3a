"""Commands about what a client has stored of its machines, at its site: `atoll readings status|aside|…`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cli_ops import group, show, when
from .table import size, table

Say = Callable[[str], str]


def register(commands: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands to the parser."""
    inner = group(commands, "readings", "what a client has stored of its machines, at its site", say)
    c = command("status", _status, "how many readings and labels are here, and what was set aside", inner)
    _source(c, say)
    c = command("aside", _aside, "what was set aside, with the reasons", inner)
    _source(c, say)
    _reason(c, say)
    c.add_argument("--values", action="store_true", help=say("show what was said, too: it is private"))
    c = command("replay", _replay, "judge again what was set aside, by the contract as it is now", inner)
    _source(c, say)
    _reason(c, say)
    c = command("wipe", _wipe, "take readings and labels away for good", inner)
    _source(c, say)
    c.add_argument("--all", action="store_true", help=say("of every source"))
    c.add_argument("--yes", action="store_true", help=say("do not ask"))


def _source(c: Any, say: Say) -> None:
    c.add_argument("source", nargs="?", metavar="SOURCE", help=say("a source of the client; all without"))
    c.add_argument("--config", type=Path, metavar="FILE.toml", help=say("the client's settings"))
    c.add_argument("--folder", metavar="DIR", help=say("where it keeps its files"))


def _reason(c: Any, say: Say) -> None:
    c.add_argument("--reason", default="", metavar="TEXT", help=say("only with this in the reason"))


def _settings(args: argparse.Namespace) -> Any:
    """The settings of the client; by default client.toml here."""
    from ..core.errors import ConfigError
    from .settings import Client, read

    path = args.config or Path(args.folder or ".") / "client.toml"
    if args.config is None and not path.exists():
        raise ConfigError(f"there is no {path}: name the client's settings by --config FILE.toml")
    return read(path, Client, folder=args.folder)


def _status(args: argparse.Namespace, say: Say) -> int:
    from .engine import holding

    settings = _settings(args)
    found = holding.status(settings, holding.named(settings, args.source), holding.vault(settings))
    if args.json:
        return show(args, {"sources": found}, "")
    heads = ["source", "readings", "with a label", "without", "labels that wait", "set aside"]
    heads += ["repeated", "late", "on disk", "quota", "oldest came", "newest came"]
    rows = [_row(name, one) for name, one in found.items()]
    table([say(head) for head in heads], rows)
    reasons = [(name, str(n), reason) for name, one in found.items() for reason, n in one["aside"].items()]
    if reasons:
        print()
        table([say(head) for head in ("source", "set aside", "reason")], reasons)
    return 0


def _row(name: str, one: dict[str, Any]) -> list[str]:
    counts = one["counts"]
    shown = [one[key] for key in ("readings", "labelled", "unlabelled", "labels_waiting")]
    shown += [sum(one["aside"].values()), counts.get("repeated", 0), counts.get("late", 0)]
    cells = ["–" if n is None else str(n) for n in shown]
    return [name, *cells, size(one["bytes"]), size(one["quota"]), when(one["oldest"]), when(one["newest"])]


def _aside(args: argparse.Namespace, say: Say) -> int:
    from .engine import holding

    settings = _settings(args)
    names, key = holding.named(settings, args.source), holding.vault(settings)
    rows = holding.aside(settings, names, key, args.reason, values=args.values)
    if args.json:
        return show(args, {"aside": rows}, "")
    if not rows:
        print(say("nothing is set aside"))
        return 0
    heads = ["came", "source", "device", "id", "kind", "reason", *(["values"] if args.values else [])]
    cells = [
        [when(r["came"]), r["source"], r["device"], r["id"], say(r["kind"]), r["reason"]]
        + ([_said(r)] if args.values else [])
        for r in rows
    ]
    table([say(head) for head in heads], cells)
    return 0


def _said(row: dict[str, Any]) -> str:
    if row["values"] is None:
        return "–"
    units = row["units"]
    return "  ".join(f"{k}={v}{f' {units[k]}' if k in units else ''}" for k, v in row["values"].items())


def _replay(args: argparse.Namespace, say: Say) -> int:
    from .engine import holding

    settings = _settings(args)
    names, key = holding.named(settings, args.source), holding.vault(settings)
    found = holding.replay(settings, names, key, args.reason)
    if args.json:
        return show(args, {"sources": found}, "")
    kept = ("aside", "labels_aside")
    rows = []
    for name, said in found.items():
        still = sum(said.get(what, 0) for what in kept)
        rows.append([name, str(sum(said.values()) - still), str(still)])
    table([say(head) for head in ("source", "taken back", "still set aside")], rows)
    return 0


def _wipe(args: argparse.Namespace, say: Say) -> int:
    from ..core.errors import ConfigError
    from .engine import holding

    settings = _settings(args)
    if (args.source is None) != args.all:
        raise ConfigError("name the source whose readings go, or give --all")
    names = holding.named(settings, args.source)
    if not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is there to be asked: give --yes to wipe without a question")
        print(f"{say('readings and labels that go for good')}: {', '.join(names)}", file=sys.stderr)
        if input(f"{say('type yes to go on')}: ").strip() != "yes":
            print(say("nothing was wiped"))
            return 1
    gone = holding.wipe(settings, names)
    text = f"{say('wiped')}: {', '.join(gone)}" if gone else say("there was nothing to wipe")
    return show(args, {"wiped": gone}, text)
