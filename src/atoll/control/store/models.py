"""Models: finished parameters by name and version, with the signed manifest that goes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import func, insert, select

from ...core.errors import StateError
from . import schema as t
from .blobs import Blobs
from .database import Database, transition
from .plain import canonical, clean, digest, parsed

_ADD = transition("model_add")


class Models(Database):
    """The models of a store."""

    blobs: Blobs

    def model_add(
        self,
        run: str,
        name: str,
        blob: str,
        manifest: bytes | Callable[[int], bytes],
        metrics: Mapping[str, Any] | None = None,
    ) -> int:
        """Keep a run's model; returns its version, one more than the last of that name.

        `manifest`: its signed text, or what makes it once the version is known. The same run and
        blob again: the version it has. Raises StateError if the blob is not here.
        """
        name = clean(name)
        with self.write(_ADD) as tx:
            c = t.models.c
            same = select(c.version).where(c.name == name, c.run == run, c.blob == blob)
            if (before := tx.run(same).scalar()) is not None:
                return int(before)
            self.blobs.need(blob)
            version = (tx.run(select(func.max(c.version)).where(c.name == name)).scalar() or 0) + 1
            signed = manifest if isinstance(manifest, bytes) else manifest(version)
            text = signed.decode("utf-8")
            row = {"name": name, "version": version, "run": run, "blob": blob, "manifest": text}
            shown = canonical(dict(metrics or {}))
            tx.run(insert(t.models), {**row, "metrics": shown, "created": tx.now})
            body = {"model": name, "version": version, "blob": blob, "manifest": digest(text)}
            body["metrics"] = digest(shown)
            tx.event("model", body, run=run)
            return version

    def models(self, name: str | None = None) -> list[dict[str, Any]]:
        """{name, version, run, blob, manifest, metrics, created} of each, by name and version."""
        found = select(t.models).order_by(t.models.c.name, t.models.c.version)
        rows = self.rows(found if name is None else found.where(t.models.c.name == name))
        return [_record(row) for row in rows]

    def model(self, name: str, version: int | None = None) -> dict[str, Any]:
        """One model, the newest of its name by default. Raises StateError if there is none."""
        found = select(t.models).where(t.models.c.name == name).order_by(t.models.c.version.desc()).limit(1)
        rows = self.rows(found if version is None else found.where(t.models.c.version == version))
        if not rows:
            which = f"model {name[:80]!r}" + ("" if version is None else f" version {version}")
            raise StateError(f"there is no {which}: `atoll model list` shows them")
        return _record(rows[0])


def _record(row: Any) -> dict[str, Any]:
    return {**row._mapping, "manifest": row.manifest.encode(), "metrics": parsed(row.metrics)}
