"""What the API stands on: the store, the federation's root, and the few things the engine knows live."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..pinning import fingerprint
from ..store import Store
from .bell import Bell

T = TypeVar("T")
Row = dict[str, Any]


def _nobody() -> Mapping[str, Mapping[str, Any]]:
    return {}


def _nothing(_id: str) -> Mapping[str, Any]:
    return {}


def _no_cut(_name: str, _reason: str) -> None:
    return None


@dataclass
class Office:
    """`root`: the federation's root certificate, PEM. `folder`: where backups go, in `backups`.

    `hosts`: names and addresses the API answers to. `until`: when the server's certificate ends, Unix
    seconds. From the engine: `live()` says of each connected member what it does ({name: {phase, run,
    up, down, ...}}), `about(run)` what a run's data have in common ({features, outputs, names}), `cut`
    ends a member's streams, `busy()` is why work cannot be taken now ("" if it can).
    `clock`: Unix seconds. `random`: cryptographic.
    """

    store: Store
    federation: str
    root: bytes
    folder: Path
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    until: Callable[[], float | None] = lambda: None
    live: Callable[[], Mapping[str, Mapping[str, Any]]] = _nobody
    about: Callable[[str], Mapping[str, Any]] = _nothing
    cut: Callable[[str, str], None] = _no_cut
    busy: Callable[[], str] = str
    clock: Callable[[], float] = time.time
    random: Callable[[int], bytes] = secrets.token_bytes
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = fingerprint(self.root)
        self.closing = False
        self._bell: Bell | None = None

    def close(self) -> None:
        """Let whoever waits for news go: the server ends."""
        self.closing = True
        if self._bell is not None:
            self._bell.ring()

    async def ask(self, verb: Callable[..., T], *args: Any, **values: Any) -> T:
        """One verb over the store, in the store's own thread."""
        work = partial(verb, self.store, *args, **values)
        return await asyncio.get_running_loop().run_in_executor(self.store.thread, work)

    @property
    def bell(self) -> Bell:
        """Rings when the store has changed. Belongs to the event loop that first asks for it."""
        if self._bell is None:
            self._bell = Bell()
            self.store.changed.append(self._bell.ring)
        return self._bell
