"""A node that watches windows of its devices: what a machine does shows in its last two readings together.

`python -m tests.engine.windowed FOLDER` takes what is stored, from where its state says, as one to be killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from atoll.adapt.plan import Plan
from atoll.adapt.plan_learner import plan_learner
from atoll.control.engine import tuning
from atoll.control.engine.parcels import keep_frames
from atoll.control.engine.readings import rows as dataset
from atoll.control.engine.sensing import contract, form, stored
from atoll.control.engine.watch import Watch, Window
from atoll.control.engine.work import Work, signed
from atoll.control.settings import Client, histories, make
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.data import Examples
from atoll.privacy.keys import Authority
from atoll.sense.intake import Feed
from atoll.sense.judge import Rules
from atoll.sense.reading import Reading
from atoll.sense.store import Store
from atoll.serve.models import Shelf
from tests.engine.watching import MIDNIGHT, TABLE, VALUES, VAULT
from tests.serve.plans import golden
from tests.wire.pki import member

CONTRACT = """
name = "engine"
label = "moves"
[columns.u]
[columns.v]
[columns.moves]
kind = "category"
values = ["up", "down", "odd"]
"""
LATE = 5.0
DATA = {"source": "engine", "windows": True, "holdout": 0.0}
SOURCE = {
    "contract": "engine.toml",
    "late": LATE,
    "window": {"size": 2},
    "push": {"token_file": "none"},
    "days": 36500,
}


@cache
def plan() -> Plan:
    """The golden network with a row of two readings of two cells in place of its four."""
    made, graphs = golden(), {}
    for name, graph in made.graphs.items():
        model = onnx.load_from_string(graph)
        x = next(i for i in model.graph.input if i.name == "x")
        flat = model.graph.value_info.add()
        flat.CopyFrom(x)
        flat.name = "flat"
        dims = x.type.tensor_type.shape.dim
        dims[1].dim_value = 2
        dims.add().dim_value = 2
        for node in model.graph.node:
            node.input[:] = ["flat" if i == "x" else i for i in node.input]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([-1, 4]), "wide"))
        model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["x", "wide"], ["flat"]))
        graphs[name] = model.SerializeToString()
    whole = replace(made, graphs=graphs, about=msgspec.structs.replace(made.about, row=(2, 2)))
    return Plan.read(whole.dump())


def readings(n: int, change: int) -> list[Reading]:
    """Of three devices, a second apart, some of them late. Up or down is class 0 or 1, and 2 or 0 after."""
    rng = np.random.default_rng(3)
    cells, made = rng.normal(size=(n, 3, 2)), list[Reading]()
    for i in range(n):
        for d in range(3):
            u, v = cells[i, d].tolist()
            down = i > 0 and u < cells[i - 1, d, 0]
            moves = ("up", "down") if i < change else ("odd", "up")
            made.append(Reading(f"d{d}", MIDNIGHT + i, f"{i}", {"u": u, "v": v, "moves": moves[int(down)]}))
    order = np.argsort([r.at + (LATE - 1) * (rng.random() < 0.2) for r in made], kind="stable")
    return [made[i] for i in order]


@cache
def params() -> Update:
    """Of a model that knows the world before the change."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2000, 2, 2)).astype(np.float32)
    learner = plan_learner(plan())
    update = Update.of(learner.init(np.random.default_rng(0)))
    for i in range(6):
        rows = Examples(x, (x[:, 1, 0] < x[:, 0, 0]).astype(np.int64))
        update += learner.fit(update, rows, FitContext(Rng.of(i))).update
    return update


class Node:
    """A node with everything real but its federation, and one source with so many readings of each device."""

    def __init__(self, folder: Path, n: int = 400, change: int = 200, **renew: Any) -> None:
        (folder / "engine.toml").write_text(CONTRACT)
        table = {
            "folder": str(folder),
            "sources": {"engine": SOURCE},
            "data": {"engine": DATA},
            "watch": {"source": "engine", "data": "engine", "stable": 4},
            "renew": {"cool_down": 0.0, "reach": 1.0, "passes": 6, "recent": 300, **renew},
            "policy": {"plans": True},
        }
        self.made, self.folder = make(Client, table), folder
        whose = contract(self.made, "engine")
        if not (folder / "sense").exists():
            rules = Rules(whose.taken, tuple(whose.columns), whose.form, late=LATE)
            with Store.open(folder, "engine", VAULT, rules) as store:
                said = readings(n, change)
                for i in range(0, len(said), 24):
                    store.take(said[i : i + 24], MIDNIGHT + n)
        self.shelf = Shelf()
        plan_learner(plan()).export(params(), folder / "model.onnx")
        self.shelf.put("line", 3, (folder / "model.onnx").read_bytes())
        self.store, self.form = stored(self.made, "engine", VAULT), form(whose)
        names, self.sent = whose.features, list[Any]()
        self.watch = Watch(
            self.made, VAULT, self.shelf, self.tune, lambda *one: self.sent.append(one), names=names
        )

    def parcel(self) -> None:
        """Have what the model can be fine-tuned from."""
        identity = member(Authority.new("lagoon", now=time.time()), "coordinator", "hub")
        table = {**TABLE, "learner": {"name": "plan", "sha256": plan().sha256, "blob": "0" * 64}}
        values = {
            **VALUES,
            "table": table,
            "features": [2, 2],
            "outputs": 3,
            "classes": ["up", "down", "odd"],
        }
        letter = signed({**values, "federation": "lagoon"}, identity)
        found = tuning.parcel(Work(letter["text"], plan=plan()), letter, params(), identity)
        keep_frames(self.folder / "parcel", found)
        (self.folder / "roots.pem").write_bytes(identity.roots)
        self.watch.based("line", 3, self.folder / "parcel")

    async def tune(self, base: Path, rows: Path, to: Path, values: Any) -> Any:
        roots, policy = (self.folder / "roots.pem").read_bytes(), self.made.policy
        more = {"vault": VAULT, "roots": roots, "federation": "lagoon", "policy": policy}
        return await asyncio.to_thread(lambda: tuning.tune(base, rows, to, values, **more))

    async def windows(self, after: int) -> AsyncIterator[Window]:
        feed = Feed(self.store, span=self.made.sources["engine"].window, form=lambda: self.form, late=LATE)
        async for window in feed.windows(after, histories(self.made)):
            yield window
            await self.watch.idle()
            if window.cursor >= self.store.counts()["stored"] - 2:
                return

    def play(self) -> Node:
        asyncio.run(self.watch.run(self.windows))
        return self

    def learnt_from(self) -> Examples:
        """The data set of this site, as a federation's run has it."""
        return dataset("engine", DATA, self.made, VAULT)[0]


if __name__ == "__main__":
    Node(Path(sys.argv[1]), drift=False).play()
