"""The speed bench believes no time of a side that did other work."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from atoll.core.registry import parts
from bench import masked
from bench.masked import Masked
from bench.robust import SPLITS, Alarm, Cell, Sheet, _attacks, alarms, cells, findings, hidden, told
from bench.rows import Disagreement, race


@dataclass
class Walk:
    """A side whose every round adds `step` to one weight."""

    step: float
    engine: str = "none"
    at: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))

    def play(self, r: int) -> None:
        self.at = self.at + np.float32(self.step)

    def weights(self) -> np.ndarray:
        return self.at

    def accuracy(self) -> float:
        return 0.5


def test_sides_that_agree_are_timed() -> None:
    seconds = race({"bare": Walk(1.0), "ours": Walk(1.0001)}, rounds=3, closeness=1e-3)
    assert list(seconds) == ["bare", "ours"]
    assert all(value >= 0 for value in seconds.values())


@pytest.mark.parametrize("step", [1.01, -1.0, 0.0, float("nan")])
def test_a_side_that_did_other_work_is_refused(step: float) -> None:
    with pytest.raises(Disagreement, match="ours is"):
        race({"bare": Walk(1.0), "ours": Walk(step)}, rounds=3, closeness=1e-3)


def cell(**values: object) -> Cell:
    made = {"attack": "foe", "share": 0.2, "split": "iid", "seed": 1, "rule": "recommended"}
    return Cell(**{**made, "accuracy": 0.9, "kept": 0.98, "success": None, "seconds": 1.0, **values})


def test_findings_of_the_robust_bench_count_cells_and_see_what_is_missed() -> None:
    """What is asked stands beside what was found; runs without attackers and other rules are not judged."""
    good = [cell(seed=n) for n in range(99)]
    clean = cell(attack="none", kept=0.1)
    (found,) = findings([*good, clean, cell(kept=0.969)])
    assert (found.good, found.cells, found.missed) == (99, 100, False)
    assert "foe 20% iid seed 1: 96.9%" in str(found)
    (found,) = findings([*good[:-1], clean, cell(kept=0.969), cell(kept=0.0)])
    assert found.missed and "MISSED" in str(found)
    assert not any(
        f.missed for f in findings([cell(rule="mean", kept=0.0), cell(split="dirichlet(1)", share=0.4)])
    )
    doors = [cell(attack="backdoor", success=s, kept=k) for s, k in ((0.04, 1.0), (0.06, 1.0), (0.01, 0.98))]
    assert [(f.good, f.cells) for f in findings(doors)] == [(3, 3), (1, 3)]
    named = [Alarm("foe", "iid", 1, 4, 3, 16, 1), Alarm("none", "dirichlet(0.3)", 1, 0, 0, 20, 1)]
    assert [(f.good, f.cells, f.missed) for f in told(named)] == [(3, 4, False), (3, 4, True), (19, 20, True)]


def test_the_robust_bench_goes_on_from_its_file(tmp_path: Path) -> None:
    """What stands in the file is not run again: here nothing is left to run."""
    names = ["none", *(p.name for p in parts("attack"))]
    sheet = Sheet(
        [cell(attack=a, split=split, rule="mean") for a in names for split in SPLITS],
        [
            Masked(a, bucket, 0.2, split, 1, "example", 8.0, 0.9, 0.98, None, 1.0)
            for a in names
            for bucket in (0, 2, 3)
            for split in SPLITS
        ],
        [Alarm(a, split, 1, 4, 4, 16, 0) for a in names[1:] for split in SPLITS]
        + [Alarm("none", "dirichlet(0.3)", 1, 0, 0, 20, 0)],
    )
    path = tmp_path / "robust.json"
    assert Sheet.read(path) == Sheet([], [], [])
    sheet.write(path)
    found = Sheet.read(path)
    assert found == sheet
    asked = Namespace(only=[], rules=["mean"], seeds=[1], splits=list(SPLITS), shares=[0.2])
    assert list(cells(asked, found.cells)) == []
    assert list(masked.cells(_attacks([]), SPLITS, [1], found.masked)) == []
    assert list(alarms([1], found.alarms)) == found.alarms


def test_findings_under_masks_say_what_was_promised() -> None:
    made = [Masked("foe", 2, 0.2, "iid", n, "example", 7.9999, 0.9, 0.98, None, 1.0) for n in range(19)]
    (found,) = hidden([*made, Masked("ipm", 2, 0.2, "iid", 0, "example", 7.9999, 0.9, 0.96, None, 1.0)])
    assert (found.good, found.cells, found.missed) == (19, 20, False)
    assert "buckets of 2, unit example, epsilon 8.000" in str(found)
    (found,) = hidden([Masked("foe", 0, 0.2, "iid", 1, "example", 7.9999, 0.1, 0.1, None, 1.0)])
    assert not found.missed, "the control is to collapse"
