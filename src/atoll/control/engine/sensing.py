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
from ...sense.source import Source
from ...sense.store import Store
from ..settings import Client, address

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


def stored(settings: Client, name: str, vault: Vault) -> Store:
    """The store of a source, to read. Raises StateError where there is none yet."""
    return Store.open(Path(settings.folder), name, vault)


def intake(settings: Client, vault: Vault) -> Intake:
    """All sources of a client. Raises ConfigError for wrong settings, StateError for damaged stores."""
    from ...sense.intake import Feed, Intake  # the process that learns reads stores alone

    feeds: dict[str, Feed] = {}
    ways: list[tuple[str, Callable[[], Any]]] = []
    for name, source in settings.sources.items():
        made = contract(settings, name)
        judged = rules(source, made)
        store = Store.open(Path(settings.folder), name, vault, judged, quota=source.quota, days=source.days)
        feed = Feed(store, source.queue, source.window, partial(form, made), judged.late or 0.0)
        feeds[name] = feed
        ways += [(name, way) for way in _ways(settings, name, source, made, feed)]
    return Intake(feeds, ways)


def _ways(
    settings: Client, name: str, source: Source, made: Contract, feed: Feed
) -> Iterator[Callable[[], Any]]:
    folder = Path(settings.folder)
    if source.folder is not None:
        from ...sense import folder as files

        picture = None
        first = made.columns[made.features[0]]
        if first.kind == "image":
            picture = files.Picture(made.features[0], first.shape, made.label)
        yield partial(files.watch, source.folder, folder / source.folder.path, feed, picture)
    if source.sql is not None:
        from ...sense.sql import follow

        yield partial(follow, source.sql, folder, feed)
    if source.push is not None:
        from ...sense.push import serve

        host, port = address(source.push.listen, f"$.sources.{name}.push.listen")
        yield partial(serve, source.push, folder, feed, host, port)
    if source.mqtt is not None:
        from ...sense.mqtt import devices, listen

        devices(source.mqtt)
        session = source.mqtt.id or f"atoll-{settings.name}-{name}"
        yield partial(listen, source.mqtt, folder, feed, session)
