"""What a site's stores of readings hold, for who sits there: `atoll readings`. Its client may run meanwhile.

SQLite has one writer at a time, and the others wait: what is looked at is one commit's state, what is judged
again is one commit more. A wipe waits for the commit under way, and the client's next one finds it
(sense/place.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import AtollError, ConfigError, StateError
from ...core.registry import nearest
from ...privacy.vault import Vault
from ...sense import place
from ...sense.aside import Aside
from ..settings import Client
from . import safe, sensing


def vault(settings: Client) -> Vault:
    """The vault of a client's folder. Raises StateError where no client has been: none is made here."""
    folder = Path(settings.folder)
    if not (folder / safe.NAME).exists():
        raise StateError(
            f"{folder} is no client's folder: there is no {safe.NAME} in it; name its settings by --config"
        )
    return safe.opened(settings)


def named(settings: Client, source: str | None) -> list[str]:
    """That source, or all. Raises ConfigError where there is none of that name, or none at all."""
    if not settings.sources:
        raise ConfigError(
            "this client reads no sources: [sources.NAME] in its settings names one", "$.sources"
        )
    if source is not None and source not in settings.sources:
        raise ConfigError(f"there is no source {source!r}: {nearest(source, settings.sources)}")
    return list(settings.sources) if source is None else [source]


def status(settings: Client, sources: Iterable[str], key: Vault) -> dict[str, dict[str, Any]]:
    """By source: what is here, what was counted since the store was made, and the quota. No value."""
    found: dict[str, dict[str, Any]] = {}
    for name in sources:
        source = settings.sources[name]
        try:
            with sensing.stored(settings, name, key, _contract(settings, name)) as store:
                found[name] = store.status()
        except place.Absent:
            found[name] = {"readings": 0, "oldest": None, "newest": None, "aside": {}, "counts": {"bytes": 0}}
        counts = found[name]["counts"]
        late = source.labels is not None and "labelled" in counts
        found[name] |= {
            "bytes": counts.pop("bytes"),
            "quota": source.quota,
            "days": source.days,
            "labelled": counts.pop("labelled") if late else None,
            "unlabelled": None,
            "labels_waiting": counts.pop("labels_waiting") if late else None,
        }
        if late:
            found[name]["unlabelled"] = found[name]["readings"] - found[name]["labelled"]
    return found


def aside(
    settings: Client, sources: Iterable[str], key: Vault, text: str = "", *, values: bool = False
) -> list[dict[str, Any]]:
    """What was set aside for a reason with that text in it, the oldest first; its `values` only if asked."""
    rows: list[dict[str, Any]] = []
    for name in sources:
        try:
            with sensing.stored(settings, name, key) as store:
                found = [one for one in store.aside() if text in one.reason]
        except place.Absent:
            continue
        for one in found:
            row = {"source": name, "device": one.source, "id": one.id, "kind": one.kind, "came": one.taken}
            shown = {"at": one.at, "values": one.values, "units": one.units} if values else {}
            rows.append({**row, "reason": one.reason, **shown})
    return rows


def replay(
    settings: Client,
    sources: Iterable[str],
    key: Vault,
    text: str = "",
    clock: Callable[[], float] = time.time,
) -> dict[str, dict[str, int]]:
    """By source: what became of that which was set aside for a reason with that text, judged again now."""

    def chosen(one: Aside) -> bool:
        return text in one.reason

    found: dict[str, dict[str, int]] = {}
    for name in sources:
        if not place.files(Path(settings.folder), name)[0].exists():
            found[name] = {}
            continue
        store, _ = sensing.opened(settings, name, key, owner=False)
        with store:
            found[name] = dict(store.replay(clock(), chosen))
    return found


def wipe(settings: Client, sources: Iterable[str]) -> list[str]:
    """Take these sources' readings and labels away, and what the watch keeps of them; whose there were."""
    folder, gone = Path(settings.folder), []
    for name in sources:
        if any(file.exists() for file in place.files(folder, name)) or place.cut_off(folder, name):
            gone.append(name)
            try:
                place.wipe(folder, name)
            except OSError as error:  # a system on which open files stay
                text = f"{name} is not wiped to its end: {error}. Stop its client, and do it again"
                raise StateError(text) from None
        if settings.watch is not None and settings.watch.source == name:
            _unwatch(settings, folder / "watch")
    return gone


def _unwatch(settings: Client, folder: Path) -> None:
    """Windows that the watch has kept, and what it knows to be usual."""
    for file in (*folder.glob("rows/*"), folder / "own" / "rows"):
        file.unlink(missing_ok=True)
    if (folder / "state").exists():
        from .watch import Known

        try:
            key = vault(settings)
            known = msgspec.msgpack.decode(key.read(folder / "state"), type=Known)
            fresh = msgspec.structs.replace(known, monitor=None, cursor=0, heard=0)
            key.write(folder / "state", msgspec.msgpack.encode(fresh))
        except (AtollError, msgspec.DecodeError):  # then it knows nothing any more
            (folder / "state").unlink(missing_ok=True)


def _contract(settings: Client, name: str) -> Any:
    """Its contract, or None where that cannot be read: what is stored can be counted without."""
    try:
        return sensing.contract(settings, name)
    except ConfigError:
        return None
