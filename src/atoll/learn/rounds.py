"""Synchronous rounds: pick a cohort, ask it, aggregate, step, evaluate; again until done.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, "Communication-efficient learning of deep
networks from decentralized data", alg. 1, with the two-sided chain in place of the plain mean.
All three roles stand here: `coordinator`, `edge` and `client`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np

from ..core.aggregate import Aggregator, Points, own, points
from ..core.edge import UNASKED, Answer, Task, relay, wire
from ..core.errors import ConfigError, MisuseError, ProtocolError, QuorumError
from ..core.message import Learner
from ..core.metrics import merge_all
from ..core.protocol import Party, Responder
from ..core.registry import nearest
from ..core.rng import Rng
from ..core.transform import Context
from ..core.update import Update, blocks
from ..privacy import dp
from .algorithm import Algorithm, Roles
from .aside import aside, refused, told, witnessed
from .detect import Record
from .exchange import TABLE
from .failure import HELD
from .kernel import spread
from .local import Local
from .select import Choice, Cohort, Everyone
from .stop import Stop

COORDINATOR = "coordinator"  # its name in every run
PATIENCE = 3  # empty rounds in a row that a run survives
PAUSE = 1.0  # seconds between two looks while too few clients may be asked


@dataclass(frozen=True)
class Plan:
    """All a coordinator of rounds needs to know.

    `children`: peers, and the clients each of them answers for; where clients move from one to another
    while it runs, a mapping that changes with them, and `roster` names all there are. `rehome`: seconds
    that clients lost with their child have to turn up under another. `sizes`: rows of each client
    where known. `test`: the model's metrics on rows the coordinator holds, None without.
    `every`: rounds between evaluations; `sites`: whether clients evaluate too. `quorum`: how many
    children must answer, None as the cohort says. `deadline`: seconds a round may take. `wait`: seconds it
    may wait while too few can be asked, None for ever. `secret`: 32 bytes that the keys of noise are made of,
    which nobody else may know. `label`: the federation and the run, which secure sums are bound to.
    `records`: what earlier runs have shown of the clients.
    """

    learner: Learner
    algorithm: Algorithm
    children: Mapping[str, Sequence[int]]
    rounds: int
    cohort: Cohort = field(default_factory=Everyone)
    sizes: Sequence[int] | None = None
    test: Callable[[Update], Mapping[str, Any]] | None = None
    every: int = 1
    sites: bool = True
    stop: Stop | None = None
    deadline: float | None = None
    wait: float | None = None
    max_weight: float = 2.0**20
    roster: Sequence[int] | None = None
    rehome: float = 0.0
    secret: bytes = b""
    label: tuple[str, str] = ("", "")
    records: Mapping[int, Record] = field(default_factory=dict)

    @cached_property
    def clients(self) -> tuple[int, ...]:
        """Every client there is, by id."""
        placed = (c for clients in self.children.values() for c in clients)
        return tuple(sorted(placed if self.roster is None else self.roster))

    async def relay(self, p: Party, task: Task, aggregator: Aggregator, quorum: int | None = None) -> Answer:
        """The task's answer from everybody below."""
        return await relay(
            p,
            task,
            steps(self.children) if task.want == "note" else self.children,
            aggregator,
            quorum=quorum,
            deadline=self.deadline,
            rehome=self.rehome,
        )


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a round; a checkpoint, and all a restart needs.

    `round`: rounds done. `params`: the model. `server`: state of the chain's server side. `used`:
    each client's last used round. `best`: the best evaluation's value, round and model. `without`:
    evaluations since. `empty`: rounds in a row that nobody contributed to. `over`: why it ended.
    `more`: what a protocol other than synchronous rounds keeps besides. `records`: what rounds have shown of
    each client, where the algorithm's rule sees single updates.
    """

    round: int
    params: Update
    server: Any
    used: Mapping[int, int]
    best: tuple[float, int, Update] | None = None
    without: int = 0
    empty: int = 0
    over: str = ""
    more: Any = None
    records: Mapping[int, Record] = field(default_factory=dict)


OneRound: TypeAlias = Callable[[Party, Plan, Progress], Awaitable[tuple[Progress, dict[str, Any]]]]


def first(learner: Learner, key: Rng) -> Update:
    """The learner's initial params, drawn from the coordinator's key."""
    return Update.of(learner.init(key.at("init").generator()))


def begin(plan: Plan, p: Party) -> Progress:
    """The first state: the learner's initial params."""
    params = first(plan.learner, p.key)
    records = plan.records if plan.algorithm.watched else {}
    return Progress(0, params, plan.algorithm.chain.start(params, "back"), {}, records=records)


