"""Where clients' data are: trains those a task names, keeps what must stay with each of them.

A client's own state (error feedback, SCAFFOLD's control, a personal head) is staged when its
contribution leaves and committed only when a later task to train says the contribution was used. So
a client that was too late, or whose round was lost, goes on from what the server believes. A request
to evaluate commits and drops nothing: the coordinator may yet restart at an earlier round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.edge import Answer, Task, contribute, lifted, merge_answers
from ..core.errors import ConfigError, MisuseError, ProtocolError
from ..core.message import Contribution, FitContext, Learner, fit_many
from ..core.metrics import lift
from ..core.rng import Rng
from ..privacy import dp
from .algorithm import Algorithm
from .exchange import Seat
from .failure import NOT_LET_IN, reason

if TYPE_CHECKING:
    from .waiting import Waiting

CHUNK = 1 << 26  # bytes of updates held at once: 64 MiB


class Held(NamedTuple):
    """One client's state: of its learner, and of its side of the chain."""

    learner: Any = None
    chain: Any = None


NOTHING = Held()


@dataclass
class Local:
    """Answers tasks for the clients in `train` (id -> data); `test` holds their own test rows.

    `key`: the run's random stream. Clients are trained in chunks whose updates fill CHUNK bytes,
    or as many as the learner's own `chunk`; how many cores a chunk takes is the learner's affair.
    `raw`: answer with each client's reply as it is, for others to lift; a device that holds one client does.
    `seat`: where these clients sit in sums that are secure. `waiting`: updates of theirs that wait for one.
    """

    learner: Learner
    algorithm: Algorithm
    train: Mapping[int, Any]
    test: Mapping[int, Any]
    key: Rng
    raw: bool = False
    seat: Seat = field(default_factory=lambda: Seat(token_bytes))

    def __post_init__(self) -> None:
        self.committed: dict[int, Held] = {}
        self.staged: dict[int, tuple[int, Held]] = {}
        self.waiting: dict[int, Waiting] = {}

    def trains(self, task: Task) -> bool:
        """Whether a task is to train, and not to measure, nor to give what was learnt before."""
        return task.want == "fit" and not (task.note and self.algorithm.buffer)

    def answer(self, task: Task) -> Answer:
        """What these clients contribute to the round, or how the model does on their data."""
        if task.want == "evaluate":
            return self._evaluate(task)
        if task.want == "note":
            return self.algorithm.exchange.reply(self, task)
        if not self.trains(task):
            from .waiting import give  # it knows buffers, and they know us

            return give(self, task)
        for client, used in zip(task.clients, task.used, strict=True):
            self._settle(client, used)
        size = getattr(self.learner, "chunk", None) or max(1, CHUNK // max(task.params.buffer.nbytes, 1))
        chunks = [task.clients[i : i + size] for i in range(0, len(task.clients), size)]
        aggregator = self.aggregator(task)
        answer = Answer(())
        for clients in chunks:
            fresh, held = self._fit(task, clients)
            self.staged |= {client: (task.round, state) for client, state in held.items()}
            answer = merge_answers(aggregator, answer, fresh)
        return answer

    def contributions(self, task: Task, clients: Sequence[int]) -> list[Contribution]:
        """What these clients learn from the task, as their learner gives it."""
        key = self._round(task)
        ctxs = [self._context(key, task, client) for client in clients]
        made = fit_many(self.learner, task.params, [self.train[c] for c in clients], ctxs)
        for c in made:
            if not isinstance(c, Contribution):
                raise MisuseError(
                    f"fit answers with Contribution(change, weight=rows), this one gave {type(c).__name__}"
                )
        return made

    def _settle(self, client: int, used: int) -> None:
        """Commit what was staged if its round was used; drop it otherwise."""
        if client in self.staged:
            self.committed[client] = self._held(client, used)
            del self.staged[client]

    def _held(self, client: int, used: int = -1) -> Held:
        """A client's state after the last of its contributions that was used, in round `used`."""
        made, held = self.staged.get(client, (None, None))
        return held if held is not None and made == used else self.committed.get(client, NOTHING)

    def aggregator(self, task: Task) -> Any:
        """What adds these clients' replies to a task; None where others do."""
        return None if self.raw else self.algorithm.rule.at(task.points, task.cohort, task.key)  # type: ignore[arg-type]

    def _fit(self, task: Task, clients: Sequence[int]) -> tuple[Answer, dict[int, Held]]:
        """Train one chunk: its answer, and the state to stage for each client that has any.

        If something goes wrong, each client is tried alone, and those at fault are named.
        """
        try:
            return self._together(task, clients)
        except Exception as error:  # noqa: BLE001  one client's bug must not take the round down
            if len(clients) == 1:
                return Answer((), failed={clients[0]: self.said(error)}), {}
        answer = Answer(())
        held: dict[int, Held] = {}
        for client in clients:
            alone, its = self._fit(task, (client,))
            answer = merge_answers(self.aggregator(task), answer, alone)
            held |= its
        return answer, held

    def said(self, error: Exception) -> str:
        """What may be told of a failure: under a promise of privacy nothing that depends on rows."""
        if self.algorithm.private and not isinstance(error, ConfigError):
            return type(error).__name__
        return reason(error)

    def _together(self, task: Task, clients: Sequence[int]) -> tuple[Answer, dict[int, Held]]:
        made = self.contributions(task, clients)
        if self.algorithm.weigh == "equal":
            for c in made:
                c.weight = float(c.weight > 0)
        if self.algorithm.private:
            for c in made:
                c.metrics = {}  # no noise covers them
        states = {client: self._held(client).chain for client in clients}
        pairs = list(zip(clients, made, strict=True))
        chain = dp.mine(self.algorithm.chain, self.seat.coins)
        answer, after = contribute(pairs, chain, states, None, task, self.key)
        answer = self._outgoing(task, answer)
        if not self.raw:
            try:
                answer = lifted(self.aggregator(task), answer)
            except ProtocolError as error:
                raise ProtocolError(f"{NOT_LET_IN}{error}") from None
        kept = {client: Held(c.state, after.get(client)) for client, c in pairs}
        return answer, {c: h for c, h in kept.items() if h.learner is not None or h.chain is not None}

    def _outgoing(self, task: Task, answer: Answer) -> Answer:
        """The replies as they leave their clients, or wait there."""
        if self.algorithm.buffer is None:
            return self.algorithm.exchange.outgoing(self, task, answer)
        from .waiting import keep

        return keep(self, task, answer)

    def _round(self, task: Task) -> Rng:
        key = dp.row_stream(self.seat.coins) if dp.by_rows(self.algorithm.chain) else self.key
        return key.at("clients", task.round)

    def _context(self, key: Rng, task: Task, client: int, used: int = -1) -> FitContext:
        return FitContext(key.at(client), task.round, client, self._held(client, used).learner)

    def _evaluate(self, task: Task) -> Answer:
        """Each client's metrics by its id; clients without test rows are left out.

        A learner with `personal(params, rows, ctx)` makes its own model of the task's first, from
        the client's training rows.
        """
        personal = getattr(self.learner, "personal", lambda params, rows, ctx: params)
        found: dict[int, Any] = {}
        failed: dict[int, str] = {}
        for client, used in zip(task.clients, task.used, strict=True):
            rows = self.test.get(client)
            if rows is None or not len(rows):
                continue
            try:
                ctx = self._context(self._round(task), task, client, used)
                params = personal(task.params, self.train[client], ctx)
                found[client] = measure(self.learner, params, rows, ctx)
            except Exception as error:  # noqa: BLE001
                failed[client] = reason(error)
        return Answer(tuple(found), found, failed)


def measure(learner: Learner, params: Any, rows: Any, ctx: FitContext) -> dict[str, Any]:
    """The learner's metrics on some rows, ready to be merged. Raises MisuseError if they have no names."""
    found = learner.evaluate(params, rows, ctx)
    if not isinstance(found, Mapping):
        raise MisuseError(
            'evaluate answers with metrics by name, as in {"loss": 0.5};'
            f" this one gave {type(found).__name__}"
        )
    return {name: lift(value, float(len(rows))) for name, value in found.items()}
