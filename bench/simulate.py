"""Local training and the sum of the weighted updates, ours against the bare PyTorch loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atoll.core.message import FitContext
from atoll.core.update import Update

from .rows import Disagreement, Maker, Row, Side, race
from .sampling import SEED, cohort, streams
from .workloads import WORKLOADS, Workload

CLOSE = 0.05  # of the first round's step; 1e-6 is usual, see rows.agree
SAME = 0.005  # accuracy after all rounds
AGAINST = "bare PyTorch loop, one thread"


class Ours:
    """A side of the bench: `fit_many` on the cohort, then the weighted mean; see rows.Side."""

    def __init__(self, work: Workload, threads: int) -> None:
        self.work, self.threads = work, threads
        self.shards = work.shards()
        self.params: Update = work.learner.init(np.random.default_rng(SEED))
        self.engine = work.learner.engine

    def play(self, r: int) -> None:
        """One round."""
        clients = cohort(self.work, r)
        own = streams(clients, r)
        ctxs = [FitContext(key, round=r, client=client) for key, client in zip(own, clients, strict=True)]
        datas = [self.shards[client] for client in clients]
        answers = self.work.learner.fit_many(self.params, datas, ctxs, threads=self.threads)
        total, scaled = np.zeros_like(self.params.buffer), np.empty_like(self.params.buffer)
        for answer in answers:
            total += np.multiply(answer.update.buffer, answer.weight, out=scaled)
        total /= sum(answer.weight for answer in answers)
        self.params = Update(self.params.layout, self.params.buffer + total)

    def weights(self) -> NDArray[np.float32]:
        """The global model as one vector."""
        return self.params.buffer

    def accuracy(self) -> float:
        """On the test rows."""
        return float(self.work.learner.evaluate(self.params, self.work.load().test)["accuracy"])


def rows(
    cores: Sequence[int] = (1, 2), only: str = "", ours: Maker = Ours, rounds: int | None = None
) -> list[Row]:
    """Every workload whose name contains `only`, on each number of cores.

    `ours` makes the side that is timed: a later step puts the whole simulator there.
    Raises Disagreement where two sides did not learn the same.
    """
    from .bare import Bare

    found = []
    for work in WORKLOADS:
        if only in work.name:
            sides: dict[str, Side] = {"bare": Bare(work)}
            sides |= {f"{n} core{'s' * (n > 1)}": ours(work, n) for n in cores}
            found += _rows(work, sides, rounds or work.rounds)
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
