"""Commands for models and for who runs a federation: `atoll model`, `predict`, `audit`, `doctor` …"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import cli_models, cli_rollout
from .cli_ops import connected, group, printable, remote, show, when
from .table import number, size, table

Say = Callable[[str], str]


def register(commands: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands to the parser."""
    far = remote(say)
    _models(commands, command, far, say)
    c = command("predict", _predict, "predict rows by a client's service or an ONNX file")
    c.add_argument(
        "rows", type=Path, metavar="ROWS.csv", help=say("a CSV file with a header, - for standard input")
    )
    c.add_argument("--at", metavar="URL", help=say("a client's prediction service"))
    c.add_argument("--model", type=Path, metavar="FILE.onnx", help=say("a model to run here"))
    c.add_argument(
        "--leave",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help=say("columns to leave out, as the label"),
    )
    inner = group(commands, "audit", "the chained log of events", say)
    c = command("verify", _audit, "find the first event that was altered or is missing", inner, far)
    text = "an end that verify printed earlier: it must still be there"
    c.add_argument("--seen", default="", metavar="NUMBER:HASH", help=say(text))
    _place(c, say)
    c = command(
        "backup", _backup, "write everything a coordinator must not lose into one file", commands, far
    )
    text = "the file to write, on the coordinator's machine; without it the coordinator writes one"
    c.add_argument("file", type=Path, nargs="?", metavar="FILE.tar", help=say(text))
    _place(c, say)
    c = command("restore", _restore, "fill an empty coordinator's folder from a backup")
    c.add_argument("file", type=Path, metavar="FILE.tar", help=say("a backup"))
    _place(c, say)
    c = command("prune", _prune, "forget old runs and the files nobody needs", commands, far)
    c.add_argument("--keep-days", type=float, default=30.0, help=say("days that ended runs are kept"))
    c.add_argument("--keep-runs", type=int, default=20, help=say("so many runs are kept however old"))
    c = command("doctor", _doctor, "look for what keeps this machine from working", commands, far)
    c.add_argument("--folder", type=Path, metavar="DIR", help=say("a member's or coordinator's folder"))
    text = "its settings; the role's file in its folder without, as client.toml"
    c.add_argument("--config", type=Path, metavar="FILE.toml", help=say(text))
    text = "a coordinator's database, in place of the one that its settings name"
    c.add_argument("--store", default="", metavar="URL", help=say(text))


def _models(commands: Any, command: Callable[..., Any], far: Any, say: Say) -> None:
    inner = group(commands, "model", "models of finished runs", say)
    c = command("list", _model_list, "list models", inner, far)
    c.add_argument("name", nargs="?", metavar="NAME", help=say("only of this name"))
    c = command("show", _model_show, "one version of a model, with its signed manifest", inner, far)
    _version(c, say)
    cli_rollout.register(inner, command, far, say)
    c = command("export", _model_export, "write a model to a file", inner, far)
    _version(c, say)
    c.add_argument("--to", type=Path, required=True, metavar="FILE", help=say("*.safetensors or *.onnx"))
    cli_models.variants(inner, command, say)


def _version(c: Any, say: Say) -> None:
    c.add_argument("name", metavar="NAME", help=say("the model's name"))
    c.add_argument("--version", default="latest", metavar="N", help=say("the version; the newest without"))


def _place(c: Any, say: Say) -> None:
    text = "the coordinator's folder on this machine, by default the current one"
    c.add_argument("--folder", type=Path, metavar="DIR", help=say(text))
    c.add_argument(
        "--store", default="", metavar="URL", help=say("its database, SQLite in the folder by default")
    )


