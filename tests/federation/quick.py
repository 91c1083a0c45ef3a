"""What makes thousands of worlds cheap: done once for all of them, and no waiting for the disk.

Only for virtual worlds, where a process dies by decree and the disk never forgets: databases do not
sync, engines with their compiled statements go from life to life, certificates and rows are made once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, event

from atoll.control import config
from atoll.control.engine import datasets, learning
from atoll.control.engine.pki import init
from atoll.control.store import database, engine
from atoll.privacy.keys import Authority
from tests.wire.pki import member

_FOLDER = tempfile.TemporaryDirectory(prefix="atoll-world-")
_FREE: list[Engine] = []
_cold, _read, _hold = database.connect, config.parse, datasets.hold


@cache
def pki() -> Path:
    """The authority and the coordinator's identity of all worlds."""
    place = Path(_FOLDER.name) / "pki"
    init(place, "test", hosts=("localhost",), now=time.time())
    return place


@cache
def identity(role: str, name: str) -> Path:
    """A member's folder with its key and certificate."""
    return member(Authority.open(pki() / "authority"), role, name).folder


def connect(url: str, folder: Path) -> Engine:
    """An engine that some earlier life had, its statements compiled."""
    if url:
        return _cold(url, folder)
    made = _FREE.pop() if _FREE else _engine()
    made.file = str(folder / engine.FILE)  # type: ignore[attr-defined]
    return made


def _engine() -> Engine:
    made = _cold("", Path("unused"))

    @event.listens_for(made, "do_connect")
    def elsewhere(_dialect: Any, _record: Any, arguments: list[Any], _options: Any) -> None:
        arguments[0] = made.file  # type: ignore[attr-defined]

    @event.listens_for(made, "engine_disposed")
    def free(_engine: Any) -> None:
        if made not in _FREE:
            _FREE.append(made)

    return made


@cache
def _parsed(text: str) -> Any:
    return _read(json.loads(text))


def parse(table: Mapping[str, Any]) -> Any:
    """A job file's values; parts are values, so that one serves all."""
    return _parsed(json.dumps(table))


@cache
def _held(name: str, table: str, rows: bytes, folder: str) -> Any:
    return _hold(name, json.loads(table), Path(folder))


def hold(name: str, table: Mapping[str, Any], folder: Path) -> Any:
    """A site's rows, read once for all who have the same."""
    rows = b"".join((folder / str(table[key])).read_bytes() for key in ("train", "test"))
    copy = Path(_FOLDER.name) / str(hash((name, rows)))
    if not copy.exists():
        copy.mkdir()
        for key in ("train", "test"):
            shutil.copy(folder / str(table[key]), copy)
    return _held(name, json.dumps(table), rows, str(copy))


@contextmanager
def quick() -> Iterator[None]:
    """While this lasts, worlds are cheap."""
    pragmas = tuple(p for p in engine._PRAGMAS if "sync" not in p)
    with (
        patch.object(database, "connect", connect),
        patch.object(engine, "_PRAGMAS", (*pragmas, "synchronous=OFF")),
        patch.object(config, "parse", parse),
        patch.object(learning, "hold", hold),
        patch("os.fsync", lambda number: None),
    ):
        yield
