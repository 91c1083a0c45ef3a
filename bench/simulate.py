"""Whole rounds of `atoll.simulate`, cohort, training and exact sum, against the bare PyTorch loop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll import Examples, Job, Run, sample, simulate
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update

from .rows import Disagreement, Maker, Row, Side, race
from .sampling import SEED, start
from .workloads import WORKLOADS, Workload

CLOSE = 0.05  # of the first round's step; 1e-6 is usual, see rows.agree
SAME = 0.005  # accuracy after all rounds
AGAINST = "bare PyTorch loop, one thread"
CTX = FitContext(Rng.of(SEED))


class Ours:
    """A side of the bench: `atoll.simulate` itself, held back after every round; see rows.Side.

    It runs in a thread of its own and trains a round when `play` lets it, so that sides can take
    turns; handing over costs some 50 µs, on our side of the scale.
    """

    def __init__(self, work: Workload, workers: int, rounds: int) -> None:
        self.work, self.workers, self.rounds, self.played = work, workers, rounds, 0
        self.engine = getattr(work.learner, "chosen", work.learner.engine)
        self._data = [Examples(*shard) for shard in work.shards()]
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._all = threading.Thread(target=self._simulate, daemon=True)
        self._all.start()
        self._done.acquire()

    def _simulate(self) -> None:
        self._run = self._trained(self.rounds, watch=self._hold)

    def _hold(self, record: dict[str, Any]) -> None:
        self._done.release()
        if record["round"] < self.rounds:
            self._go.acquire()

    def _trained(self, rounds: int, **options: Any) -> Run:
        job = Job(
            self.work.learner, cohort=sample(count=self.work.cohort), rounds=rounds, every=rounds, sites=False
        )
        return simulate(job, self._data, SEED, workers=self.workers, **options)

    def play(self, r: int) -> None:
        """One round."""
        self._go.release()
        self._done.acquire()
        self.played = r + 1

    def weights(self) -> NDArray[np.float32]:
        """The global model as one vector: at the start, after one round, or after all of them."""
        return (self._model() if self.played else start(self.work)).buffer

    def _model(self) -> Update:
        if self.played == self.rounds:
            self._all.join()
            return self._run.params
        return self._trained(self.played).params

    def accuracy(self) -> float:
        """On the test rows."""
        return float(self.work.learner.evaluate(self._model(), self.work.load().test, CTX)["accuracy"])


def rows(
    cores: Sequence[int] = (1, 2), only: str = "", ours: Maker = Ours, rounds: int | None = None
) -> list[Row]:
    """Every workload whose name contains `only`, on each number of cores.

    Raises Disagreement where two sides did not learn the same.
    """
    from .bare import Bare

    found = []
    for work in WORKLOADS:
        if only in work.name:
            sides: dict[str, Side] = {"bare": Bare(work)}
            asked = rounds or work.rounds
            sides |= {f"{n} core{'s' * (n > 1)}": ours(work, n, asked) for n in cores}
            found += _rows(work, sides, asked)
    return found


def _rows(work: Workload, sides: dict[str, Side], rounds: int) -> list[Row]:
    seconds = race(sides, rounds, CLOSE)
    accuracy = {name: side.accuracy() for name, side in sides.items()}
    found = []
    for name, side in list(sides.items())[1:]:
        if abs(accuracy[name] - accuracy["bare"]) > SAME:
            raise Disagreement(
                f"{work.name}: accuracy {accuracy[name]:.4f}, the bare loop's {accuracy['bare']:.4f}"
            )
        found.append(
            Row(
                name=f"{work.name}, {name}",
                value=seconds[name],
                unit="s/round",
                ratio=seconds["bare"] / seconds[name],
                against=AGAINST,
                accuracy=accuracy[name],
                accuracy_against=accuracy["bare"],
                target=work.goals[0] if name == "1 core" else work.goals[1],
                engine=side.engine,
                data=work.load().name,
            )
        )
    return found
