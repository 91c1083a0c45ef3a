"""Commands that run members: `atoll up`, `down`, `coordinator`, `edge`, `client`, `gateway`, `rekey`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[str], str]


def register(commands: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands to the parser."""
    c = command("up", _up, "start a whole federation on this machine")
    _here(c, say)
    c = command("down", _down, "end the federation that up started")
    c.add_argument("--folder", type=Path, default=Path("federation"), metavar="DIR", help=say("its folder"))
    c = command("demo", _demo, "start, train, export, predict and end, once")
    _here(c, say)
    text = "engines that report to six nodes: learn, serve, notice, renew, take back"
    c = command("demo-edge", _demo_edge, text)
    c.add_argument("--folder", type=Path, default=Path("edge"), metavar="DIR", help=say("its folder"))
    c.add_argument(
        "--generated", action="store_true", default=None, help=say("made engines, also where FD001 is")
    )
    c = command("coordinator", _coordinator, "run a coordinator")
    _server(c, say)
    c.add_argument("--api", metavar="HOST:PORT", help=say("where operators reach it"))
    c.add_argument("--store", metavar="URL", help=say("a database, SQLite in the folder by default"))
    c.add_argument("--federation", metavar="NAME", help=say("the federation's name"))
    c = command("edge", _edge, "run an edge between clients and a coordinator")
    _server(c, say)
    _member(c, say)
    c = command("client", _client, "run a client beside its data")
    c.set_defaults(apart=True)  # its own parts are loaded by the process that learns
    _common(c, say)
    _member(c, say)
    c = command("gateway", _gateway, "carry calls of members that speak MQTT only")
    c.add_argument("--config", type=Path, metavar="FILE.toml", help=say("its settings"))
    c.add_argument("--name", help=say("its name"))
    c.add_argument("--broker", metavar="URL", help=say("the broker, as in mqtts://broker:8883"))
    c.add_argument("--to", metavar="URL", help=say("the coordinator or edge, as in https://hub:8443"))
    c = command("rekey", _rekey, "seal the key of a client's files by another key")
    _common(c, say)
    text = "a file with the new key; without, it lies beside its files"
    c.add_argument("--key-file", type=Path, metavar="FILE", help=say(text))


def _common(c: Any, say: Say) -> None:
    text = "its settings; the role's file in its folder without, as client.toml"
    c.add_argument("--config", type=Path, metavar="FILE.toml", help=say(text))
    c.add_argument("--folder", metavar="DIR", help=say("where it keeps its files"))
    c.add_argument("--name", help=say("its name"))


def _here(c: Any, say: Say) -> None:
    """Of a federation on this machine: its job, its folder, who is in it."""
    c.add_argument(
        "job", type=Path, nargs="?", metavar="JOB.toml", help=say("the job file whose data are dealt")
    )
    c.add_argument("--folder", type=Path, default=Path("federation"), metavar="DIR", help=say("its folder"))
    text = "number of clients; without it one a site where the data lie by site, else 6"
    c.add_argument("--clients", type=int, help=say(text))
    c.add_argument("--edges", type=int, default=2, help=say("number of edges"))
    text = "a file that says which edges there are and who stands under whom"
    c.add_argument("--topology", type=Path, metavar="FILE.toml", help=say(text))
    _transport(c, say, "grpc")


def _server(c: Any, say: Say) -> None:
    _common(c, say)
    c.add_argument("--listen", metavar="HOST:PORT", help=say("where members reach it over HTTPS"))
    c.add_argument("--grpc", metavar="HOST:PORT", help=say("where members reach it over gRPC"))
    text = "host names for its certificate"
    c.add_argument("--names", nargs="+", action="extend", metavar="HOST", help=say(text))


def _member(c: Any, say: Say) -> None:
    text = "its parent, the preferred one first"
    c.add_argument("--join", nargs="+", action="extend", metavar="URL", help=say(text))
    c.add_argument("--token", help=say("the token it enrols with, at its first start"))
    c.add_argument("--proxy", metavar="URL", help=say("an HTTP proxy"))
    _transport(c, say, None)


