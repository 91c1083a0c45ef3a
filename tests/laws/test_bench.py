"""The speed bench believes no time of a side that did other work."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

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
