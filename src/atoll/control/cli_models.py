"""Commands for models on this machine: `atoll serve`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    text = "the authorities whose certificates callers must bring"
    c.add_argument("--callers", type=Path, metavar="CA.pem", help=say(text))


def _serve(args: argparse.Namespace, say: Say) -> int:
    from ..core.errors import ConfigError
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
    ended = asyncio.Event()

    async def run() -> None:
        from ..serve import predict

        more = {"threads": args.threads, "batch": args.batch}
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
