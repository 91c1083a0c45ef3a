"""From a job and data to a finished run: the one file that knows both parts and drivers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .core.edge import Answer, Task, wire
from .core.errors import ConfigError
from .core.message import FitContext, Learner
from .core.metrics import lift
from .core.rng import Rng
from .core.update import Update
from .job import Job
from .learn import rounds
from .learn.local import Local
from .learn.rounds import Plan, Progress
from .simulate.faults import World
from .simulate.lanes import lanes
from .simulate.world import Simulation

COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of models sent `down` to clients and of updates sent `up` by them."""

    down: int = 0
    up: int = 0


@dataclass
class Run:
    """What came out of a job.

    `params`: the model (the best one under a stop rule, else the last). `history`: one record per
    round. `metrics`: of the last evaluation. `sites`: the last metrics of each client by id.
    `seconds`: on the world's clock. `stopped`: why it ended early, empty if it did not.
    """

    job: Job
    seed: int
    learner: Learner
    params: Update
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last evaluation's metrics."""
        return self._last("metrics")

    @property
    def sites(self) -> Mapping[int, Mapping[str, float]]:
        """Each site's metrics at the last evaluation."""
        return self._last("sites")

    @property
    def traffic(self) -> Traffic:
        """Bytes of all rounds."""
        return Traffic(sum(r.get("down", 0) for r in self.history), sum(r.get("up", 0) for r in self.history))

    @property
    def seconds(self) -> float:
        """Seconds of all rounds on the world's clock: virtual in a simulation."""
        return float(sum(r.get("seconds", 0.0) for r in self.history))

    def _last(self, name: str) -> Mapping[Any, Any]:
        return next((r[name] for r in reversed(self.history) if name in r), {})


@dataclass(frozen=True)
class State:
    """A checkpoint of a simulated run: the coordinator's progress and what clients keep."""

    progress: Progress
    committed: Mapping[int, Any]
    staged: Mapping[int, Any]


def simulate(
    job: Job,
    data: Any,
    seed: int = 0,
    *,
    world: World | None = None,
    workers: int | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda record: None,
    save: Callable[[State], None] | None = None,
    resume: State | None = None,
) -> Run:
    """Run a job over simulated clients in this process.

    `data`: Sites, or a sequence with one entry per client, whatever the learner takes. `world`:
    slow devices and bad networks in virtual time; None runs clients in batches as fast as this
    machine can. `workers`: cores to use, all by default; the result does not depend on it.
    `watch` sees each round's record, `save` each checkpoint, `resume` continues from one.
    Same job, data and seed give the same bytes.
    """
    if not len(data):
        raise ConfigError("there are no clients: the data has no sites", "$.data")
    key = Rng.of(seed)
    learner = prepare(job, data)
    algorithm = job.trained
    train = dict(enumerate(data))
    tests = getattr(data, "tests", None)
    run = Run(job, seed, learner, Update.of({}))

    def note(_peer: str, record: dict[str, Any]) -> None:
        run.history.append(record)
        watch(record)

    with lanes(workers or os.cpu_count() or 1, getattr(learner, "parallel", None)) as spread:
        held = dict(enumerate(tests)) if tests is not None else {}
        local = Local(learner, algorithm, train, held, key, getattr(learner, "chunk", 16), spread)
        if resume is not None:
            local.committed, local.staged = dict(resume.committed), dict(resume.staged)

        def checkpoint(_peer: str, progress: Progress) -> None:
            if save is not None:
                save(State(progress, dict(local.committed), dict(local.staged)))

        restored = {COORDINATOR: resume.progress} if resume else None
        sim = Simulation(
            world or World(), key, size=_size, on_note=note, on_checkpoint=checkpoint, restored=restored
        )
        children = _grow(sim, job, local, sorted(train), apart=world is not None)
        plan = Plan(
            learner,
            algorithm,
            children,
            job.rounds,
            job.cohort,
            [len(d) if hasattr(d, "__len__") else 1 for d in data],
            _central(learner, getattr(data, "test", None), key),
            job.every,
            job.sites and bool(held),
            job.stop,
            job.deadline,
            job.max_weight,
        )
        role = algorithm.protocol or rounds.coordinator
        sim.add(COORDINATOR, main=lambda p: role(p, plan))
        last: Progress = sim.run(until=COORDINATOR)
    served = getattr(learner, "served", lambda params: params)
    run.params = served(last.best[2] if last.best is not None else last.params)
    run.stopped = last.over
    return run


def prepare(job: Job, data: Any) -> Any:
    """The learner that runs: sized for the data where it asks to be, wrapped by the algorithm."""
    learner: Any = job.learner
    if hasattr(learner, "sized") and hasattr(data, "features"):
        learner = learner.sized(data.features, data.outputs)
    return job.trained.wrap(learner) if job.trained.wrap else learner


def _grow(sim: Simulation, job: Job, local: Local, clients: Sequence[int], *, apart: bool) -> dict[str, list[int]]:
    """Add the clients and the edges above them; the coordinator's children and whom they answer for.

    `apart`: every client is a peer of its own; otherwise a lane answers for all below one edge.
    """

    def below(name: str, members: Sequence[int], fanout: Sequence[int]) -> dict[str, list[int]]:
        if fanout:
            groups = {f"{name}.{i}": list(members[i :: fanout[0]]) for i in range(fanout[0])}
            for edge, mine in groups.items():
                children = below(edge, mine, fanout[1:])
                sim.add(edge, answers=rounds.edge(children, job.trained))
            return groups
        peers = {f"client{c}": [c] for c in members} if apart else {f"lane{name}": list(members)}
        for peer in peers:
            sim.add(peer, answers=rounds.client(local), device=True)
        return peers

    return below("", clients, job.topology.fanout)


def _central(learner: Any, test: Any, key: Rng) -> Callable[[Update], Mapping[str, Any]] | None:
    if test is None or not len(test):
        return None

    def metrics(params: Update) -> Mapping[str, Any]:
        found = learner.evaluate(params, test, FitContext(key.at("test"), client=-1))
        return {name: lift(value, float(len(test))) for name, value in found.items()}

    return metrics


def _size(body: Any) -> int:
    match body:
        case Task():
            return wire(body.params)
        case Answer():
            return body.sent
        case _:
            return 0