async def coordinator(p: Party, plan: Plan, one: OneRound | None = None) -> Progress:
    """Run the rounds, each by `one` (None: by `one_round`); resumes from `p.restored`."""
    one = one or one_round
    now = p.restored or begin(plan, p)
    if now.round == 0:
        await p.note({"round": 0, **await evaluate(p, plan, now)})
    while now.round < plan.rounds and not now.over:
        now, record = await one(p, plan, now)
        now = await report(p, plan, now, record)
    return now


async def report(p: Party, plan: Plan, now: Progress, record: dict[str, Any]) -> Progress:
    """Evaluate the model if it is time to, publish the round's record, keep a checkpoint."""
    if now.round % plan.every == 0 or now.round == plan.rounds:
        seen = await evaluate(p, plan, now)
        record = {**record, **seen}
        now = judge(plan.stop, now, seen["metrics"])
    await p.note({**record, "stop": now.over} if now.over else record)
    await p.checkpoint(now)  # after its record: a restart takes back records, never lacks one
    return now


async def one_round(p: Party, plan: Plan, now: Progress) -> tuple[Progress, dict[str, Any]]:
    """One cohort's contributions, through the chain, onto the model; and the round's record.

    A round that nobody contributed to changes nothing; the third in a row, or the last of a shorter
    run, raises QuorumError. Where all who were asked came to hold back, it is begun anew; where nobody knows
    of them why they were not asked, a few times.
    """
    key, unasked, waited = p.key.at("round", now.round), 0, 0.0
    while True:
        cohort = await choose(p, plan, now, key)
        after, record = await ask(p, plan, now, cohort, key)
        unasked += UNASKED in record["failed"].values()
        if after is not now:
            break
        if unasked > PATIENCE:
            after = skip(plan, now, record["failed"])
            break
        waited = await pause(p, plan, waited)
    return after, {**record, **told(after.records, cohort, left_out(plan, now))}


async def ask(
    p: Party,
    plan: Plan,
    now: Progress,
    cohort: tuple[int, ...],
    key: Any,
    rule: Callable[[Task], Aggregator] | None = None,
) -> tuple[Progress, dict[str, Any]]:
    """`one_round` for a cohort that is chosen; `rule(task)` sums the answers, None for the algorithm's.

    `now` itself where all of the cohort hold back by now.
    """
    private = plan.algorithm.private  # then nobody but the coordinator may know who was drawn, or how many
    most = len(plan.clients) if private else len(cohort)
    points = await p.work(lambda: update_points(plan, now.params, most), share=0.0)
    task = replace(_task(now, key, cohort), points=points)
    if private and plan.algorithm.exchange.shows == "each":
        task = replace(task, cohort=tuple(range(_expected(plan))))
    rule = rule or partial(_rule, plan.algorithm)
    began = p.now
    answer, aggregator = await plan.algorithm.exchange.collect(p, plan, task, rule, _quorum(plan, cohort))
    record = {
        "round": now.round + 1,
        "seconds": p.now - began,
        "cohort": len(cohort),
        "failed": dict(answer.failed),
    }
    if not answer.clients and _rest(plan, answer.failed):
        return now, {**record, "clients": 0}
    if plan.algorithm.watched:
        now = replace(now, records=refused(now.records, answer.failed))
    if not answer.clients:
        return skip(plan, now, answer.failed), {**record, "clients": 0}
    try:
        after, train = await p.work(lambda: apply(plan, now, aggregator, answer, key), share=0.0)
    except QuorumError as error:  # too few for the rule: this round changes nothing
        failed = {**answer.failed, **dict.fromkeys(answer.clients, str(error))}
        return skip(plan, now, failed), {**record, "clients": 0, "failed": failed}
    return after, {
        **record,
        "clients": len(answer.clients),
        "down": len(cohort) * wire(now.params),
        "up": answer.sent,
        "train": train,
    }


