"""How a coordinator is: store, disk, schema, certificate, versions; and why it takes no work."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from typing import Any

from ..store import Store
from ..store.schema import REVISION
from .office import Office


def report(store: Store, office: Office) -> dict[str, Any]:
    """{ok, reason, store, disk, schema, certificate, versions, now}: Unix seconds and bytes."""
    found = store.health()
    reason = str(found.get("reason") or office.busy())
    disk = shutil.disk_usage(office.folder)
    return {
        "ok": bool(found["ok"]) and not reason,
        "reason": reason,
        "now": office.clock(),
        "store": found,
        "disk": {"free": disk.free, "total": disk.total},
        "schema": {"found": revision(store), "expected": REVISION},
        "certificate": {"until": office.until()},
        "versions": {"atoll": version("atoll-fl"), "python": platform.python_version()},
    }


def revision(store: Store) -> str:
    """The migration the database is at; "" where it says nothing."""
    from sqlalchemy import text

    rows = store.rows(text("SELECT version_num FROM alembic_version"))
    return str(rows[0][0]) if rows else ""
