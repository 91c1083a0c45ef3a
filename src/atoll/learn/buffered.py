"""Asynchronous learning: clients are always at work, the model moves when enough have come back.

FedBuff: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba 2022, "Federated learning with
buffered asynchronous aggregation", alg. 1:

    w += lr / K * Σ s(tau_i) D_i       K updates D_i; tau_i steps passed since i got its model

FedAsync: Xie, Koyejo, Gupta 2019, "Asynchronous federated optimization", alg. 1, §5.2:

    w = (1 - a_t) w + a_t w_k          a_t = a * s(tau), w_k the client's model

    s(tau) = (1 + tau)**-exponent                        polynomial
    s(tau) = 1 / (exponent * (tau - after) + 1), tau > after, else 1    hinge
    s(tau) = 1                                           constant

`concurrency` clients are in flight; when one comes back, another is drawn uniformly from those
who are idle. Nobody is twice in a buffer, so what a client keeps for itself is committed exactly
when its update is. A dead client costs its place only until its deadline. Server steps count as
rounds. A client's role is that of learn/rounds.py. Where the job's exchange shows sums only, updates wait at
their clients until the buffer is full (waiting.py).

A run cut off goes on with the same clients in flight, each with the model it had. Without a world
that gives the bytes of the undisturbed run; with one, the clock of those in flight starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

from ..core.aggregate import Aggregator, Points, Reply, fold
from ..core.edge import Answer, Task, lifted, wire
from ..core.errors import ConfigError, QuorumError
from ..core.protocol import Party
from ..core.registry import part
from ..core.transform import chain
from .algorithm import Algorithm, Roles
from .rounds import (
    PATIENCE,
    Plan,
    Progress,
    apply,
    begin,
    evaluate,
    held,
    held_back,
    pause,
    posts,
    report,
    update_points,
    why,
)
from .select import Everyone, Sample
from .server import mean, positive, sgd

Staleness: TypeAlias = Literal["polynomial", "hinge", "constant"]
HELD_BACK = 0.01  # of a failure: who may not work now says so as often as its word is not heard in time


@dataclass(frozen=True)
class Buffered:
    """`size`: updates a step takes. `concurrency`: clients in flight, None for the cohort's size.

    `say(tau)`: an update's weight. `oldest`: the largest tau that is taken, None for any. `mix`:
    move towards the client's model (FedAsync), not along its update.
    """

    size: int
    concurrency: int | None
    say: Callable[[int], float]
    oldest: int | None
    mix: bool = False


@dataclass
class Fleet:
    """Clients at work: `flights` are they and their tasks by the number of the post, `turn` counts the
    draws.
    """

    p: Party
    plan: Plan
    rule: Buffered
    turn: int = 0
    flights: dict[int, tuple[int, Task]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """See who stands under which child now."""
        self.holder = {c: peer for peer, clients in posts(self.plan).items() for c in clients}

    async def fill(self, now: Progress, buffer: Buffer) -> None:
        """Draw clients, uniformly from the idle ones, until enough are in flight."""
        if type(self.plan.children) is not dict:  # clients move
            self.look()
        busy = {client for client, _ in self.flights.values()} | buffer.used.keys()
        idle = [c for c in self.crew() if c not in busy and c in self.holder]
        enough = concurrency(self.rule, self.plan, max(len(self.crew()), self.rule.size))
        while idle and len(self.flights) < enough:
            draw = self.p.key.at("draw", self.turn).generator().integers(len(idle))
            self.turn += 1
            client = idle.pop(int(draw))
            await self.send(now, client)
            buffer.down += self.down(now, client)

    def crew(self) -> tuple[int, ...]:
        """Everybody who may be drawn."""
        return self.plan.clients

    def down(self, now: Progress, client: int) -> int:
        """Bytes of models that a task brings down."""
        return wire(now.params)

    def below(self, client: int) -> tuple[int, ...]:
        """For whom its task is."""
        return (client,)

    def task(self, now: Progress, client: int, below: tuple[int, ...]) -> Task:
        """What a client is asked, for those below it."""
        points = self.points(now, self.rule.size)
        key, used = self.p.key.at("round", now.round), (now.used.get(client, -1),)
        return Task(now.round, key, below, used, now.params, points, (client,))

    def points(self, now: Progress, count: int) -> Points:
        """Binary points for a sum of so many updates, each of which weighs 1 at most."""
        return update_points(replace(self.plan, max_weight=1.0), now.params, count)

    def aggregator(self, task: Task) -> Aggregator:
        """What the answer to a task was summed by."""
        return self.plan.algorithm.rule.at(task.points, task.cohort, task.key)  # type: ignore[arg-type]

    async def send(self, now: Progress, client: int, below: tuple[int, ...] = ()) -> None:
        """Post the model to a client; `below`: for whom, where it was posted before."""
        task = self.task(now, client, below or self.below(client))
        number = await self.p.post(self.holder.get(client, ""), task, deadline=self.plan.deadline)
        self.flights[number] = client, task

    async def landed(self) -> tuple[int, Task, Answer]:
        """The next client to come back, with what it brings."""
        posted = await self.p.next()
        client, task = self.flights.pop(posted.number)
        return client, task, posted.body or Answer((), failed={client: posted.reason})

    def update(self, now: Progress, task: Task, answer: Answer) -> Reply:
        """The update that an answer brings, all by itself; of weight 0 if there is none."""
        then = self.aggregator(task)
        total = then.finish(lifted(then, answer).partial)
        if not total.weight:
            return Reply(total.update, 0.0)
        update = total.update if total.weight == 1 else total.update.scale(1.0 / total.weight)
        if self.rule.mix:
            update = update + task.params - now.params
        return Reply(update, 1.0, total.metrics)

    async def total(self, now: Progress, buffer: Buffer) -> tuple[Answer, Aggregator] | None:
        """The sum of a full buffer, in fixed point and so in any order, and what finishes it; None where it
        failed, and the buffer is not full any more.
        """
        cohort = tuple(sorted(buffer.used))
        rule = self.plan.algorithm.rule.at(
            self.points(now, self.rule.size), cohort, self.p.key.at("round", now.round)
        )
        return Answer(cohort, fold(rule, list(buffer.replies.items()))), rule

    def saved(self) -> Any:
        """All that `resume` needs: draws so far, who has which version, and those versions."""
        out = [(client, task.round, list(task.clients)) for client, task in self.flights.values()]
        return self.turn, out, {task.round: task.params for _, task in self.flights.values()}

    async def resume(self, now: Progress) -> None:
        """After a restart: the same clients again, each with the model it had, in the same order."""
        self.turn, out, models = now.more
        for client, version, *below in out:
            here = tuple(below[0]) if below else ()
            await self.send(replace(now, round=version, params=models[version]), client, here)


@dataclass
class Buffer:
    """What has come in since the last step: `replies` by client, and the version that each is `used` for."""

    replies: dict[int, Reply] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    dropped: int = 0
    up: int = 0
    down: int = 0

    def take(self, fleet: Fleet, now: Progress, client: int, task: Task, answer: Answer) -> bool:
        """Put an update in, weighed by its age, or count it as too old; False if there is none."""
        self.failed.update(answer.failed)
        self.up += answer.sent
        if not answer.clients:
            return False
        rule, age = fleet.rule, now.round - task.round
        if rule.oldest is not None and age > rule.oldest:
            self.dropped += 1
            return True
        reply = fleet.update(now, task, answer)
        if not reply.weight:
            self.failed[client] = "its contribution has weight 0"
            return False
        self.replies[client] = replace(reply, weight=rule.say(age))
        self.used[client] = task.round
        return True

    def lose(self, failed: Mapping[int, str]) -> None:
        """Take out whose updates cannot be summed after all, and why not."""
        self.failed.update(failed)
        for client in failed:
            self.replies.pop(client, None)
            self.used.pop(client, None)

    def record(self, now: Progress, seconds: float) -> dict[str, Any]:
        """The record of the step that led to `now`; `staleness` is the mean age, `ages[k]` how many were k
        steps old.
        """
        old = [now.round - 1 - version for version in self.used.values()]
        ages = [old.count(age) for age in range(max(old) + 1)]
        failed = dict(self.failed)
        return {
            "round": now.round,
            "seconds": seconds,
            "cohort": len(old) + len(failed) + self.dropped,
            "clients": len(old),
            "failed": failed,
            "dropped": self.dropped,
            "staleness": sum(old) / len(old),
            "ages": ages,
            "down": self.down,
            "up": self.up,
        }


async def coordinator(
    rule: Buffered, p: Party, plan: Plan, fly: Callable[[Party, Plan, Buffered], Fleet] | None = None
) -> Progress:
    """Keep clients at work and step whenever the buffer is full; resumes from `p.restored`."""
    from .waiting import Ready  # made of what stands here

    fleet = (fly or (Ready if plan.algorithm.buffer else Fleet))(p, plan, rule)
    if not held(plan):
        concurrency(rule, plan, len(fleet.crew()))
    now = p.restored or begin(plan, p)
    if now.round == 0:
        await p.note({"round": 0, **await evaluate(p, plan, now)})
    else:
        await fleet.resume(now)
    while now.round < plan.rounds and not now.over:
        began = p.now
        buffer, answer, whole = await collect(fleet, now)
        now, train = step(fleet, now, buffer, answer, whole)
        record = {**buffer.record(now, p.now - began), "train": train}
        now = await report(p, plan, replace(now, more=fleet.saved()), record)
    return now


async def collect(fleet: Fleet, now: Progress) -> tuple[Buffer, Answer, Aggregator]:
    """A full buffer and its sum. Raises QuorumError if clients fail again and again, the later where they
    hold back by their own policy.
    """
    buffer, empty, failures, waited, crew = Buffer(), 0, 0.0, 0.0, 1
    while True:
        while len(buffer.replies) < fleet.rule.size:
            await fleet.fill(now, buffer)
            if not fleet.flights:
                waited = await pause(fleet.p, fleet.plan, waited)
                continue
            waited = await pause(fleet.p, fleet.plan)
            client, task, answer = await fleet.landed()
            if buffer.take(fleet, now, client, task, answer):
                empty, failures = 0, 0.0
                continue
            empty += 1
            rest = held_back(answer.failed)
            failures += HELD_BACK if rest else 1.0
            crew = max(crew, len(fleet.crew()))  # who moved below an edge was there on its own
            if failures >= PATIENCE * crew:
                raise QuorumError(f"{empty} answers in a row contributed nothing. {why(buffer.failed)}")
            if rest and not fleet.flights:
                await pause(fleet.p, fleet.plan, waited)
        total = await fleet.total(now, buffer)
        if total is not None:
            return buffer, *total


def step(
    fleet: Fleet, now: Progress, buffer: Buffer, answer: Answer, whole: Aggregator
) -> tuple[Progress, Any]:
    """The buffer's sum back through the chain onto the model."""
    after, train = apply(fleet.plan, now, whole, answer, fleet.p.key.at("round", now.round))
    return replace(after, used={**now.used, **buffer.used}), train


