"""What a coordinator, an edge or a client stands on: store, gate, doors, links. Tests give them others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ...privacy.keys import Current
from ...privacy.vault import Vault
from ...transport.link import Link
from ..settings import Client, Edge
from .sensors import Sensors


def _store(url: str, folder: Path) -> Any:
    from ..store.store import Store

    return Store.open(url, folder)


def _authority(settings: Any, store: Any) -> Any:
    from .founding import found_authority

    return found_authority(settings, store, now=time.time())


def _gate(folder: Path) -> Any:
    from ..gate.gate import Gate

    return Gate(kept=folder / "quarantine")


def _servers(*args: Any) -> Any:
    from .ways import Servers

    return Servers(*args)


def _api(*args: Any) -> Any:
    from .ways import Api

    return Api(*args)


def _link(current: Current, settings: Client | Edge) -> Callable[[str], Link]:
    from .ways import find_link

    return find_link(current, settings)


def _workplace(settings: Any, vault: Vault) -> Any:
    from .workplace import Apart

    return Apart(settings, vault)


@dataclass(frozen=True)
class Outside:
    """How each is made. A client needs link, workplace and sensors alone, and loads nothing of the
    others. `clock`: Unix seconds.
    """

    store: Callable[[str, Path], Any] = _store
    authority: Callable[[Any, Any], Any] = _authority
    gate: Callable[[Path], Any] = _gate
    servers: Callable[..., Any] = _servers
    api: Callable[..., Any] = _api
    draw: Callable[[], Random | None] = lambda: None
    link: Callable[[Current, Client | Edge], Callable[[str], Link]] = _link
    workplace: Callable[[Any, Vault], Any] = _workplace
    sensors: Callable[[str], Any] = Sensors
    clock: Callable[[], float] = time.time
