"""A node that watches a small world: a line whose slope changes. Run as a program it is there to be killed.

`python -m tests.engine.watching FOLDER WINDOWS` plays so many windows from where its state says.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atoll.control.engine import tuning
from atoll.control.engine.parcels import keep_frames
from atoll.control.engine.watch import Watch
from atoll.control.engine.work import Work, signed
from atoll.control.settings import Client, make
from atoll.core.update import Update
from atoll.privacy.keys import Authority, Identity
from atoll.privacy.vault import Vault
from atoll.serve.models import Shelf
from tests.wire.pki import member

VAULT = Vault(bytes(32))
CHANGE = 14  # the window from which on the world is another
TABLE = {
    "name": "line",
    "data": "line",
    "rounds": 3,
    "learner": {"name": "linear", "lr": 0.05, "epochs": 4},
    "algorithm": "fedavg",
    "cohort": "everyone",
}
VALUES = {"run": "r1", "table": TABLE, "seed": 3, "data": "line", "features": 2, "outputs": 1, "classes": []}
MIDNIGHT = datetime(2026, 2, 2).timestamp()  # noqa: DTZ001  a day of quotas is this machine's


@dataclass
class Line:
    """A window of y = 2 a - b, or y = -a - b once the world has changed."""

    rows: np.ndarray
    labels: np.ndarray | None
    cursor: int


@dataclass
class Later:
    """Rows of windows that were answered, and the labels that came for them."""

    rows: np.ndarray
    labels: np.ndarray
    cursor: int
    tickets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.tickets = self.tickets or tuple(f"press/{self.cursor}.{i}" for i in range(len(self.rows)))


def window(number: int, n: int = 80, change: int = CHANGE) -> Line:
    rng = np.random.default_rng([7, number])
    x = rng.normal(size=(n, 2)).astype(np.float32)
    slope = 2.0 if number < change else -1.0
    return Line(x, slope * x[:, 0] - x[:, 1] + 0.1 * rng.normal(size=n), number + 1)


def params() -> Update:
    return Update.of({"layer0.weight": np.float32([[2.0], [-1.0]]), "layer0.bias": np.float32([0.0])})


RENEW = {"cool_down": 0.0, "minutes": 1.0, "recent": 640, "reach": 1.0, "quota": {"cpu_minutes": 5.0}}


def settings(folder: Path, **renew: Any) -> Client:
    table = {
        "folder": str(folder),
        "watch": {"source": "line", "stable": 5},
        "renew": {
            "cool_down": 0.0,
            "minutes": 1.0,
            "recent": 640,
            "reach": 1.0,
            "quota": {"cpu_minutes": 5.0},
            **renew,
        },
    }
    return make(Client, table)


def parcel(identity: Identity, to: Path, run: str = "r1") -> Path:
    values = {**VALUES, "run": run, "federation": identity.member.federation}
    letter = signed(values, identity)
    keep_frames(to, tuning.parcel(Work(letter["text"]), letter, params(), identity))
    return to


@dataclass
class Node:
    """A node with everything real but its federation: shelf, watch, the fine-tune in this process."""

    folder: Path
    roots: bytes
    made: Client

    def __post_init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.now = MIDNIGHT
        self.shelf = Shelf()
        work = Work(json.dumps({**VALUES, "federation": "x"}).encode())
        graph = self.folder / "line.onnx"
        work.learner.export(params(), graph, np.zeros((1, 2), np.float32))
        self.shelf.put("line", 3, graph.read_bytes())
        self.watch = Watch(
            self.made,
            VAULT,
            self.shelf,
            self.tune,
            lambda kind, head: self.sent.append((kind, head)),
            self.clock,
        )

    def clock(self) -> float:
        return self.now

    async def tune(self, base: Path, rows: Path, to: Path, values: Any) -> Any:
        call = partial(
            tuning.tune, vault=VAULT, roots=self.roots, federation="lagoon", policy=self.made.policy
        )
        return await asyncio.to_thread(call, base, rows, to, values)

    async def windows(self, after: int, until: int) -> AsyncIterator[Line]:
        for number in range(after, until):
            self.now = MIDNIGHT + 3600.0 * number
            yield window(number)
            await self.watch.idle()

    async def play(self, until: int) -> None:
        await self.watch.run(lambda after: self.windows(after, until))
        await self.watch.idle()

    def error(self, number: int = 99) -> float:
        """Of whoever serves, in the world as it is since the change."""
        served, w = self.shelf.get("line"), window(number)
        assert served is not None
        assert w.labels is not None
        return float(np.abs(served.model.run(w.rows)["y"][:, 0] - w.labels).mean())

    def events(self) -> list[tuple[str, str]]:
        return [(told.event.kind, told.event.what) for told in self.watch.known.told]


def node(folder: Path, **renew: Any) -> Node:
    folder.mkdir(exist_ok=True, parents=True)
    roots = folder / "roots.pem"
    if not roots.exists():
        authority = Authority.new("lagoon", now=time.time())
        identity = member(authority, "coordinator", "hub")
        roots.write_bytes(identity.roots)
        parcel(identity, folder / "parcel")
    made = Node(folder, roots.read_bytes(), settings(folder, **renew))
    made.watch.based("line", 3, folder / "parcel")
    return made


if __name__ == "__main__":
    here = node(Path(sys.argv[1]))
    asyncio.run(here.play(int(sys.argv[2])))
