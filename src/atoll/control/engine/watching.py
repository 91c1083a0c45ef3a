"""The watch of what a client's source takes in, wherever its models are served."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from ...privacy.vault import Vault
from ..settings import Client, histories
from .sensing import contract
from .serving import Serving, soon
from .watch import Tune, Watch

if TYPE_CHECKING:
    from ...sense.intake import Feed


def watching(
    settings: Client, vault: Vault, serving: Serving, send: Any, feed: Feed, tune: Tune
) -> Coroutine[Any, Any, None]:
    """Look at every window of the watched source, and renew the model that answers it; for ever.

    `send`: of a letter to the parent, in the loop's thread. `feed`: the source's.
    """
    assert settings.watch is not None  # noqa: S101  the caller's
    source = settings.watch.source
    send = partial(soon, asyncio.get_running_loop(), send)
    names = contract(settings, source).features
    watch = serving.watch = Watch(settings, vault, serving.shelf, tune, send, names=names)
    late, many = settings.sources[source].labels is not None, histories(settings)
    labelled = partial(feed.labelled, histories=many) if late else None
    return watch.run(partial(feed.windows, histories=many), labelled)
