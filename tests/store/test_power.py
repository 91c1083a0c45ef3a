"""Power cuts: un-synced writes are lost or torn, in blobs and in SQLite's own files.

A cut falls at a failpoint, drawn from the seed. Files of the store lose what `Lossy` forgets. SQLite
writes its files itself: what it may have lost is what it wrote since the failpoint before, where that
was before a commit's sync, or what a checkpoint of its log has put into the database since.
"""

import os
import random
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from atoll.control.store import Store
from atoll.core.errors import StateError
from atoll.wire import failpoint
from tests.store import script
from tests.store.warm import warm
from tests.wire.lossy import Content, Lossy, tear

SEEDS = int(os.environ.get("ATOLL_SEEDS", "200"))  # 1,000 in `python -m bench faults`
TOGETHER = 100  # seeds in one test


class Cut(BaseException):
    """The power is gone."""


class Power:
    """Counts failpoints, remembers SQLite's files at the last few, and cuts at the given one.

    `lies`: SQLite's syncs of the last few failpoints did nothing.
    """

    def __init__(self, folder: Path, at: int, survive: Callable[[], None], lies: bool) -> None:
        self.folder = folder
        self.left = at
        self.survive = survive
        self.lies = lies
        self.seen: deque[dict[str, bytes]] = deque([{}], maxlen=20 if lies else 2)
        self.where = ""

    def __contains__(self, _name: object) -> bool:  # every failpoint is armed
        return True

    def reached(self, name: str) -> None:
        self.left -= 1
        if self.left < 20:
            self.seen.append(self.files())
        if self.left == 0:
            self.where = name
            self.survive()
            raise Cut

    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in self.folder.glob("atoll.db*") if not p.name.endswith("-shm")}

    def two(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        return self.seen[0], self.seen[-1]

    def database(self, draw: random.Random, into: Path) -> None:
        """SQLite's files as the disk may hold them."""
        commit = self.where.startswith("store.") and self.where.endswith("after_commit")
        before, now = ([at.get(name, b"") for name in ("atoll.db", "atoll.db-wal")] for at in self.two())
        database, log = now
        if self.lies or (commit and before[0] == database):
            log = tear(draw, before[1], log)
        elif commit:  # the commit is synced, a checkpoint after it was under way
            database = tear(draw, before[0], database)
        (into / "atoll.db").write_bytes(database)
        (into / "atoll.db-wal").write_bytes(log)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A migrated, empty store to begin from."""
    folder = tmp_path_factory.mktemp("power") / "empty"
    with warm():
        Store.open("", folder).close()
        yield folder


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], Power]:
    def arm(folder: Path, at: int, survive: Callable[[], None], lies: bool) -> Power:
        made = Power(folder, at, survive, lies)
        monkeypatch.setattr(failpoint, "_armed", made)
        monkeypatch.setattr(failpoint, "_fire", made.reached)
        return made

    return arm


def cut(
    seed: int, empty: Path, place: Path, arm: Any, disarm: Any, layer: Any = Lossy, lies: bool = False
) -> str:
    """One life, cut once, looked at, and lived to its end; returns where it was cut."""
    draw = random.Random(seed)
    first, second = place / f"{seed}-first", place / f"{seed}-second"
    shutil.copytree(empty, first)
    files, told = layer(first), []

    def survive() -> None:
        files.survivors(draw, second)
        power.database(draw, second)

    store = Store.open("", first, files=files)
    power = arm(first, draw.randint(1, 240), survive, lies)
    try:
        script.live(store, seed, told.append)
    except Cut:
        pass
    finally:
        disarm()
        store.close()
        shutil.rmtree(first)
    if not power.where:
        return ""
    with Store.open("", second) as store:
        script.holds(store, told)
        script.live(store, seed, told.append)
        script.holds(store, told)
        assert script.sight(store)[:4] == [
            "done",
            script.ROUNDS,
            [{"round": r} for r in range(script.ROUNDS)],
            (b"state 2" * 99, 3, 3, []),
        ]
    shutil.rmtree(second)
    return power.where


@pytest.mark.parametrize("start", range(0, SEEDS, TOGETHER))
def test_no_acknowledgement_is_lost_with_the_power(
    start: int, lives: Path, place: Path, power: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = [cut(seed, lives, place, power, monkeypatch.undo) for seed in range(start, start + TOGETHER)]
    assert sum(map(bool, where)) > TOGETHER * 0.8
    assert len(set(where)) > 10


class Deaf(Lossy):
    """A disk that says it has synced."""

    def _sync(self, file: BinaryIO) -> None:
        file.flush()
        self._now.setdefault(Path(file.name), Content())


@pytest.mark.parametrize("how", [{"layer": Deaf}, {"lies": True}], ids=["files", "database"])
def test_control_a_disk_that_lies_is_found_out(
    how: Any, lives: Path, place: Path, power: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def many() -> None:
        for seed in range(TOGETHER):
            cut(seed, lives, place, power, monkeypatch.undo, **how)

    with pytest.raises((AssertionError, StateError)):
        many()
