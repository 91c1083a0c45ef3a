"""A node that watches windows of its devices: what a machine does shows in its last two readings together.

`python -m tests.engine.windowed FOLDER` takes what is stored, from where its state says, as one to be killed;
with `late`, labels that came by themselves after it.
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
from atoll.control.engine.sensing import contract, form, opened
from atoll.control.engine.watch import Watch, Window
from atoll.control.engine.work import Work, signed
from atoll.control.settings import Client, histories, make
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.data import Examples
from atoll.data.pipeline import Pipeline, Step
from atoll.privacy.keys import Authority
from atoll.sense.intake import Feed
from atoll.sense.reading import Reading
from atoll.serve.models import Shelf
from tests.engine.watching import MIDNIGHT, TABLE, VALUES, VAULT
from tests.serve.plans import golden
from tests.wire.pki import member

CONTRACT = """
name = "engine"
label = "moves"
[columns.u]
[columns.v]
missing = true
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
LABELS = {"labels": {"push": {"token_file": "none"}, "wait": 1e9}}


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


PIPELINE = Pipeline((Step("u", 500.0, centre=500.0, unit=0.01), Step("v", -3.0, centre=-3.0, unit=10.0)))


def scaled(said: Reading) -> Reading:
    """In units of which PIPELINE makes those that the model learns in; now and then one is missing."""
    u, v = float(said.values["u"]), float(said.values["v"])
    missing = int(said.id) % 9 == 4
    return replace(said, values={**said.values, "u": 500 + 100 * u, "v": None if missing else -3 + v / 10})


def bare(said: Reading) -> Reading:
    """Without its label."""
    return replace(said, values={k: v for k, v in said.values.items() if k != "moves"})


def labels(said: list[Reading]) -> list[Reading]:
    """What each of these did, told by itself, each twice, one in five wrong at first, and not in their order;
    and of one that nobody knows.
    """
    rng, made = np.random.default_rng(4), list[Reading]()
    for r in said:
        true = {"moves": r.values["moves"], "sequence": 2}
        first = {"moves": "odd", "sequence": 1} if rng.random() < 0.2 else true
        made += [Reading(r.source, r.at, r.id, values) for values in (first, true)]
    made.append(Reading("d9", MIDNIGHT, "1", {"moves": "up", "sequence": 1}))
    return [made[i] for i in np.argsort(np.arange(len(made)) + rng.uniform(0, 60, len(made)))]


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
    """A node with everything real but its federation, and one source with so many readings of each device.

    `late`: what they do is told by itself: some before, most after, each twice, some wrong at first.
    `piped`: what they say is in other units than those the model learns in.
    """

    def __init__(
        self,
        folder: Path,
        n: int = 400,
        change: int = 200,
        *,
        late: bool = False,
        piped: bool = False,
        **renew: Any,
    ) -> None:
        (folder / "engine.toml").write_text(CONTRACT)
        table = {
            "folder": str(folder),
            "sources": {"engine": {**SOURCE, **(LABELS if late else {})}},
            "data": {"engine": DATA},
            "watch": {"source": "engine", "data": "engine", "stable": 4},
            "renew": {"cool_down": 0.0, "reach": 1.0, "passes": 6, "recent": 300, **renew},
            "policy": {"plans": True},
        }
        self.made, self.folder = make(Client, table), folder
        whose = contract(self.made, "engine")
        if not (folder / "sense").exists():
            with opened(self.made, "engine", VAULT)[0] as store:
                said = [scaled(r) for r in readings(n, change)] if piped else readings(n, change)
                told = labels(said) if late else []
                for i in range(0, len(said), 24):
                    some = [bare(r) for r in said[i : i + 24]] if late else said[i : i + 24]
                    store.take(some, MIDNIGHT + n)
                    if told[i // 2 : i // 2 + 12]:
                        store.label(told[i // 2 : i // 2 + 12], MIDNIGHT + n)
                for i in range(len(said) // 2, len(told), 24):
                    store.label(told[i : i + 24], MIDNIGHT + n)
        self.shelf = Shelf()
        plan_learner(plan()).export(params(), folder / "model.onnx")
        graph, self.piped = (folder / "model.onnx").read_bytes(), piped
        self.shelf.put("line", 3, PIPELINE.frozen(graph) if piped else graph)
        self.store, self.form = opened(self.made, "engine", VAULT)[0], form(whose)
        names, self.sent = whose.features, list[Any]()
        self.watch = Watch(
            self.made, VAULT, self.shelf, self.tune, lambda *one: self.sent.append(one), names=names
        )

    def parcel(self) -> None:
        """Have what the model can be fine-tuned from."""
        identity = member(Authority.new("lagoon", now=time.time()), "coordinator", "hub")
        table = {**TABLE, "learner": {"name": "plan", "sha256": plan().sha256, "blob": "0" * 64}}
        if self.piped:
            whose = contract(self.made, "engine").table()
            table["data"] = {"name": "engine", "contract": whose, "pipeline": PIPELINE.table()}
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

    async def labelled(self) -> None:
        feed = Feed(self.store, span=self.made.sources["engine"].window, form=lambda: self.form, late=LATE)
        last, lots = 0, feed.labelled(self.watch.known.heard_windows, histories(self.made))
        while (then := self.store.due(2, last)[0]) != last:
            last = then
        while self.watch.known.heard_windows < last:
            await self.watch.hear(await anext(lots))
            await self.watch.idle()

    def play(self, *, late: bool = False) -> Node:
        async def run() -> None:
            if self.watch.known.cursor < self.store.counts()["stored"] - 2:
                await self.watch.run(self.windows)
            else:
                self.watch.begin()
            if late:
                await self.labelled()

        asyncio.run(run())
        return self

    def learnt_from(self) -> Examples:
        """The data set of this site, as a federation's run has it."""
        return dataset("engine", DATA, self.made, VAULT)[0]


if __name__ == "__main__":
    late = sys.argv[2:] == ["late"]
    Node(Path(sys.argv[1]), drift=False, late=late).play(late=late)