def _expected(plan: Plan) -> int:
    """How many clients a round has on average, at least 1."""
    drawn = getattr(plan.cohort, "drawn", None)
    rate = drawn(len(plan.clients))[0] if drawn is not None else 1.0
    return max(1, round(rate * len(plan.clients)))


def _quorum(plan: Plan, cohort: Sequence[int]) -> int | None:
    """How many answers are enough; only a coordinator that asks each client itself can count them."""
    alone = all(len(clients) == 1 for clients in plan.children.values())
    return plan.cohort.quorum(len(cohort)) if alone else None


def skip(plan: Plan, now: Progress, failed: Mapping[int, str]) -> Progress:
    """The same model a round later."""
    patience = min(PATIENCE, plan.rounds)
    if now.empty + 1 >= patience:
        rounds = f"in {patience} rounds in a row, up to" if patience > 1 else "in"
        raise QuorumError(f"nobody contributed {rounds} round {now.round + 1}. {why(failed)}")
    return replace(now, round=now.round + 1, empty=now.empty + 1)


def _rest(plan: Plan, failed: Mapping[int, str]) -> bool:
    """Whether a round of these answers may be had again: its clients hold back, some since before they were
    asked. Where updates are hidden or noised it is over: what was made for it must not meet another sum.
    """
    plain = plan.algorithm.exchange.shows == "each" and not plan.algorithm.private
    return plain and held_back(failed)


def held_back(failed: Mapping[int, str]) -> bool:
    """Whether all of these hold back by their own policy, or nobody knows why they were not asked."""
    return bool(failed) and all(HELD in said or said == UNASKED for said in failed.values())


def why(failed: Mapping[int, str]) -> str:
    """How many clients failed, and the longest of their reasons: a traceback says more than "too late"."""
    reason = max((r.strip() for r in failed.values()), key=len, default="nobody was asked")
    return f"{len(failed)} clients failed; one of them says: {reason}"


def left_out(plan: Plan, now: Progress) -> tuple[int, ...]:
    """Which clients a round does without."""
    return aside(plan.algorithm.aside, now.records, plan.clients, plan.cohort)


async def choose(p: Party, plan: Plan, now: Progress, key: Any) -> tuple[int, ...]:
    """This round's cohort, of all clients but those that are left out."""
    held = () if plan.algorithm.private else await enough(p, plan, now)
    tired: Callable[[], Iterable[int]] = tuple

    async def losses(clients: Sequence[int]) -> dict[int, float]:
        nonlocal tired
        tired = getattr(plan.children, "resting", tired)
        task = replace(_task(now, key, tuple(clients)), want="evaluate")
        found = (await plan.relay(p, task, TABLE)).partial or {}
        told = {c: m["loss"].value for c, m in found.items() if "loss" in m}
        return {c: float(value) for c, value in told.items() if isinstance(value, (int, float))}

    stream = key.at("cohort")
    if plan.algorithm.private:  # the job's seed is everybody's
        stream = dp.cohort_stream(plan.secret, now.round)
    out = {*left_out(plan, now), *held}
    clients, sizes = plan.clients, plan.sizes
    if out:
        sizes = sizes and [n for c, n in zip(clients, sizes, strict=True) if c not in out]
        clients = tuple(c for c in clients if c not in out)
    chosen = await plan.cohort.pick(Choice(clients, sizes, stream, losses))
    waited = 0.0
    while set(chosen).intersection(tired()):  # from telling their losses
        waited = await pause(p, plan, waited)
    await pause(p, plan)
    return chosen


