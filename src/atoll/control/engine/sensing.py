"""A client's sources: its settings become contracts, stores, feeds and what brings readings to them.

    intake = sensing.intake(settings, vault)
    intake.start()
    async for window in intake.windows("press"): ...

Here sense/ (which knows no contract) and data/ (which knows no store) meet. No numpy is loaded before the
first window is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...data.contract import Contract
from ...privacy.vault import Vault
from ...sense.judge import Rules
from ...sense.labels import Join
from ...sense.source import Labels, Source
from ...sense.store import Store
from ..settings import Client, address, histories

if TYPE_CHECKING:
    from ...sense.intake import Feed, Intake
    from ...sense.window import Form

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LATE = 60.0  # seconds, of live sources
_BEHIND = 30 * 86400.0


def contract(settings: Client, name: str) -> Contract:
    """The contract of a source. Raises ConfigError with the path of what is wrong."""
    if not _NAME.fullmatch(name):
        raise ConfigError("a source's name is letters, digits, - and _, at most 64", f"$.sources.{name}")
    try:
        return Contract.read(Path(settings.folder) / settings.sources[name].contract)
    except ConfigError as error:
        raise ConfigError(str(error), f"$.sources.{name}.contract") from None


def form(made: Contract) -> Form:
    """What the cells of its readings are."""
    from ...sense.window import Form

    return Form(made.form, made.row, list(made.columns).index(made.label) if made.label else -1)


def rules(source: Source, made: Contract) -> Rules:
    """What a store of this source takes."""
    live = source.live
    stuck = {name: column.stuck for name, column in made.columns.items() if column.stuck is not None}
    return Rules(
        made.taken,
        tuple(made.columns),
        made.form,
        stuck,
        source.late if source.late is not None or not live else _LATE,
        source.ahead,
        source.behind if source.behind is not None or not live else _BEHIND,
    )


def join(source: Source, made: Contract, name: str, *, windows: bool = False) -> Join | None:
    """How labels that come by themselves find their readings, and `windows` of devices. Raises ConfigError
    where there are none.
    """
    said = source.labels
    if said is None:
        return None
    if not made.label:
        raise ConfigError(
            "labels come, and the contract names none: give it label", f"$.sources.{name}.labels"
        )
    column = said.column or made.label
    if said.sequence == column:
        raise ConfigError("the label's own column is no sequence", f"$.sources.{name}.labels.sequence")
    return Join(
        made.form,
        list(made.columns).index(made.label),
        made.columns[made.label].number,
        column,
        said.sequence,
        said.by,
        said.tolerance,
        said.direction,
        said.wait,
        said.devices,
        source.ahead,
        (rules(source, made).late or 0.0) if windows else None,
    )


def stored(settings: Client, name: str, vault: Vault, made: Contract | None = None) -> Store:
    """The store of a source, to read; with its contract, readings with the labels that came.

    Raises StateError where there is none yet.
    """
    joined = None if made is None else join(settings.sources[name], made, name)
    return Store.open(Path(settings.folder), name, vault, join=joined)


def opened(settings: Client, name: str, vault: Vault, *, owner: bool = True) -> tuple[Store, Contract]:
    """The store of a source, to write, and its contract; `owner`: by its client. Raises as `intake`."""
    source, made = settings.sources[name], contract(settings, name)
    windows = owner and bool(histories(settings)) and settings.watch.source == name  # type: ignore[union-attr]
    joined, judged = join(source, made, name, windows=windows), rules(source, made)
    folder, limits = Path(settings.folder), {"quota": source.quota, "days": source.days}
    store = Store.open(folder, name, vault, judged, join=joined, owner=owner, **limits)  # type: ignore[arg-type]
    return store, made


def intake(settings: Client, vault: Vault) -> Intake:
    """All sources of a client. Raises ConfigError for wrong settings, StateError for damaged stores."""
    from ...sense.intake import Feed, Intake  # the process that learns reads stores alone

    feeds: dict[str, Feed] = {}
    ways: list[tuple[str, Callable[[], Any]]] = []
    for name, source in settings.sources.items():
        store, made = opened(settings, name, vault)
        late = rules(source, made).late or 0.0
        feed = Feed(store, source.queue, source.window, partial(form, made), late)
        feeds[name] = feed
        ways += [(name, way) for way in _ways(settings, name, source, made, feed)]
        if source.labels is not None:
            feeds[f"{name} labels"] = told = Feed(store, source.queue, of=feed)
            ways += [(f"{name} labels", way) for way in _ways(settings, name, source.labels, made, told)]
    return Intake(feeds, ways)


def _ways(
    settings: Client, name: str, source: Source | Labels, made: Contract, feed: Feed
) -> Iterator[Callable[[], Any]]:
    folder = Path(settings.folder)
    path = f"$.sources.{name}" if feed.of is None else f"$.sources.{name}.labels"
    if source.folder is not None:
        from ...sense import folder as files

        picture = None
        first = made.columns[made.features[0]]
        if first.kind == "image" and feed.of is None:
            picture = files.Picture(made.features[0], first.shape, made.label)
        yield partial(files.watch, source.folder, folder / source.folder.path, feed, picture)
    if source.sql is not None:
        from ...sense.sql import follow

        yield partial(follow, source.sql, folder, feed)
    if source.push is not None:
        from ...sense.push import serve

        host, port = address(source.push.listen, f"{path}.push.listen")
        yield partial(serve, source.push, folder, feed, host, port)
    if source.mqtt is not None:
        from ...sense.mqtt import devices, listen

        devices(source.mqtt)
        session = source.mqtt.id or f"atoll-{settings.name}-{name}{'' if feed.of is None else '-labels'}"
        yield partial(listen, source.mqtt, folder, feed, session)
