"""A hall's API on a real socket, in its own event loop."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atoll.control.desk.listen import Listening
from tests.api.roots import server_pem

_OURS = object()


def context_of(pem: bytes) -> ssl.SSLContext:
    """A server's context with this certificate and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, pem)
    return context


def load(context: ssl.SSLContext, pem: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "both.pem")
        file.write_bytes(pem)
        context.load_cert_chain(file)


@contextmanager
def served(hall: Any, *, app: Any = None, pem: Any = _OURS) -> Iterator[str]:
    """The URL at which `app` (the hall's own by default) answers; `pem` None: without TLS."""
    tls = (
        None
        if pem is None
        else context_of(server_pem(hall.office.federation, "127.0.0.1", "localhost") if pem is _OURS else pem)
    )
    served.load = lambda new: load(tls, new)  # type: ignore[attr-defined,arg-type]
    listening = Listening(app or hall.guard, "127.0.0.1", 0, tls)
    running = asyncio.run_coroutine_threadsafe(listening.serve(), hall.loop)
    try:
        yield listening.url
    finally:
        listening.close()
        running.result(20)