def _model_list(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        rows = fed.models(args.name)
    if args.json:
        return show(args, {"models": rows}, "")
    heads = ["model", "version", "run", "made", "forms", "metrics"]
    cells = [
        [
            m["name"],
            str(m["version"]),
            m["run"],
            when(m["created"]),
            " ".join(m["forms"]),
            _metrics(m["metrics"], say),
        ]
        for m in rows
    ]
    table(list(map(say, heads)), cells)
    return 0


def _metrics(found: dict[str, Any], say: Say) -> str:
    return "  ".join(f"{say(n)} {number(v)}" for n, v in found.items() if isinstance(v, (int, float))) or "–"


def _model_show(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        found = fed.model(args.name, args.version)
        stages = fed.stages(args.name)
    if args.json:
        return show(args, {**found, "rollout": stages}, "")
    signed = found["manifest"].get("manifest", {})
    rows = [("name", found["name"]), ("version", str(found["version"])), ("run", found["run"])]
    rows += [("made", when(found["created"])), ("forms", " ".join(found["forms"]))]
    rows += [("metrics", _metrics(found["metrics"], say)), ("SHA-256", signed.get("sha256", "–"))]
    rows += [("signed for", signed.get("federation", "–"))]
    table([say("what"), say("value")], [(say(name), value) for name, value in rows])
    cli_rollout.members(stages, say)
    return 0


def _model_export(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        path = fed.export(args.name, args.to, args.version)
    return show(args, {"file": str(path)}, f"{say('model')}: {path} ({size(path.stat().st_size)})")


def _predict(args: argparse.Namespace, say: Say) -> int:
    from .remote.predicting import predict

    found = predict(args.rows, args.at, args.model, args.leave)
    if args.json:
        return show(args, found, "")
    names = found.get("classes")
    for prediction in found["predictions"]:
        print(printable(names[prediction]) if names else _prediction(prediction))
    model = found["model"] or {}
    version = f" {say('version')} {model['version']}" if model.get("version") else ""
    rows = len(found["predictions"])
    print(f"{rows} {say('rows')}, {say('model')} {model.get('name', '–')}{version}", file=sys.stderr)
    return 0


def _prediction(value: Any) -> str:
    """One row's answer: a class, a number, or a number for each class."""
    if isinstance(value, list):
        return " ".join(map(_prediction, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _audit(args: argparse.Namespace, say: Say) -> int:
    if args.folder is not None:
        from .desk import admin

        with _store(args) as store:
            found = admin.audit(store, args.seen)
    else:
        with connected(args) as fed:
            found = fed.audit(args.seen)
    end = f"{found['head']['seq']}:{found['head']['hash']}"
    good = f"{found['events']} {say('events, none altered')}; {say('the last is')} {end}"
    show(args, found, good if found["ok"] else f"{say('altered')}: {found['fault']}")
    return 0 if found["ok"] else 1


def _backup(args: argparse.Namespace, say: Say) -> int:
    """A file is written here, from the store in a folder; without one the coordinator writes it."""
    from ..core.errors import ConfigError

    if args.file is None:
        if args.folder is not None:
            raise ConfigError("name the file to write: atoll backup FILE.tar --folder DIR")
        with connected(args) as fed:
            found = fed.backup()
    else:
        args.folder = args.folder or Path()
        with _store(args) as store:
            store.backup(args.file)
        found = {"path": str(args.file), "bytes": args.file.stat().st_size}
    return show(args, found, f"{say('backup')}: {found['path']} ({size(found['bytes'])})")


def _restore(args: argparse.Namespace, say: Say) -> int:
    from .remote.sdk import restore

    folder = restore(args.file, args.folder or Path(), args.store)
    done = {"restored": str(folder), "from": str(args.file)}
    return show(
        args, done, f"{say('restored')}: {folder}\n{say('next')}: atoll coordinator --folder {folder}"
    )


def _store(args: argparse.Namespace) -> Any:
    """The store in a folder that has one: looking must not make one."""
    from ..core.errors import StateError
    from .store import Store

    if not args.store and not (args.folder / "atoll.db").exists():
        raise StateError(f"{args.folder} holds no coordinator's store: there is no atoll.db in it")
    return Store.open(args.store, args.folder)


def _prune(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        found = fed.prune(args.keep_days, args.keep_runs)
    text = ", ".join(f"{say(name)} {count}" for name, count in found.items())
    return show(args, found, f"{say('forgotten')}: {text}")


def _doctor(args: argparse.Namespace, say: Say) -> int:
    from ..core.errors import AtollError
    from .remote import doctor
    from .remote.where import where

    url, token = args.url, args.token
    try:
        url, token = where(args.url, args.token)
    except AtollError as error:
        if url is None:
            print(f"{say('the network is not looked at')}: {error}", file=sys.stderr)
    found = doctor.examine(url, token, args.folder, args.config, store=args.store, clock=time.time)
    if args.json:
        print(json.dumps({"findings": [f.plain() for f in found]}))
    else:
        marks = {"ok": "✓", "warn": "!", "bad": "✗"}
        for f in found:
            print(f"{marks[f.level]} {say(f.what)}: {f.found}")
            if f.remedy:
                print(f"    {say('what helps')}: {f.remedy}")
    return 1 if any(f.level == "bad" for f in found) else 0
