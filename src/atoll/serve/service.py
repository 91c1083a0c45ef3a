"""The prediction service in a thread of this process, and model files that are followed as they change.

with at.serve("digits.onnx") as service:
    service.predict(rows)             # as any caller would, by HTTP
    service.swap("better.onnx")       # from the next request on
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from ..core.errors import AtollError, ConfigError, DataError, Gone, MisuseError, Refused, StateError
from . import predict
from .models import Served, Shelf

EVERY = 0.5  # seconds between two looks at a model file
TIMEOUT = 30.0  # seconds of a request

log = logging.getLogger("atoll.serve")


def serve(
    model: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 8470,
    name: str = "",
    tls: ssl.SSLContext | None = None,
    token: str = "",
    **more: Any,
) -> Service:
    """Serve a model from this process, in a thread of its own, until the service is closed.

    `model`: an ONNX file's path, its bytes, a run, or a mapping of names to these. `name`: what it is
    called, by default as its file. `port`: 0 for any free one. `more`: threads, batch and the rest of
    `atoll.serve.predict.app`. Raises StateError for what is no model or an address that cannot be had,
    ConfigError where others could reach it without TLS and a token.
    """
    shelf = Shelf()
    models = model if isinstance(model, Mapping) else {name or _name(model): model}
    for called, one in models.items():
        shelf.put(called, 1, _bytes(one))
    return Service(shelf, host, port, tls=tls, token=token, **more)


class Service:
    """A running service. `url`: where it answers; `shelf`: its models. Made by `serve`."""

    def __init__(
        self,
        shelf: Shelf,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        token: str,
        **more: Any,
    ) -> None:
        self.shelf, self._token = shelf, token
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[], None] = lambda: None
        self._fault: AtollError | None = None
        self._port = 0

        async def run() -> None:
            ended = asyncio.Event()
            try:
                runner = await predict.serve(shelf, host, port, tls=tls, token=token, **more)
            except AtollError as error:
                self._fault = error
                return
            self._port, self._end = runner.addresses[0][1], ended.set
            self._loop = asyncio.get_running_loop()
            self._started.set()
            await ended.wait()
            await runner.cleanup()

        def main() -> None:
            try:
                asyncio.run(run())
            finally:
                self._started.set()

        self._thread = threading.Thread(target=main, name="atoll-serve", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._fault is not None:
            raise self._fault
        self.url = f"{'https' if tls else 'http'}://{host}:{self._port}"

    def predict(self, rows: Any, model: str = "") -> dict[str, NDArray[Any]]:
        """The service's answers to rows (n, ...), by output name.

        Raises DataError for rows it refuses, Refused for any other refusal, Gone where it does not answer.
        """
        body = json.dumps({"rows": np.asarray(rows, np.float64).tolist(), "model": model}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        asked = Request(f"{self.url}/v1/predict", body, headers)  # noqa: S310  its own address
        try:
            with urlopen(asked, timeout=TIMEOUT) as answer:  # noqa: S310
                found = json.loads(answer.read())["predictions"]
        except HTTPError as error:
            with error:
                reason = str(json.loads(error.read())["error"])
            raise (DataError if error.code == 400 else Refused)(reason) from None
        except OSError as error:
            raise Gone(f"{self.url} does not answer: {error}") from None
        return {called: np.asarray(values) for called, values in found.items()}

    def swap(self, model: Any, name: str = "") -> Served:
        """Serve another model under that name, or in place of the only one, from the next request on.

        Raises StateError for what is no model; then the old one stays.
        """
        held = self.shelf.get(name)
        if held is None and not name:
            raise MisuseError("say whose place it takes: swap(model, name)")
        version = 1 if held is None else held.version + 1
        return self.shelf.put(name or held.name, version, _bytes(model))  # type: ignore[union-attr]

    def close(self) -> None:
        """Answer what is under way, then end."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def follow(shelf: Shelf, files: Mapping[str, Path], every: float = EVERY) -> None:
    """Serve each file's model under its name again whenever the file changes; until cancelled.

    A file that is no model, or not yet, is named in `shelf.problems`, and what was served before stays.
    """
    known = {name: _stamp(path) for name, path in files.items()}
    while True:
        await asyncio.sleep(every)
        for name, path in files.items():
            stamp = _stamp(path)
            if stamp is None or stamp == known[name]:
                continue
            known[name] = stamp
            held = shelf.get(name)
            try:
                data = await asyncio.to_thread(_bytes, path)
                await asyncio.to_thread(shelf.put, name, 1 if held is None else held.version + 1, data)
                log.warning("%s changed: it is served from now on", path)
            except AtollError as error:
                shelf.problems[name] = f"{type(error).__name__}: {error}"
                log.warning("%s changed and is not served: %s", path, error)


def called(path: Path) -> str:
    """What a file's model is called: its stem in lower-case letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:63] or "model"


def trust(certificate: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """TLS 1.3 for a service. `clients`: the authorities whose certificates callers must bring, None for any.

    A renewed certificate is used once one more connection has been made. Raises ConfigError for files that
    are none.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"expected a certificate chain and its key in PEM files: {error}") from None
    loaded = _stamp(certificate)

    def renewed(_: object, __: object, ___: object) -> None:  # OpenSSL calls it in every handshake
        nonlocal loaded
        if (now := _stamp(certificate)) not in (loaded, None):
            loaded = now
            with suppress(OSError, ssl.SSLError):  # half written: the old one is good for a while
                context.load_cert_chain(certificate, key)

    context.sni_callback = renewed
    return context


def _name(model: Any) -> str:
    return called(Path(model)) if isinstance(model, (str, Path)) else "model"


def _bytes(model: Any) -> bytes:
    if isinstance(model, bytes):
        return model
    if isinstance(model, (str, Path)):
        try:
            return Path(model).read_bytes()
        except OSError as error:
            raise StateError(f"{model}: {error.strerror}; expected an ONNX model") from None
    if not hasattr(model, "export"):
        raise MisuseError(
            f"expected an ONNX file's path, its bytes or a finished run, got {type(model).__name__}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.export(path)
        return path.read_bytes()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