def concurrency(rule: Buffered, plan: Plan, clients: int) -> int:
    """How many of so many clients are in flight. Raises ConfigError where the numbers do not fit."""
    if rule.size > clients:
        raise ConfigError(
            f"{clients} clients, once each, cannot fill a buffer of {rule.size}", "$.algorithm.size"
        )
    if rule.concurrency is not None:
        return min(rule.concurrency, clients)
    match plan.cohort:
        case Everyone():
            return clients
        case Sample(by="uniform") as cohort:
            return cohort.size(clients)
    raise ConfigError(
        "asynchronous learning draws clients uniformly: use sample(...) or everyone()", "$.cohort"
    )


def staleness_weight(kind: Staleness, exponent: float, after: int) -> Callable[[int], float]:
    """s(tau) as at the top of this file. Raises ConfigError for an unknown kind."""
    positive(exponent=exponent)
    match kind:
        case "polynomial":
            return lambda tau: float((1 + tau) ** -exponent)
        case "hinge":
            return lambda tau: 1.0 if tau <= after else 1 / (exponent * (tau - after) + 1)
        case "constant":
            return lambda tau: 1.0
    raise ConfigError(f"staleness is polynomial, hinge or constant, got {kind!r}")


@part("algorithm")
def fedbuff(
    size: int = 10,
    concurrency: int | None = None,
    staleness: Staleness = "polynomial",
    exponent: float = 0.5,
    after: int = 4,
    lr: float = 1.0,
    max_staleness: int | None = None,
) -> Algorithm:
    """Step whenever `size` updates came in, stale ones weigh less (Nguyen et al. 2022).

    `concurrency`: clients at work at once, None for the size of the job's cohort; half of it is a
    good `size`. `max_staleness`: older updates are dropped. A job's `deadline` is for each task.
    """
    _whole(size=size, concurrency=concurrency)
    rule = Buffered(size, concurrency, staleness_weight(staleness, exponent, after), max_staleness)
    values = {
        "size": size,
        "concurrency": concurrency,
        "staleness": staleness,
        "exponent": exponent,
        "after": after,
    }
    values |= {"lr": lr, "max_staleness": max_staleness}
    return _algorithm("fedbuff", rule, lr, values)


