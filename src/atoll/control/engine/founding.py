"""A coordinator's own papers: made at its first start, certified anew at each one."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import StateError
from ...privacy.keys import Authority, Current
from ..settings import Server, address
from ..store.store import Store
from .pki import Registrar, init, own


def found_authority(settings: Server, store: Store, *, now: float) -> tuple[Registrar, Current]:
    """Who certifies members, and the coordinator's identity, both in FOLDER/pki.

    An authority that is there is used, made by `atoll pki init` or brought along; else one is made. Raises
    StateError without one where the store has another's tokens: its members would trust no new one.
    """
    folder = Path(settings.folder) / "pki"
    host, _ = address(settings.listen, "$.listen")
    hosts = tuple(dict.fromkeys([*settings.names, *([] if host in ("0.0.0.0", "::") else [host])]))  # noqa: S104
    if not (folder / "authority" / "root.pem").exists():
        if store.tokens():
            raise StateError(
                f"this database is another coordinator's: its authority is not in {folder}. Restore a backup"
                " with it (atoll restore), or give this federation a database of its own (--store)"
            )
        init(folder, settings.federation, hosts=hosts, now=now, name=settings.name, hours=settings.hours)
    else:
        own(folder, name=settings.name, hosts=hosts, now=now, hours=settings.hours)
    authority = Authority.open(folder / "authority")
    return Registrar(authority, store, hours=settings.hours, reserved=hosts), Current(folder / "identity")
