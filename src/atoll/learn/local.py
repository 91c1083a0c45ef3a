"""Where clients' data are: trains those a task names, keeps what must stay with each of them.

A client's own state (error feedback, SCAFFOLD's control, a personal head) is staged when its
contribution leaves and committed only when a later task says the contribution was used. So a
client that was too late, or whose round was lost, goes on from what the server believes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..core.edge import Answer, Task, contribute, merge_answers
from ..core.errors import AtollError
from ..core.message import Contribution, FitContext, Learner, fit_many
from ..core.metrics import lift
from ..core.rng import Rng
from .algorithm import Algorithm

Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class _Held(NamedTuple):
    """One client's state: of its learner, and of its side of the chain."""

    learner: Any = None
    chain: Any = None


@dataclass
class Local:
    """Answers tasks for the clients in `train` (id -> data); `test` holds their own test rows.

    `key`: the run's random stream. `chunk`: clients trained together; the bytes of a result may
    depend on it for some engines, on `spread` (how chunks are run at once) never.
    """

    learner: Learner
    algorithm: Algorithm
    train: Mapping[int, Any]
    test: Mapping[int, Any]
    key: Rng
    chunk: int = 16
    spread: Spread = map

    def __post_init__(self) -> None:
        self.committed: dict[int, _Held] = {}
        self.staged: dict[int, tuple[int, _Held]] = {}

    def answer(self, task: Task) -> Answer:
        """What these clients contribute to the round, or how the model does on their data."""
        for client, used in zip(task.clients, task.used, strict=True):
            self._settle(client, used)
        if task.want == "evaluate":
            return self._evaluate(task)
        chunks = [task.clients[i : i + self.chunk] for i in range(0, len(task.clients), self.chunk)]
        aggregator = self._aggregator(task)
        answer = None
        for made, failed, partial, states in self.spread(lambda clients: self._fit(task, clients), chunks):
            for client, c in made:
                if c.state is not None or client in states:
                    self.staged[client] = (task.round, _Held(c.state, states.get(client)))
            fresh = Answer(tuple(client for client, _ in made), partial, failed)
            answer = fresh if answer is None else merge_answers(aggregator, answer, fresh)
        return answer or Answer((), None, {})

    def _settle(self, client: int, used: int) -> None:
        """Commit what was staged if its round was used; drop it otherwise."""
        if client in self.staged:
            made, held = self.staged.pop(client)
            if used == made:
                self.committed[client] = held

    def _aggregator(self, task: Task) -> Any:
        return self.algorithm.rule.at(task.points, task.cohort, task.key)  # type: ignore[arg-type]

    def _fit(self, task: Task, clients: Sequence[int]) -> tuple[Any, dict[int, str], Any, dict[int, Any]]:
        """One chunk. A client that fails is named; the others of its chunk are trained without it."""
        ctxs = [self._context(task, client) for client in clients]
        failed: dict[int, str] = {}
        made: list[tuple[int, Contribution]] = []
        try:
            contributions = fit_many(self.learner, task.params, [self.train[c] for c in clients], ctxs)
            made = list(zip(clients, contributions, strict=True))
        except Exception as error:  # noqa: BLE001  one client's bug must not take the round down
            if len(clients) == 1:
                return [], {clients[0]: _reason(error)}, None, {}
            for client, ctx in zip(clients, ctxs, strict=True):
                try:
                    made.append((client, fit_many(self.learner, task.params, [self.train[client]], [ctx])[0]))
                except Exception as own:  # noqa: BLE001
                    failed[client] = _reason(own)
        if self.algorithm.weigh == "equal":
            for _, c in made:
                c.weight = float(c.weight > 0)
        if not made:
            return [], failed, None, {}
        states = {client: self._held(client).chain for client in clients}
        partial, after = contribute(made, self.algorithm.chain, states, self._aggregator(task), task, self.key)
        return made, failed, partial, after

    def _held(self, client: int) -> _Held:
        return self.committed.get(client, _Held())

    def _context(self, task: Task, client: int) -> FitContext:
        key = self.key.at("client", client, task.round)
        return FitContext(key, task.round, client, self._held(client).learner)

    def _evaluate(self, task: Task) -> Answer:
        """Each client's metrics by its id; clients without test rows are left out."""
        found: dict[int, Any] = {}
        failed: dict[int, str] = {}
        for client in task.clients:
            rows = self.test.get(client)
            if rows is None or not len(rows):
                continue
            try:
                metrics = self.learner.evaluate(task.params, rows, self._context(task, client))
                found[client] = {name: lift(m, float(len(rows))) for name, m in metrics.items()}
            except Exception as error:  # noqa: BLE001
                failed[client] = _reason(error)
        return Answer(tuple(found), found, failed)


def _reason(error: Exception) -> str:
    if isinstance(error, AtollError):
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error))
