"""Commands for jobs and members of a federation: `atoll submit`, `runs`, `watch`, `stop`, `logs`, `node`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .table import number, size, table

Say = Callable[[str], str]
Command = Callable[..., Any]


def register(commands: Any, command: Command, say: Say) -> None:
    """Add the commands to the parser."""
    far = remote(say)
    c = command("submit", _submit, "queue a job at a federation", commands, far)
    c.add_argument("job", type=Path, metavar="JOB.toml", help=say("the job file"))
    c.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=say(_SET))
    c.add_argument("--seed", type=int, help=say("the seed, instead of the job's"))
    c.add_argument("--watch", action="store_true", help=say("stay and watch it"))
    c = command("runs", _runs, "list runs", commands, far)
    c.add_argument("--state", help=say("only runs in this state"))
    c.add_argument("--limit", type=int, default=30, help=say("at most so many"))
    _run(command("watch", _watch, "watch a run as it goes", commands, far), say)
    _run(command("stop", _stop, "end a run", commands, far), say)
    c = command("logs", _logs, "what sites reported about a run", commands, far)
    _run(c, say)
    c.add_argument("--all", action="store_true", help=say("whole tracebacks"))
    c.add_argument("--members", action="store_true", help=say("what was said of members apart from runs"))
    c = command("topology", _topology, "check a topology file, and write each member's settings")
    c.add_argument("file", type=Path, metavar="TOPOLOGY.toml", help=say("who is there and who dials whom"))
    c.add_argument("--to", type=Path, metavar="DIR", help=say("the folder to write them into"))
    inner = group(commands, "node", "members of a federation", say)
    command("list", _node_list, "list edges and clients", inner, far)
    c = command("drain", _node_drain, "give a member no new work", inner, far)
    _name(c, say)
    c.add_argument("--off", action="store_true", help=say("give it work again"))
    text = "shut a member out: its streams end, its certificates are worth nothing"
    _name(command("revoke", _node_verb("revoke"), text, inner, far), say)
    text = "let a revoked member enrol again, with a new token"
    _name(command("readmit", _node_verb("readmit"), text, inner, far), say)
    text = "let a quarantined member take part again; its record begins anew"
    _name(command("reinstate", _node_verb("reinstate"), text, inner, far), say)


_SET = "change a value of the job, as in algorithm.mu=0.01"


def remote(say: Say) -> argparse.ArgumentParser:
    """The options that say which federation, and who asks."""
    far = argparse.ArgumentParser(add_help=False)
    far.add_argument("--url", metavar="URL", help=say("the federation's API, as in https://hub:8445"))
    far.add_argument("--token", help=say("your token; better in $ATOLL_TOKEN or operator.json"))
    return far


def group(commands: Any, name: str, text: str, say: Say) -> Any:
    """Commands of commands, as in `atoll node list`."""
    top = commands.add_parser(name, help=say(text), description=say(text))
    return top.add_subparsers(
        metavar=say("COMMAND"),
        required=True,
        parser_class=commands._parser_class,
    )


def connected(args: argparse.Namespace) -> Any:
    """The federation that the options, the environment or operator.json name."""
    from .remote.sdk import connect

    return connect(args.url, args.token)


def show(args: argparse.Namespace, plain: Any, text: str) -> int:
    """Print one JSON object, or a line for people."""
    print(json.dumps(plain) if args.json else text)
    return 0


def when(at: float | None) -> str:
    """A moment, local time; a dash for none."""
    return "–" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _run(c: Any, say: Say) -> None:
    c.add_argument("which", metavar="RUN", nargs="?", help=say("the run's id; the newest without"))


def _name(c: Any, say: Say) -> None:
    c.add_argument("name", metavar="NAME", help=say("the member's name"))


def chosen(fed: Any, run: str | None) -> Any:
    """The run that was named, else the newest."""
    from ..core.errors import MisuseError

    if run is None:
        newest = fed.runs(limit=1)
        if not newest:
            raise MisuseError("there is no run yet: atoll submit JOB.toml makes one")
        run = newest[0]["id"]
    return fed.run(run)


def _submit(args: argparse.Namespace, say: Say) -> int:
    from . import config, live
    from .progress import costs

    file = config.read(args.job, args.set)
    values = file.table
    costs(file.job, say)
    with connected(args) as fed:
        run = fed.submit(values, seed=args.seed)
        if args.watch:
            print(run.id, file=sys.stderr)
            return live.follow(fed, run, say, quiet=args.json)
        row = run.record
    place = f", {say('place in the queue')} {row['place']}" if row.get("place") else ""
    hint = f"{row['id']}: {say(row['state'])}{place}\n{say('next')}: atoll watch {row['id']}"
    return show(args, {"run": row}, hint)


def _runs(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        rows = fed.runs(args.state, args.limit)
    if args.json:
        return show(args, {"runs": rows}, "")
    heads = ["run", "name", "state", "algorithm", "round", "metric", "last", "submitted", "reason"]
    table(list(map(say, heads)), [_row(r, say) for r in rows])
    return 0


def _row(r: dict[str, Any], say: Say) -> Sequence[str]:
    state = say(r["state"]) + (f" ({r['place']})" if "place" in r else "")
    state = waiting(r, say) or state
    value = "–" if r["value"] is None else number(r["value"])
    rounds = f"{r['round']}/{r['of']}"
    metric = say(r["metric"]) if r["metric"] else "–"
    return [
        r["id"],
        r["name"],
        state,
        r["algorithm"],
        rounds,
        metric,
        value,
        when(r["created"]),
        r["reason"] or "–",
    ]


def waiting(run: dict[str, Any], say: Say) -> str:
    """Why a run waits: how many of its clients hold back and by which rules; "" where it does not."""
    told = run.get("waiting")
    if not told:
        return ""
    if not told["held"]:
        return say("waiting for clients")
    rules = told["rules"].items()
    why = ", ".join(say(rule) if len(rules) == 1 else f"{say(rule)} {count}" for rule, count in rules)
    return say("waiting: {held} of {of} hold back").format(**told) + f" ({why})"


def _watch(args: argparse.Namespace, say: Say) -> int:
    from . import live

    with connected(args) as fed:
        return live.follow(fed, chosen(fed, args.which), say, quiet=args.json)


def _stop(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        row = chosen(fed, args.which).stop()
    return show(args, {"run": row}, f"{row['id']}: {say(row['state'])}")


def _logs(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        run = None if args.members else chosen(fed, args.which)
        rows = fed.logs() if run is None else run.logs()
    if args.json:
        return show(args, {**({} if run is None else {"run": run.id}), "logs": rows}, "")
    for row in rows:
        print(f"{when(row['at'])}  {row['node'] or say('coordinator')}  {say(row['level'])}")
        text = row["text"] if args.all or "cause" not in row else row["cause"]
        print("\n".join(f"    {printable(line)}" for line in text.splitlines()))
        if "fix" in row:
            print(f"    {say('what helps')}: {row['fix']}")
    if not rows:
        print(say("nobody reported anything"))
    return 0


def printable(text: str) -> str:
    """Others' words without what could move a terminal's cursor or colour it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _topology(args: argparse.Namespace, say: Say) -> int:
    from . import topology

    members = topology.read(args.file)
    made = topology.lay(members, args.to) if args.to is not None else []
    if args.json:
        rows = [{"name": m.name, "role": m.role, "below": m.below, "settings": m.values} for m in members]
        return show(args, {"members": rows, "files": list(map(str, made))}, "")
    print("\n".join(topology.tree(members)))
    for member, path in zip(members, made, strict=False):
        if member.role != "coordinator":
            print(f"{say('next')}: atoll token create --role {member.role} --name {member.name}")
        token = "" if member.role == "coordinator" else " --token …"
        print(f"{say('next')}: atoll {member.role} --config {path}{token}")
    return 0