def held(plan: Plan) -> frozenset[int]:
    """Clients that hold back by their own policy (a battery, a metered link): a mapping of children that
    changes may know some. They are not asked.
    """
    return frozenset(getattr(plan.children, "held", tuple)())


def steps(children: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """The same for steps of an exchange: who rests from the work for it is among them."""
    found: Mapping[str, Sequence[int]] = getattr(children, "steps", children)
    return found


def posts(plan: Plan) -> Mapping[str, Sequence[int]]:
    """The children for tasks that are posted: a mapping that changes is, after a restart, as it was."""
    found: Callable[[], Mapping[str, Sequence[int]]] = getattr(plan.children, "posts", lambda: plan.children)
    return found()


async def enough(p: Party, plan: Plan, now: Progress) -> frozenset[int]:
    """Who holds back, once there are others enough for a cohort. A promise of privacy counts on draws from
    all: there they are drawn as well, and missing.
    """
    others = set(plan.clients).difference(left_out(plan, now))
    size = getattr(plan.cohort, "size", lambda n: 1)
    need, waited = min(size(len(others)), len(others)), 0.0
    while len(others.difference(out := held(plan))) < need:
        waited = await pause(p, plan, waited)
    await pause(p, plan)
    return out


async def pause(p: Party, plan: Plan, waited: float | None = None) -> float:
    """A moment in which too few clients can be asked, after `waited` seconds of them, and how many they are
    now; None: they can be. A mapping of children that changes hears of it. Raises QuorumError where they are
    more than the job allows.
    """
    tell: Callable[[bool], str] = getattr(plan.children, "waits", _nobody)
    why = tell(waited is not None)
    if waited is None:
        return 0.0
    left = PAUSE if plan.wait is None else min(PAUSE, plan.wait - waited)
    if left <= 0:
        raise QuorumError(
            f"too few clients could be asked for {waited:g} seconds, as long as the job waits{why}"
        )
    await p.sleep(left)
    return waited + left


def _nobody(on: bool) -> str:  # noqa: FBT001  as `Homes.waits`
    return ""


def apply(
    plan: Plan, now: Progress, aggregator: Aggregator, answer: Answer, key: Any
) -> tuple[Progress, Any]:
    """The model after a round: the total back through the chain, added to the params."""
    mine = own(aggregator)
    total = aggregator.finish(answer.partial, **mine)
    ctx = Context(
        key.at("back"), now.round, total.weight, total.count, len(plan.clients), own=mine.get("own", False)
    )
    chain = plan.algorithm.chain
    if plan.algorithm.private:
        theirs = plan.algorithm.exchange.shows == "sum" or dp.local(chain)  # clients have added the noise
        key = None if theirs else dp.sum_key(plan.secret, now.round, answer.clients, total.update)
        chain = dp.keyed(chain, key)
    step, server = chain.back(total.update, now.server, ctx)
    params = add(now.params, step)
    if not params.finite():
        raise ProtocolError(
            f"the model of round {now.round + 1} is not finite: training diverged; lower the learning rate"
        )
    used = {**now.used, **dict.fromkeys(answer.clients, now.round)}
    if plan.algorithm.watched and total.seen is not None:
        now = replace(now, records=witnessed(now.records, total.seen, answer.clients))
    train = {name: m.value for name, m in total.metrics.items()}
    return replace(now, round=now.round + 1, params=params, server=server, used=used, empty=0), train


def add(params: Update, step: Update) -> Update:
    """params + step in float64, back in the params' own precision."""
    total = np.empty(params.buffer.shape, params.buffer.dtype)

    def some(part: slice) -> None:
        for block in blocks(part.stop, start=part.start):
            total[block] = params.buffer[block] + step.buffer[block]

    spread(len(total), some)
    return Update(params.layout, total)


async def evaluate(p: Party, plan: Plan, now: Progress) -> dict[str, Any]:
    """Metrics on the coordinator's own test rows and on those of every site that is not left out.

    `metrics` are the coordinator's where it has rows, else the sites' merged. `sites_failed`: the
    sites that could not evaluate, with the reason.
    """
    seen: dict[str, Any] = {}
    central: Mapping[str, Any] = {}
    test = plan.test
    if test is not None:
        central = await p.work(lambda: test(now.params))
    merged: Mapping[str, Any] = {}
    if plan.sites:
        out = {*left_out(plan, now), *held(plan)}
        clients = tuple(c for c in plan.clients if c not in out)
        task = replace(_task(now, p.key.at("evaluate"), clients), want="evaluate")
        answer = await plan.relay(p, task, TABLE)
        found, failed = dict(answer.partial or {}), dict(answer.failed)
        for c in sorted(found):
            try:
                merged = merge_all(merged, found[c])
            except MisuseError as error:  # one site counts another way: it is left out, and said to be
                del found[c]
                failed[c] = f"its metrics are not of the others' kind: {error}"
        if failed:
            seen["sites_failed"] = failed
        seen["sites"] = {c: {n: m.value for n, m in found[c].items()} for c in sorted(found)}
        if merged and central:
            seen["sites_metrics"] = {n: m.value for n, m in merged.items()}
    seen["metrics"] = {n: m.value for n, m in (central or merged).items()}
    return seen


def judge(stop: Stop | None, now: Progress, metrics: Mapping[str, float]) -> Progress:
    """Keep the best model so far and say whether the stated rule ends the run.

    Raises ConfigError where the rule reads a metric that nobody evaluates.
    """
    if stop is None:
        return now
    if stop.metric not in metrics:
        fix = nearest(stop.metric, metrics) if metrics else "no rows are kept to test on: set holdout"
        raise ConfigError(
            f"the stop rule reads {stop.metric!r}, which nobody evaluates: {fix}", "$.stop.metric"
        )
    value = metrics[stop.metric]
    if stop.better(value, None if now.best is None else now.best[0]):
        now = replace(now, best=(value, now.round, now.params), without=0)
    else:
        now = replace(now, without=now.without + 1)
    return replace(now, over=stop.over(value, now.without))


def always(now: float) -> bool:
    """An edge that can always deliver."""
    return True


def edge(
    children: Mapping[str, Sequence[int]], algorithm: Algorithm, online: Callable[[float], bool] = always
) -> Responder:
    """An edge's answer: its children's answers, merged. Whether it is `online` changes nothing here."""

    async def answer(p: Party, task: Task) -> Answer:
        below = steps(children) if task.want == "note" else children
        return await relay(p, task, below, _rule(algorithm, task))

    return answer


def client(local: Local) -> Responder:
    """A client's answer, or a lane's that holds many: train and fold, off the event loop."""

    async def answer(p: Party, task: Task) -> Answer:
        share = 1.0 if local.trains(task) else 0.0  # to be measured costs no virtual time
        done: Answer = await p.work(lambda: local.answer(task), share=share)
        return done

    return answer


ROLES = Roles(coordinator, client, edge, apart=False)


def _task(now: Progress, key: Any, clients: tuple[int, ...]) -> Task:
    used = tuple(now.used.get(c, -1) for c in clients)
    return Task(now.round, key, clients, used, now.params, cohort=clients)


def update_points(plan: Plan, params: Update, count: int) -> Points:
    """Binary points for the sum of `count` updates of this model as they leave the chain.

    A learner whose contributions are not laid out as its params (sums for a Newton step) says so
    by `contributes(params)`: zeros in their layout.
    """
    chain = plan.algorithm.chain
    most = plan.max_weight if plan.algorithm.weigh == "rows" else 1.0
    like = getattr(plan.learner, "contributes", lambda p: p)(params)
    added = {name: bound for t in chain.steps for name, bound in t.adds.items()}
    bounds = {**getattr(plan.learner, "bounds", {}), **added}
    return points(chain.outgoing(like), count, most, bounds)


def _rule(algorithm: Algorithm, task: Task) -> Any:
    return TABLE if task.want != "fit" else algorithm.rule.at(task.points, task.cohort, task.key)  # type: ignore[arg-type]
