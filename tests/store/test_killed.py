"""kill -9 at every failpoint: what was acknowledged is there, and the life goes on to the same end."""

import json
import os
import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from atoll.control.store import Store
from atoll.wire import failpoint
from tests.store import script
from tests.store.conftest import Run, Urls
from tests.store.nursery import MANY
from tests.store.warm import warm

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked here, which needs POSIX"
)

NAMES = sorted(name for name in failpoint.NAMES if name.startswith(("store.", "files.")))
COPIES = ("store.backup.", "store.restore.")
# Where the other database differs: one of each kind of transaction stands for all.
SHARED = ("store.answered.", "store.batch.", "store.migrate.", "store.restore.", "store.submit.")
CASES = [
    *(("sqlite", name) for name in NAMES),
    *(("postgresql", name) for name in NAMES if name.startswith(SHARED)),
]
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module", autouse=True)
def warmed() -> Iterator[None]:
    with warm():
        yield


@pytest.fixture(scope="module")
def hits(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """How often each failpoint is reached in an undisturbed life, by mode."""
    found = {}
    every = ",".join(f"{name}:{MANY}:kill" for name in NAMES)
    for mode in ("live", "backup"):
        folder = tmp_path_factory.mktemp("hits")
        assert run(mode, "", folder, 0, every, count=True) == 0
        found[mode] = json.loads((folder / "hits.json").read_text())
    return found


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """What a life comes to that nobody cut."""

    def sight(seed: int) -> Any:
        folder = tmp_path_factory.mktemp("calm")
        assert run("live", "", folder, seed) == 0
        with Store.open("", folder) as store:
            return script.sight(store)

    known: dict[int, Any] = {}
    return lambda seed: known[seed] if seed in known else known.setdefault(seed, sight(seed))


def told(folder: Path) -> list[str]:
    path = folder / "told.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(("urls", "name"), CASES, indirect=["urls"])
def test_killed_there_a_store_goes_on(
    name: str, urls: Urls, place: Path, run: Run, hits: Any, undisturbed: Any
) -> None:
    mode = "backup" if name.startswith(COPIES) else "live"
    reached = hits[mode][name]
    assert reached, f"no life reaches {name}: extend tests/store/script.py"
    for seed in SEEDS:
        folder, url = place / f"{name}-{seed}", urls(f"{name}{seed}")
        at = random.Random(f"{name}{seed}").randint(1, reached)
        assert run(mode, url, folder, seed, f"{name}:{at}:kill") == -9
        if mode == "live":
            with Store.open(url, folder) as store:
                script.holds(store, told(folder))
        assert run(mode, url, folder, seed) == 0
        with Store.open(url, folder if mode == "live" else folder / "second") as store:
            if mode == "live":
                script.holds(store, told(folder))
            assert store.verify().ok
            assert script.sight(store) == undisturbed(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_again_and_again_a_store_goes_on(
    seed: int, place: Path, run: Run, hits: Any, undisturbed: Any
) -> None:
    draw = random.Random(seed)
    names = [name for name in NAMES if hits["live"].get(name)]
    for kills in count():
        name = draw.choice(names)
        arm = f"{name}:{draw.randint(1, 4)}:kill" if kills < 40 else ""
        status = run("live", "", place, seed, arm)
        with Store.open("", place) as store:
            script.holds(store, told(place))
            if status == 0 and (store.runs()[0]["state"] == "done") and kills >= 10:
                assert script.sight(store) == undisturbed(seed)
                return
        assert status in {0, -9}