def _transport(c: Any, say: Say, default: str | None) -> None:
    kinds = ["auto", "grpc", "https", "websocket"]
    c.add_argument("--transport", choices=kinds, default=default, help=say("how members talk"))


def _up(args: argparse.Namespace, say: Say) -> int:
    from . import up

    job = args.job or _default_job()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    above = _above(args, job)
    found = up.start(args.folder, job, above=above, transport=args.transport, tell=tell, parts=args.parts)
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"{say('console')}: {found['api']}")
    print(f"{say('token')}: {args.folder / 'operator.json'}")
    print(f"{say('logs')}: {found['logs']}")
    other = "" if args.folder == Path("federation") else f" --folder {args.folder}"
    inside = f"cd {args.folder} && " if other else ""
    parts = f" --parts {found['parts']}" if found["parts"] else ""
    print(f"{say('next')}: {inside}atoll submit {Path(found['job']).resolve()}{parts} --watch")
    print(f"{say('ends it')}: atoll down{other}")
    return 0


def _demo(args: argparse.Namespace, say: Say) -> int:
    from . import demo

    job = args.job or _default_job()
    above = _above(args, job)
    return demo.run(args.folder, job, say, above=above, transport=args.transport, parts=args.parts)


def _above(args: argparse.Namespace, job: Path) -> dict[str, str]:
    """Each member's parent, from a topology file or the numbers of edges and clients."""
    from . import topology, up

    if args.topology is None:
        return up.plain(args.edges, up.clients_of(job) if args.clients is None else args.clients)
    return {member.name: member.below for member in topology.read(args.topology)}


def _default_job() -> Path:
    return Path(__file__).with_name("template") / "up.toml"


def _down(args: argparse.Namespace, say: Say) -> int:
    from . import up

    here = Path("processes.json").exists() and not args.folder.exists()
    ended = up.stop(Path() if here else args.folder)
    if args.json:
        print(json.dumps({"ended": ended}))
    else:
        print(f"{say('ended')}: {', '.join(ended) or say('nothing ran')}")
    return 0


def _settings(args: argparse.Namespace, kind: Any, keys: tuple[str, ...]) -> Any:
    """The settings file, named or in its folder, with what the command line says on top."""
    from . import settings

    over = {key: getattr(args, key, None) for key in keys}
    path = args.config
    if path is None and kind in settings.FILES:
        path = settings.beside(args.folder, kind)
    if path is not None:
        return settings.read(path, kind, **over)
    return settings.make(kind, {k: v for k, v in over.items() if v is not None}, "the command line")


_SERVER = ("folder", "name", "listen", "grpc", "names")
_MEMBER = ("join", "token", "proxy", "transport")


def _demo_edge(args: argparse.Namespace, say: Say) -> int:
    from . import demo_edge

    return demo_edge.run(args.folder, say, generated=args.generated)


def _coordinator(args: argparse.Namespace, say: Say) -> int:
    from .engine import coordinator
    from .settings import Server

    return coordinator.main(_settings(args, Server, (*_SERVER, "api", "store", "federation")))


def _edge(args: argparse.Namespace, say: Say) -> int:
    from .engine import edge
    from .settings import Edge

    return edge.main(_settings(args, Edge, (*_SERVER, *_MEMBER)))


def _client(args: argparse.Namespace, say: Say) -> int:
    from .engine import agent
    from .settings import Client

    args.parts = str(args.parts.absolute()) if args.parts is not None else None
    return agent.main(_settings(args, Client, ("folder", "name", *_MEMBER, "parts")))


def _gateway(args: argparse.Namespace, say: Say) -> int:
    from .engine import gateway
    from .settings import Gateway

    return gateway.main(_settings(args, Gateway, ("name", "broker", "to")))


def _rekey(args: argparse.Namespace, say: Say) -> int:
    from .engine import safe
    from .settings import Client

    settings = _settings(args, Client, ("folder", "name"))
    safe.rekeyed(settings, None if args.key_file is None else safe.key_in(args.key_file))
    print(say("its files stay; their key is sealed anew"))
    return 0
