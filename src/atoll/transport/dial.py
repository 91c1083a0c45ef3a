"""A member's side: dial out, stay connected, carry letters, uploads and downloads over any cuts.

    dial = Dial(urls, make, hello, on_letter=…, on_open=…)
    task = asyncio.create_task(dial.run())         # for ever, or until it is refused for good
    dial.send("refuse", {…})                       # delivered once, in order, whenever there is a way
    receipt = await dial.upload("r1.3.bank-a.0", file)
    await dial.download(blob, file, have={held: its_file})

`urls`: the preferred parent first. Where it cannot be reached the next is tried, and the way home is
looked for now and then while nothing is under way. Waiting grows with each failure, is drawn evenly
(full jitter), and keeps to the window that a server named.

Letters not acknowledged when a *server* restarts are said again to its next process: only then may
one arrive twice. Letters for one parent are never said to another.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .link import Link


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `first`, `longest`: of the waits between tries. `welcome`: until a server must have
    answered a hello. `window`: in this time a transfer moves at least one frame (1 MiB; 3 KiB/s).
    `home`: how often to look for the preferred parent from another.
    """

    first: float = 0.5
    longest: float = 30.0
    welcome: float = 20.0
    window: float = 300.0
    home: float = 60.0


class Dial:
    """One member's session with whichever parent can be reached.

    `make(url)`: a Link. `hello()`: plain values about this member for the desk; protocol, session and
    capabilities are added. `on_letter(kind, head)`: one at a time, in order. `on_open(welcome, fresh)`:
    a connection stands; `fresh`: the server does not know us from before, what was open is sent again.
    `on_lost(reason)`: it is gone, we keep trying. `idle()`: may we move home now?
    """

    url: str  # of the parent we are at or are trying
    connected: bool
    reason: str  # why not connected, for people

    def __init__(
        self,
        urls: Sequence[str],
        make: Callable[[str], Link],
        hello: Callable[[], Mapping[str, Any]],
        *,
        on_letter: Callable[[str, Mapping[str, Any]], Awaitable[None]],
        on_open: Callable[[Mapping[str, Any], bool], Awaitable[None]] | None = None,
        on_lost: Callable[[str], Awaitable[None]] | None = None,
        idle: Callable[[], bool] = lambda: True,
        patience: Patience = Patience(),
        draw: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Stay connected until `close`. Raises Refused or ProtocolError when every parent said no for good."""

    def send(self, kind: str, head: Mapping[str, Any]) -> None:
        """Queue a letter for the parent; kept over cuts. Raises MisuseError for what a letter cannot hold."""

    async def upload(self, upload: str, path: Path) -> dict[str, Any]:
        """Bring a file of one message's frames over, however often the way breaks; the receipt.

        Raises Refused or ProtocolError where the server does not want it.
        """
        raise NotImplementedError

    async def download(self, blob: str, path: Path, have: Mapping[str, Path] | None = None) -> None:
        """Fetch a blob into `path`, whole and checked, or nothing; goes on from a part left by a kill.

        `have`: blobs held, of which the server may send a delta. Raises Refused or ProtocolError.
        """

    async def close(self) -> None:
        """Say goodbye and stop; `run` returns."""
