"""Commands for models on this machine: `atoll serve`, `atoll model int8`, `atoll model profile`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cli_ops import show
from .table import number, size, table

Say = Callable[[str], str]


def register(commands: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands to the parser."""
    c = command("serve", _serve, "serve ONNX files on this machine, and follow them as they change")
    c.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx", help=say("a model to serve"))
    c.add_argument("--host", default="127.0.0.1", help=say("the address, by default for this machine only"))
    c.add_argument("--port", type=int, default=8470, help=say("the port, 0 for any free one"))
    c.add_argument("--threads", type=int, default=2, metavar="N", help=say("models that run at once"))
    text = "requests that may run as one, where several wait; 1 for never"
    c.add_argument("--batch", type=int, default=32, metavar="N", help=say(text))
    text = "a file with the token that callers bring"
    c.add_argument("--token-file", type=Path, metavar="FILE", help=say(text))
    text = "its certificate chain and key in PEM, to be reached from other machines"
    c.add_argument("--tls", type=Path, nargs=2, metavar=("CERT.pem", "KEY.pem"), help=say(text))
    text = "whom to ask about rows it is unsure of, and what may leave for that"
    c.add_argument("--joint", type=Path, metavar="FILE.toml", help=say(text))
    text = "a member's identity: be the larger model of nodes in its federation"
    c.add_argument("--identity", type=Path, metavar="DIR", help=say(text))
    text = "the authorities whose certificates callers must bring"
    c.add_argument("--callers", type=Path, metavar="CA.pem", help=say(text))


def variants(inner: Any, command: Callable[..., Any], say: Say) -> None:
    """Add the commands that stand under `atoll model`."""
    c = command("int8", _int8, "write a model in 8-bit integers, calibrated on rows of this site", inner)
    c.add_argument("model", type=Path, metavar="MODEL.onnx", help=say("the model"))
    c.add_argument("--to", type=Path, required=True, metavar="FILE.onnx", help=say("the file to write"))
    text = "points of accuracy that it may lose on rows that were held out"
    c.add_argument("--lost", type=float, default=0.5, metavar="POINTS", help=say(text))
    _data(c, say)
    _classes(c, say)
    text = "the doubt from which rows should go to a larger model, from rows of this site"
    c = command("doubt", _doubt, text, inner)
    c.add_argument("model", type=Path, metavar="MODEL.onnx", help=say("the model"))
    text = "the part of all rows that may go up"
    c.add_argument("--share", type=float, default=0.15, metavar="PART", help=say(text))
    text = "how doubt is measured"
    c.add_argument("--measure", choices=["margin", "entropy"], default="margin", help=say(text))
    _data(c, say)
    text = "measure variants of a model on this machine, and pick one"
    c = command("profile", _profile, text, inner)
    text = "the variants, the reference first"
    c.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx", help=say(text))
    text = "points of accuracy that a variant may lose"
    c.add_argument("--lost", type=float, default=3.0, metavar="POINTS", help=say(text))
    text = "milliseconds that 99 of 100 answers may take at most"
    c.add_argument("--latency", type=float, metavar="MS", help=say(text))
    c.add_argument("--memory", type=float, metavar="MB", help=say("memory that it may take"))
    c.add_argument("--size", type=int, metavar="BYTES", help=say("bytes that the file may have"))
    _data(c, say)
    _classes(c, say)


def _data(c: Any, say: Say) -> None:
    text = "rows with labels: a name, a file or a folder"
    c.add_argument("--data", dest="source", required=True, metavar="DATA", help=say(text))
    c.add_argument("--target", help=say("the label column"))
    c.set_defaults(site=None, classes=None)


def _classes(c: Any, say: Say) -> None:
    text = "all classes of the model in its order, as in no,yes; without it those that the rows have"
    c.add_argument("--classes", metavar="A,B,…", help=say(text))


def _int8(args: argparse.Namespace, say: Say) -> int:
    from ..core.errors import StateError
    from ..serve.variants import int8
    from ..wire.files import whole

    data = _read(args.model)
    rows, held = _rows(args, data)
    made = int8(data, rows.x, held, args.lost)
    try:
        with whole(args.to) as file:
            file.write(made)
    except OSError as error:
        raise StateError(f"{args.to} cannot be written: {error.strerror}") from None
    found = {"file": str(args.to), "bytes": len(made), "was": len(data)}
    return show(args, found, f"{say('model')}: {args.to} ({size(len(data))} → {size(len(made))})")


def _doubt(args: argparse.Namespace, say: Say) -> int:
    from ..serve.doubt import calibrate
    from ..serve.model import Model

    _, held = _rows(args)
    found = calibrate(Model(_read(args.model), args.model.name), held.x, args.share, args.measure)
    text = (
        f"threshold = {found.threshold!r}\nmeasure = {found.measure!r}  # {found.share:.1%} {say('of rows')}"
    )
    return show(args, found._asdict(), text.replace("'", '"'))


