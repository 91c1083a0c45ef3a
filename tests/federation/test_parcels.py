"""What a coordinator writes down of models: each once a round, and no longer than it is needed."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from atoll.control.engine import coordinator, parcels
from atoll.control.store import Store, schema
from tests.federation.faults import DATA, TABLE
from tests.federation.world import PROCESS, World, run

ROUNDS = 6
JOB = {**TABLE, "rounds": ROUNDS, "cohort": {"name": "sample", "fraction": 1.0}}


@pytest.mark.parametrize("edges", [0, 2])
def test_the_downlink_is_encoded_once_a_round(
    tmp_path: Path, edges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: Counter[tuple[str, str]] = Counter()
    encode = parcels.encode

    def counted(message: Any, *more: Any) -> Any:
        encoded[PROCESS.get().name, message.kind] += 1
        return encode(message, *more)

    monkeypatch.setattr(parcels, "encode", counted)

    async def main() -> None:
        world = World(tmp_path, DATA, edges=edges)
        world.start_all()
        await world.gathered()
        assert (await world.finished(world.submit(JOB, 5)))["state"] == "done"

    run(main())
    answers = [n for (name, kind), n in encoded.items() if kind == "answer" and name.startswith("client-")]
    assert answers == [2 * ROUNDS + 1] * len(DATA), "control: who trains a model and who scores it"
    assert encoded["coordinator", "params"] == ROUNDS + 1, "the first, then one a round, each asked twice"


def old(path: Path) -> None:
    """Nobody touched it for two hours."""
    stamp = path.stat().st_mtime - 7200
    os.utime(path, (stamp, stamp))


def kept(store: Store) -> set[str]:
    """Of a run that is over: its model, what is pinned by name, the roster and the record of its end."""
    rows = [*store.rows(select(schema.pins.c.blob)), *store.rows(select(schema.scopes.c.state))]
    return {model["blob"] for model in store.models()} | {row[0] for row in rows}


def came(world: World, number: str, rounds: int) -> bool:
    return world.alive() and world.store.run(number)["rounds"] >= rounds


def test_what_is_needed_stays_and_nothing_else_whoever_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator tidies up all the time, and dies in between; what a row names is never young."""
    monkeypatch.setattr(coordinator, "LOOK", 0.05)
    monkeypatch.setattr(coordinator, "TIDY", 0.0)
    prune, gone = Store.prune, []

    def pruned(store: Store, *more: Any, **options: Any) -> dict[str, int]:
        needed = store.blobs.named()
        for name in needed:
            old(store.blobs.path(name))
        found = prune(store, *more, **options)
        gone.append(found["blobs"])
        lost = (needed & store.blobs.named()) - {*store.blobs.names()}
        assert not lost
        return found

    monkeypatch.setattr(Store, "prune", pruned)

    def taken(count: int) -> bool:
        return sum(gone) >= count

    async def main() -> None:
        world = World(tmp_path, DATA)
        world.start_all()
        await world.gathered()
        number = world.submit(JOB, 5)
        for death in (1, 2):
            await world.until(partial(came, world, number, 2 * death))
            orphan = world.store.blobs.put(b"nobody's, %d" % death)
            old(world.store.blobs.path(orphan))
            await world.until(partial(taken, death))
            world.kill("coordinator")
            world.start("coordinator")
        assert (await world.finished(number))["state"] == "done"
        await asyncio.sleep(5.0)
        store = world.store
        assert {*store.blobs.names()} == store.blobs.named()
        assert len(gone) > ROUNDS and sum(gone) == 2, "of what was never named; the rest went at once"
        assert store.blobs.named() == kept(store)

    run(main())
