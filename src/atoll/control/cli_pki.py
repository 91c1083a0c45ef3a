"""Commands for who belongs to a federation: `atoll pki init|adopt|show`, `atoll token create|list|revoke`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from .cli_ops import group
from .table import table

Say = Callable[[str], str]


def register(
    commands: Any,
    command: Callable[..., Any],
    say: Say,
    far: argparse.ArgumentParser,
    connected: Callable[[argparse.Namespace], Any],
) -> None:
    """Add the commands to the parser.

    `far`: the options that name a federation's API; `connected(args)`: the Federation (sdk.py) they name.
    """
    inner = group(commands, "pki", "who certifies the members of a federation", say)
    c = command("init", _init, "make a federation's own root", inner)
    _place(c, say)
    text = "keep the root's key in this folder and certify by an intermediate"
    c.add_argument("--root-apart", type=Path, metavar="DIR", help=say(text))
    c = command("adopt", _adopt, "use a company's root or intermediate", inner)
    _place(c, say)
    text = "the root certificate, PEM: what members pin"
    c.add_argument("--root", type=Path, required=True, metavar="FILE", help=say(text))
    text = "certificates from the key's own up to below the root, PEM"
    c.add_argument("--chain", type=Path, metavar="FILE", help=say(text))
    text = "the private key that certifies, PEM"
    c.add_argument("--key", type=Path, required=True, metavar="FILE", help=say(text))
    c = command("show", _show, "what stands in the folder, without its keys", inner)
    _folder(c, say)

    def asking(
        run: Callable[[Any, argparse.Namespace, Say], int],
    ) -> Callable[[argparse.Namespace, Say], int]:
        def asked(args: argparse.Namespace, say: Say) -> int:
            with connected(args) as fed:
                return run(fed, args, say)

        return asked

    inner = group(commands, "token", "tokens that let members and operators in", say)
    c = command("create", asking(_create), "make a token", inner, far)
    text = "client or edge, for one enrolment; viewer, operator or admin, for the API"
    c.add_argument("--role", required=True, help=say(text))
    c.add_argument("--name", required=True, help=say("whom the token is for"))
    c.add_argument("--hours", type=float, default=72.0, help=say("hours until it ends"))
    command("list", asking(_list), "list tokens", inner, far)
    c = command("revoke", asking(_revoke), "make a token worthless", inner, far)
    c.add_argument("id", metavar="ID", help=say("the token's id, as list shows it"))


def _folder(c: Any, say: Say) -> None:
    text = say("the folder, a coordinator's DIR/pki")
    c.add_argument("folder", type=Path, nargs="?", default=Path("pki"), metavar="DIR", help=text)


def _place(c: Any, say: Say) -> None:
    _folder(c, say)
    c.add_argument("--federation", default="atoll", metavar="NAME", help=say("the federation's name"))


# Each command imports what it works with when it runs, which keeps the others quick.


def _init(args: argparse.Namespace, say: Say) -> int:
    from .engine.pki import found

    found(args.folder, args.federation, now=time.time(), apart=args.root_apart)
    return _show(args, say)


def _adopt(args: argparse.Namespace, say: Say) -> int:
    from ..privacy.keys import Authority
    from .engine.pki import found

    now = time.time()
    root, key = _read(args.root), _read(args.key)
    chain = _read(args.chain) if args.chain else b""
    found(
        args.folder,
        args.federation,
        now=now,
        authority=Authority.adopt(args.federation, root, chain, key, now=now),
    )
    return _show(args, say)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _show(args: argparse.Namespace, say: Say) -> int:
    from .engine.pki import about

    plain = about(args.folder)
    if args.json:
        print(json.dumps(plain))
        return 0
    for name, value in plain.items():
        text = _when(value) if name.endswith("_ends") else ", ".join(value) if name == "hosts" else value
        print(f"{say(name.replace('_', ' '))}: {text}")
    return 0


def _create(fed: Any, args: argparse.Namespace, say: Say) -> int:
    made = fed.token(args.role, args.name, args.hours)
    # The bare token on standard output, so that it can be piped to where it is needed.
    print(json.dumps({"token": made, "role": args.role, "name": args.name}) if args.json else made)
    return 0


def _list(fed: Any, args: argparse.Namespace, say: Say) -> int:
    rows = fed.tokens()
    if args.json:
        print(json.dumps({"tokens": rows}))
        return 0
    now = time.time()
    cells = [(r["id"], r["role"], r["name"], say(_state(r, now)), _when(r["until"])) for r in rows]
    table([say("token"), say("role"), say("name"), say("state"), say("until")], cells)
    return 0


def _state(row: dict[str, Any], now: float) -> str:
    if row["revoked"]:
        return "revoked"
    return "ended" if row["until"] <= now else "used" if row["used"] else "open"


def _revoke(fed: Any, args: argparse.Namespace, say: Say) -> int:
    row = fed.forget(args.id)
    print(json.dumps(row) if args.json else f"{args.id}: {say('revoked')}")
    return 0


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