def _node_list(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        rows = fed.nodes()
    if args.json:
        return show(args, {"nodes": rows}, "")
    heads = ["name", "role", "state", "doing", "score", "serves"]
    heads += ["through", "transport", "address", "version"]
    table([*map(say, heads), say("last seen")], [_node(r, say) for r in rows])
    return 0


def _node(r: dict[str, Any], say: Say) -> Sequence[str]:
    marks = [mark for mark in ("drained", "quarantined") if r[mark]]
    watch = r["live"].get("watch") or {}
    marks += ["drift"] if watch.get("raised") else []
    state = ", ".join([*map(say, [r["state"], *marks]), *_held(r, say)])
    kind = r["transport"] + (f", {say('sealed')}" if r["live"].get("sealed") else "")
    way = [r["parent"], kind, r["address"], r["version"]]
    doing = say(r["live"]["phase"]) if r["live"].get("phase") else "–"
    score = "–" if r["score"] is None else f"{r['score']:.2f}"
    own = {watch["model"]: f" +{watch['own']}"} if watch.get("own") else {}
    models = [f"{n} {served(m, say)}{own.get(n, '')}" for n, m in r["models"].items()]
    models += asked(r["live"].get("joint"), say)
    shown = [state, doing, score, ", ".join(models) or "–", *(text or "–" for text in way)]
    return [r["name"], say(r["role"]), *shown, when(r["last_seen"])]


def served(m: dict[str, Any], say: Say) -> str:
    """A member's version of a model, and the one on trial."""
    return f"{m['version']}" + (f" ({m['trial']} {say(m['stage'])})" if m["trial"] else "")


_ROWS = {
    "asked": "rows asked",
    "answered": "answered",
    "passed": "passed on",
    "carried": "carried",
    "late": "too late",
    "failed": "failed",
}


def asked(joint: Any, say: Say) -> list[str]:
    """What an edge answered of its children's rows, and what it passed on; nothing where none asked it."""
    joint = joint if isinstance(joint, dict) else {}
    return [f"{say(_ROWS[key])} {joint[key]}" for key in _ROWS if joint.get(key)]


def _held(r: dict[str, Any], say: Say) -> list[str]:
    """What a member says of why it holds back, since and until when."""
    holds = r["holds"]
    if not holds:
        return []
    times = [f"{say(word)} {when(holds[word])}" for word in ("since", "until") if holds[word]]
    moments = f" ({', '.join(times)})" if times else ""
    return [f"{say('holds back')}: {printable(str(r['info']['power']['held']))}{moments}"]


def _node_drain(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        done = fed.drain(args.name, not args.off)
    text = "gets work again" if args.off else "gets no new work"
    return show(args, done, f"{args.name} {say(text)}")


_DONE = {"revoke": "is shut out", "readmit": "may enrol again", "reinstate": "takes part again"}


def _node_verb(verb: str) -> Callable[[argparse.Namespace, Say], int]:
    def run(args: argparse.Namespace, say: Say) -> int:
        with connected(args) as fed:
            done = getattr(fed, verb)(args.name)
        return show(args, done, f"{args.name} {say(_DONE[verb])}")

    return run


__all__ = ["connected", "group", "printable", "register", "remote", "show", "size", "when"]
