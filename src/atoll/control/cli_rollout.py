"""Commands that bring models to members: `atoll model rollout`, `promote`, `rollback`, who serves what."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .cli_ops import connected, printable, show, when
from .table import table

Say = Callable[[str], str]
_GATES = ("error", "disagreement", "latency", "drift")


def register(inner: Any, command: Callable[..., Any], far: Any, say: Say) -> None:
    """Add the commands to the parser."""
    c = command("rollout", _rollout, "bring a version to members in stages", inner, far)
    _name(c, say)
    c.add_argument(
        "version", metavar="VERSION", type=int, nargs="?", help=say("the version; the newest without")
    )
    text = "members whose turn is first"
    c.add_argument("--nodes", nargs="+", action="extend", metavar="NAME", help=say(text))
    c.add_argument("--first", type=float, metavar="PART", help=say("the part of members whose turn is first"))
    text = "requests a member compares it on before it answers any"
    c.add_argument("--shadow", type=int, metavar="N", help=say(text))
    c.add_argument("--canary", type=float, metavar="PART", help=say("the part of requests it answers then"))
    c.add_argument("--stay", type=float, metavar="SECONDS", help=say("at least so long in each stage"))
    c.add_argument("--hold", action="store_true", default=None, help=say("wait there until it is promoted"))
    text = "a limit of a gate, as in error=0.02 or drift=off; also least, labels, alpha"
    c.add_argument("--gate", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=say(text))
    text = "the part of members that took it back from which on all do"
    c.add_argument("--back", type=float, metavar="PART", help=say(text))
    c.add_argument("--reason", default="", help=say("why, for members and the log"))
    text = "have all members serve the version that is being rolled out"
    c = command("promote", _promote, text, inner, far)
    _name(c, say)
    c.add_argument("--reason", default="", help=say("why, for members and the log"))
    c = command("rollback", _rollback, "have all members serve an earlier version", inner, far)
    _name(c, say)
    c.add_argument("--to", type=int, metavar="N", help=say("the version; the one before without"))
    c.add_argument("--reason", required=True, help=say("why, for members and the log"))


def _name(c: Any, say: Say) -> None:
    c.add_argument("name", metavar="NAME", help=say("the model's name"))


def _rollout(args: argparse.Namespace, say: Say) -> int:
    keys = ("nodes", "first", "shadow", "canary", "stay", "hold", "back")
    plan = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    if args.gate:
        plan["gates"] = dict(map(_gate, args.gate))
    with connected(args) as fed:
        found = fed.rollout(args.name, args.version, reason=args.reason, **plan)
    done = f"{args.name} {found['trial']} {say('is being rolled out')}"
    hint = f"{done}\n{say('next')}: atoll model show {args.name}"
    return show(args, found, hint)


def _gate(text: str) -> tuple[str, Any]:
    from ..core.errors import ConfigError

    key, found, value = text.partition("=")
    try:
        return key, None if value == "off" and key in _GATES else int(value) if value.isdigit() else float(
            value
        )
    except ValueError:
        what = "expected key=value, as in error=0.02 or drift=off"
        raise ConfigError(f"{what}, got {text!r}" if found else what, f"$.gates.{key}") from None


def _promote(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        found = fed.promote(args.name, reason=args.reason)
    return show(args, found, f"{args.name} {found['orders'][0]['version']} {say('is for all members')}")


def _rollback(args: argparse.Namespace, say: Say) -> int:
    with connected(args) as fed:
        found = fed.rollback(args.name, args.to, reason=args.reason)
    return show(args, found, f"{args.name} {found['orders'][0]['version']} {say('is for all members')}")


def members(stages: dict[str, Any], say: Say) -> None:
    """How far every member is, below the model that is shown, and what was ordered last."""
    for order in stages["orders"][:1]:
        ordered = f"{say(order['kind'])} {order['version']}, {say(order['state'])}, {when(order['created'])}"
        print(f"{say('last order')}: {ordered}, {order['actor']}  {printable(order['reason'])}".rstrip())
    if stages["nodes"]:
        heads = ["member", "serves", "on trial", "stage", "figures", "reason"]
        table(list(map(say, heads)), [_member(row, say) for row in stages["nodes"]])


def _member(row: dict[str, Any], say: Say) -> list[str]:
    figures = "  ".join(f"{say(key)} {value:g}" for key, value in row["figures"].items())
    trial = str(row["trial"]) if row["trial"] else "–"
    reason = printable(row["reason"]) or "–"
    return [row["node"], str(row["version"]), trial, say(row["stage"]), figures or "–", reason]
