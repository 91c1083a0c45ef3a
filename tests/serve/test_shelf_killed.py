"""kill -9 and full disks at every step of a roll-out: a champion answers, and the end is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import StateError
from atoll.learn.dense import linear
from atoll.serve.models import Shelf
from atoll.wire import failpoint
from tests.serve import shelf_life
from tests.serve.shelf_life import MANY, SLOPES, opened

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked here, which needs POSIX"
)

ROOT = Path(__file__).parents[2]
NAMES = sorted(name for name in failpoint.NAMES if name.startswith("shelf."))
END = 2, 4, 3  # champion, newest version, last order of a life that came to its end
Run = Callable[..., int]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, learner = tmp_path_factory.mktemp("models"), linear(1, 1)
    for version, slope in SLOPES.items():
        params = learner.init(np.random.default_rng(0)).map(lambda b, k=slope: np.array([k, 0.0], np.float32))
        learner.export(params, folder / f"{version}.onnx", np.zeros((2, 1)))
    return folder


@pytest.fixture(scope="module")
def run(models: Path) -> Iterator[Run]:
    """Live a life in a process of its own; its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.shelf_life", str(models)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout

    def life(folder: Path, arm: str = "", *, count: bool = False) -> int:
        process.stdin.write(json.dumps({"folder": str(folder), "arm": arm, "count": count}) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield life
    process.stdin.close()
    process.wait()
    process.stdout.close()


def sight(folder: Path) -> tuple[int, int, int]:
    line = Shelf(folder / "shelf", opened).line("m")
    assert line is not None and line.candidate is None
    return line.champion, line.newest, line.number


def holds(folder: Path) -> None:
    """A champion answers as what it is, nothing acknowledged is lost, all files that are named are there."""
    file = folder / "told.txt"
    told = file.read_text().splitlines() if file.exists() else []
    shelf = Shelf(folder / "shelf", opened)
    assert shelf.problems == {} or not told
    served, line = shelf.get("m"), shelf.line("m")
    if not told:
        return
    assert served is not None and line is not None
    rows = np.ones((1, 1), np.float32)
    assert served.model.run(rows)["y"][0, 0] == SLOPES[served.version]
    assert served.version != 3  # it is bad
    if "settled 1" in told:
        assert served.version >= 2 and line.number >= 1
    if "took 3" in told:
        assert (served.version, line.number) in {(4, 2), (2, 3)}
    if "took 4" in told:
        assert (served.version, line.newest, line.number) == (2, 4, 3)
    shelf.close()


@pytest.fixture(scope="module")
def hits(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often each failpoint is reached in an undisturbed life."""
    folder = tmp_path_factory.mktemp("calm")
    assert run(folder, ",".join(f"{point}:{MANY}:kill" for point in NAMES), count=True) == 0
    assert sight(folder) == END
    found: dict[str, int] = json.loads((folder / "hits.json").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_killed_there_the_confirmed_model_serves_and_the_roll_out_goes_on(
    name: str, run: Run, hits: dict[str, int], tmp_path: Path
) -> None:
    reached = hits[name]
    assert reached, f"no life reaches {name}"
    for at in sorted({1, *range(2, reached, 3), reached}):
        folder = tmp_path / str(at)
        assert run(folder, f"{name}:{at}:kill") == -9
        holds(folder)
        assert run(folder) == 0
        holds(folder)
        assert sight(folder) == END


@pytest.mark.parametrize("at", [1, 2, 5])
def test_killed_again_and_again_there_is_one_champion(at: int, run: Run, tmp_path: Path) -> None:
    points = NAMES[at % len(NAMES) :] + NAMES[: at % len(NAMES)]
    for kills, name in enumerate(points):
        assert run(tmp_path, f"{name}:{1 + (kills + at) % 3}:kill") in (-9, 0)
        holds(tmp_path)
    assert run(tmp_path) == 0
    assert sight(tmp_path) == END


def test_control_a_swap_in_two_halves_would_be_seen(run: Run, tmp_path: Path, models: Path) -> None:
    """The check finds a model's bytes under another's manifest."""
    assert run(tmp_path) == 0
    file = next((tmp_path / "shelf" / "m").glob("*.onnx"))
    file.write_bytes((models / "4.onnx").read_bytes())
    with pytest.raises(AssertionError):
        holds(tmp_path)


@pytest.mark.parametrize("action", ["full", "raise"])
@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(".before")])
def test_a_full_disk_keeps_the_old_one(name: str, action: str, models: Path, tmp_path: Path) -> None:
    """Each write in turn fails once, in a life that goes on: every request is answered, to the same end."""
    for at in range(1, 4):
        folder = tmp_path / f"{name}{at}"
        failpoint.arm(f"{name}:{at}:{action}")
        try:
            for _ in range(2):  # what was refused is offered again
                with suppress(StateError):
                    shelf_life.live(folder / "shelf", models, str)
                holds(folder)
        finally:
            failpoint.arm("")
        assert sight(folder) == END
