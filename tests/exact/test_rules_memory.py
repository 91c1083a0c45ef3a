"""What robust rules hold of the updates they look at: blocks of columns and a few models, not all of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.learn.defend import recommended
from atoll.learn.rules import Rule, Stack

CLIENTS, SIZE = 50, 1_000_000
MODEL = 4 * SIZE
MOST = 8  # models; all updates are 50
RULES = {
    "average": at.average(),
    "median": at.median(),
    "trimmed_mean": at.trimmed_mean(0.2),
    "krum": at.krum(0.2),
    "multi_krum": at.multi_krum(0.2),
    "geometric_median": at.geometric_median(),
    "centred_clipping": at.centred_clipping(),
    "fltrust": at.fltrust(0),
    "nnm, trimmed_mean": at.nnm(0.2, at.trimmed_mean(0.2)),
    "recommended": recommended(0.2),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Updates in a file, mapped: what a federation's answers are, once they are large."""
    path: Path = tmp_path_factory.mktemp("rules") / "updates"
    whole = np.memmap(path, np.float32, "w+", shape=(CLIENTS, SIZE))
    rng = np.random.default_rng(0)
    common = rng.standard_normal(SIZE, dtype=np.float32) / 3
    for row in whole:
        row[:] = common + rng.standard_normal(SIZE, dtype=np.float32)
    whole.flush()
    return list(np.memmap(path, np.float32, "r", shape=(CLIENTS, SIZE)).view(np.ndarray))


def models(work: Callable[[], object]) -> float:
    """The most that `work` held at a time, in models (numpy's buffers are traced)."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MODEL
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_holds_a_few_models(name: str, rows: list[Any]) -> None:
    rule: Rule = RULES[name]
    held = models(lambda: rule.walk(Stack.of(rows, range(CLIENTS))))
    assert held < MOST, f"{name} held {held:.1f} models"


def test_what_takes_all_updates_at_once_is_seen_by_the_same_measure(rows: list[Any]) -> None:
    assert models(lambda: np.median(np.stack(rows), axis=0)) > CLIENTS