@part("algorithm")
def fedasync(
    lr: float = 0.6,
    concurrency: int | None = None,
    staleness: Staleness = "polynomial",
    exponent: float = 0.5,
    after: int = 4,
    max_staleness: int | None = None,
) -> Algorithm:
    """Mix each model that comes in: w = (1 - a) w + a w_k, a = lr * s(tau) (Xie et al. 2019).

    `lr`: above 0, at most 1. `concurrency`, `max_staleness`: as in fedbuff.
    """
    if not lr <= 1:
        raise ConfigError(f"fedasync mixes models: lr must be at most 1, got {lr}")
    _whole(concurrency=concurrency)
    rule = Buffered(1, concurrency, staleness_weight(staleness, exponent, after), max_staleness, mix=True)
    values = {
        "lr": lr,
        "concurrency": concurrency,
        "staleness": staleness,
        "exponent": exponent,
        "after": after,
    }
    return _algorithm("fedasync", rule, lr, {**values, "max_staleness": max_staleness})


def _algorithm(name: str, rule: Buffered, lr: float, values: dict[str, Any]) -> Algorithm:
    steps = chain(sgd(lr), mean(over=rule.size))
    roles = Roles(partial(coordinator, rule), buffer=rule)
    return Algorithm(name, steps, weigh="equal", protocol=roles, values=values)


def _whole(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
