"""Where clients' data are: trains those a task names, keeps what must stay with each of them.

A client's own state (error feedback, SCAFFOLD's control, a personal head) is staged when its
contribution leaves and committed only when a later task says the contribution was used. So a
client that was too late, or whose round was lost, goes on from what the server believes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple

from ..core.edge import Answer, Task, contribute, merge_answers
from ..core.errors import AtollError
from ..core.message import Contribution, FitContext, Learner, fit_many
from ..core.metrics import lift
from ..core.rng import Rng
from .algorithm import Algorithm

CHUNK = 1 << 26  # bytes of updates held at once: 64 MiB

Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class Held(NamedTuple):
    """One client's state: of its learner, and of its side of the chain."""

    learner: Any = None
    chain: Any = None


@dataclass
class Local:
    """Answers tasks for the clients in `train` (id -> data); `test` holds their own test rows.

    `key`: the run's random stream. Clients are trained in chunks whose updates fill CHUNK bytes,
    or as many as the learner's own `chunk`. Results never depend on `spread`, which runs them.
    """

    learner: Learner
    algorithm: Algorithm
    train: Mapping[int, Any]
    test: Mapping[int, Any]
    key: Rng
    spread: Spread = map

    def __post_init__(self) -> None:
        self.committed: dict[int, Held] = {}
        self.staged: dict[int, tuple[int, Held]] = {}

    def answer(self, task: Task) -> Answer:
        """What these clients contribute to the round, or how the model does on their data."""
        for client, used in zip(task.clients, task.used, strict=True):
            self._settle(client, used)
        if task.want == "evaluate":
            return self._evaluate(task)
        size = getattr(self.learner, "chunk", None) or max(1, CHUNK // max(task.params.buffer.nbytes, 1))
        chunks = [task.clients[i : i + size] for i in range(0, len(task.clients), size)]
        aggregator = self._aggregator(task)
        answer = Answer((), None)
        for fresh, held in self.spread(lambda clients: self._fit(task, clients), chunks):
            self.staged |= {client: (task.round, state) for client, state in held.items()}
            answer = merge_answers(aggregator, answer, fresh)
        return answer

    def _settle(self, client: int, used: int) -> None:
        """Commit what was staged if its round was used; drop it otherwise."""
        if client in self.staged:
            made, held = self.staged.pop(client)
            if used == made:
                self.committed[client] = held

    def _aggregator(self, task: Task) -> Any:
        return self.algorithm.rule.at(task.points, task.cohort, task.key)  # type: ignore[arg-type]

    def _fit(self, task: Task, clients: Sequence[int]) -> tuple[Answer, dict[int, Held]]:
        """Train one chunk: its answer, and the state to stage for each client that has any."""
        made, failed = self._train(task, clients)
        if not made:
            return Answer((), None, failed), {}
        if self.algorithm.weigh == "equal":
            for _, c in made:
                c.weight = float(c.weight > 0)
        answer, after = self._contribute(task, made)
        held = {client: Held(c.state, after.get(client)) for client, c in made if client in answer.clients}
        return replace(answer, failed={**answer.failed, **failed}), {
            c: h for c, h in held.items() if h.learner is not None or h.chain is not None
        }

    def _contribute(
        self, task: Task, made: Sequence[tuple[int, Contribution]]
    ) -> tuple[Answer, dict[int, Any]]:
        """What leaves for the wire. If one contribution is refused, it is named and the others go alone."""
        states = {client: self._held(client).chain for client, _ in made}
        aggregator = self._aggregator(task)
        try:
            return contribute(made, self.algorithm.chain, states, aggregator, task, self.key)
        except AtollError as error:
            if len(made) == 1:
                return Answer((), None, {made[0][0]: _reason(error)}), {}
        alone = [self._contribute(task, [one]) for one in made]
        answer = reduce(partial(merge_answers, aggregator), (a for a, _ in alone))
        return answer, {client: state for _, after in alone for client, state in after.items()}

    def _train(
        self, task: Task, clients: Sequence[int]
    ) -> tuple[list[tuple[int, Contribution]], dict[int, str]]:
        """The chunk's contributions. If one client fails, it is named and the others go on alone."""
        key = self._round(task)
        ctxs = [self._context(key, task, client) for client in clients]
        try:
            together = fit_many(self.learner, task.params, [self.train[c] for c in clients], ctxs)
            return list(zip(clients, together, strict=True)), {}
        except Exception as error:  # noqa: BLE001  one client's bug must not take the round down
            if len(clients) == 1:
                return [], {clients[0]: _reason(error)}
        alone = [self._train(task, (client,)) for client in clients]
        return [c for made, _ in alone for c in made], {
            c: r for _, failed in alone for c, r in failed.items()
        }

    def _held(self, client: int) -> Held:
        return self.committed.get(client, Held())

    def _round(self, task: Task) -> Rng:
        return self.key.at("clients", task.round)

    def _context(self, key: Rng, task: Task, client: int) -> FitContext:
        return FitContext(key.at(client), task.round, client, self._held(client).learner)

    def _evaluate(self, task: Task) -> Answer:
        """Each client's metrics by its id; clients without test rows are left out.

        A learner with `personal(params, rows, ctx)` makes its own model of the task's first, from
        the client's training rows.
        """
        personal = getattr(self.learner, "personal", lambda params, rows, ctx: params)
        found: dict[int, Any] = {}
        failed: dict[int, str] = {}
        for client in task.clients:
            rows = self.test.get(client)
            if rows is None or not len(rows):
                continue
            try:
                ctx = self._context(self._round(task), task, client)
                params = personal(task.params, self.train[client], ctx)
                metrics = self.learner.evaluate(params, rows, ctx)
                found[client] = {name: lift(m, float(len(rows))) for name, m in metrics.items()}
            except Exception as error:  # noqa: BLE001
                failed[client] = _reason(error)
        return Answer(tuple(found), found, failed)


def _reason(error: Exception) -> str:
    if isinstance(error, AtollError):
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error))