def _profile(args: argparse.Namespace, say: Say) -> int:
    from ..serve.service import called
    from ..serve.variants import pick, profile

    models = {called(path): _read(path) for path in args.models}
    _, held = _rows(args, *models.values())
    found = profile(models, held, lost=args.lost)
    best = pick(found, p99=args.latency, memory=args.memory, size=args.size, lost=args.lost)
    if args.json:
        return show(args, {"variants": [one._asdict() for one in found], "best": best._asdict()}, "")
    heads = ("model", "runs on", "accuracy or R²", "points lost", "size", "p50 ms", "p99 ms", "memory MB")
    cells = [
        [f.name, f.provider.removesuffix("ExecutionProvider"), number(f.score), f"{f.lost:.2f}", size(f.size)]
        + [f"{value:.3g}" for value in (f.p50, f.p99, f.memory)]
        for f in found
    ]
    table(list(map(say, heads)), cells)
    print(f"{say('best here')}: {best.name}, {best.provider.removesuffix('ExecutionProvider')}")
    return 0


def _rows(args: argparse.Namespace, *models: bytes) -> tuple[Any, Any]:
    """Rows to calibrate on, and rows to measure on: the set's own test rows, else every fifth. `models`:
    which are held against their labels.

    Raises ConfigError where they have more classes or fewer than a model: which is which would be a guess.
    """
    import numpy as np

    from ..core.errors import ConfigError
    from ..serve.model import Model
    from ..serve.variants import classes
    from .look import load

    found = load(args)
    if args.classes is not None:
        found = found.labelled([name.strip() for name in args.classes.split(",")])
    elif models and found.task == "classes" and (names := Model(models[0]).classes):
        found = found.labelled(names)
    for data in models if found.task == "classes" else ():
        known = classes(data, found.train.x[:1])
        if known not in (1, len(found.classes)):
            raise ConfigError(
                f"these rows have {len(found.classes)} classes and the model tells {known} apart: name all of"
                " them in the model's order, as in --classes no,yes,unsure"
            )
    if found.test is not None:
        return found.train, found.test
    held = np.arange(len(found.train)) % 5 == 4
    return found.train[~held], found.train[held]


def _read(path: Path) -> bytes:
    from ..core.errors import ConfigError

    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _serve(args: argparse.Namespace, say: Say) -> int:
    import asyncio

    from ..core.errors import ConfigError
    from ..serve.above import Above
    from ..serve.service import called, follow, trust
    from .engine.process import until_stopped

    files = {called(path): path for path in args.models}
    if len(files) < len(args.models):
        raise ConfigError("two of these files would be served under one name: rename one")
    if args.callers and not args.tls:
        raise ConfigError("--callers needs --tls: without TLS nobody brings a certificate")
    shelf = _shelf(files)
    tls = trust(args.tls[0], args.tls[1], args.callers) if args.tls else None
    token = _token(args.token_file)
    joint = _joint(args.joint) if args.joint else None
    above = Above.open(args.identity) if args.identity else None
    ended = asyncio.Event()

    async def run() -> None:
        from ..serve import predict

        more = {"threads": args.threads, "batch": args.batch, "joint": joint, "above": above}
        runner = await predict.serve(shelf, args.host, args.port, tls=tls, token=token, **more)
        url = f"{'https' if tls else 'http'}://{args.host}:{runner.addresses[0][1]}"
        if args.json:
            print(json.dumps({"url": url, "models": sorted(files)}), flush=True)
        else:
            print(f"{', '.join(sorted(files))}: POST {url}/v1/predict", file=sys.stderr, flush=True)
        following = asyncio.ensure_future(follow(shelf, files))
        await ended.wait()
        following.cancel()
        await runner.cleanup()

    async def close() -> None:
        ended.set()

    return until_stopped(run, close)


def _joint(path: Path) -> Any:
    """Joint inference as a file says; paths in it are relative to it."""
    import tomllib

    from ..core.errors import ConfigError
    from ..serve.egress import FILES, Settings
    from ..serve.joint import Joint
    from .settings import make

    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file that can be read: {error}") from None
    for name in FILES:
        if isinstance(values.get(name), str) and values[name]:
            values[name] = str(path.parent / values[name])
    return Joint(make(Settings, values, str(path)))


def _shelf(files: dict[str, Path]) -> Any:
    """A shelf with every file on it: what is wrong at the start is said at once."""
    from ..core.errors import ConfigError, StateError
    from ..serve.models import Shelf

    shelf = Shelf()
    for name, path in files.items():
        try:
            shelf.put(name, 1, path.read_bytes())
        except (OSError, StateError) as error:
            raise ConfigError(f"{path} cannot be served: {error}") from None
    return shelf


def _token(path: Path | None) -> str:
    from ..core.errors import ConfigError

    if path is None:
        return ""
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not token:
        raise ConfigError(f"{path} is empty: write a token into it")
    return token
