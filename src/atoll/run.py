"""From a job and data to a finished run: the one file that knows both parts and drivers."""

from __future__ import annotations

import os
import platform
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from . import notebook
from .core.edge import Answer, Task, wire
from .core.errors import ConfigError, QuorumError, StateError
from .core.message import FitContext, Learner
from .core.rng import Rng
from .core.update import Update
from .data.examples import Dataset
from .job import Job, prepare
from .learn import rounds
from .learn.algorithm import Roles
from .learn.detect import Record
from .learn.exchange import Seat
from .learn.local import Held, Local, measure
from .learn.rounds import COORDINATOR, Plan, Progress
from .learn.wrapped import Kept
from .serve.export import check
from .serve.model import named
from .simulate.faults import World
from .simulate.folder import Folder, write_model
from .simulate.world import Simulation


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of models sent `down` to clients and of updates sent `up` by them."""

    down: int = 0
    up: int = 0


@dataclass(repr=False)
class Run:
    """What came out of a job.

    `params`: the model (the best one under a stop rule, else the last). `history`: one record per
    round. `metrics`: of the last evaluation. `sites`: the last metrics of each client by id.
    `seconds`: on the world's clock. `stopped`: why it ended early, empty if it did not. `example`:
    two rows as the model takes them, for `export`; None where the data are no Sites. `classes`: their names
    in the model's order, which an ONNX file keeps; () where there are none.
    """

    job: Job
    seed: int
    learner: Learner
    params: Update
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    example: Any = None
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        rounds = self.history[-1]["round"] if self.history else 0
        found = "".join(f", {n} {v:.4f}" for n, v in self.metrics.items() if isinstance(v, float))
        return f"Run({self.job.algorithm}, {rounds} rounds{found})"

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last evaluation's metrics."""
        return self._last("metrics")

    @property
    def sites(self) -> Mapping[int, Mapping[str, float]]:
        """Each site's metrics at the last evaluation."""
        return self._last("sites")

    @property
    def suspects(self) -> tuple[int, ...]:
        """Clients that seem to lie by now, by id; () where the algorithm's rule sees no single updates."""
        return tuple(self._last("suspects"))

    @property
    def traffic(self) -> Traffic:
        """Bytes of all rounds."""
        return Traffic(sum(r.get("down", 0) for r in self.history), sum(r.get("up", 0) for r in self.history))

    @property
    def seconds(self) -> float:
        """Seconds of all rounds on the world's clock: virtual in a simulation."""
        return float(sum(r.get("seconds", 0.0) for r in self.history))

    def plot(self) -> Any:
        """The metrics over rounds as a matplotlib Figure; needs `pip install 'atoll-fl[plots]'`."""
        return notebook.figure(self.history)

    def _repr_html_(self) -> str:
        return notebook.summary(self)

    def export(self, path: str | Path, example: Any = None) -> Path:
        """Write the model to `path`: *.safetensors, or *.onnx where the learner can write itself so.

        An ONNX file is checked against the learner's own answers; one that differs is not left there.
        `example`: for ONNX, some rows as the model takes them; by default two of the data's own.
        Raises ConfigError for another ending, no rows or a learner that cannot, StateError where
        the file cannot be written.
        """
        path, rows = Path(path), self.example if example is None else example
        if path.suffix == ".safetensors":
            write_model(path, self.params)
        elif path.suffix != ".onnx":
            raise ConfigError(f"export to a .safetensors or .onnx file, not {path.name!r}")
        elif not hasattr(self.learner, "export"):
            raise ConfigError(f"{type(self.learner).__name__} writes no ONNX: export to a .safetensors file")
        elif rows is None:
            raise ConfigError("ONNX needs some rows to follow through the model: export(path, example=x[:2])")
        else:
            self.learner.export(self.params, path, rows)
            path.write_bytes(named(path.read_bytes(), self.classes))
            if hasattr(self.learner, "answers"):
                check(path, self.learner, self.params, rows)
        return path

    def _last(self, name: str) -> Mapping[Any, Any]:
        return next((r[name] for r in reversed(self.history) if name in r), {})


@dataclass(frozen=True)
class State:
    """A checkpoint of a simulated run: the coordinator's progress and what its clients keep."""

    progress: Any
    committed: Mapping[int, Any]
    staged: Mapping[int, Any]


RECORDS = (State, Progress, Record, Held, Kept)


def simulate(
    job: Job,
    data: Any,
    seed: int = 0,
    *,
    world: World | None = None,
    workers: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Run a job over simulated clients in this process.

    `data`: Sites, or a sequence with one entry per client, whatever the learner takes. `world`:
    slow devices and bad networks in virtual time; None runs clients in batches as fast as this
    machine can, or one by one in an instant world for a protocol of peers such as fedbuff or gossip.
    `workers`: cores to use, all by default; the result does not depend on it.
    `out`: a folder for the run's records, checkpoints and model; with `resume` a run that was
    cut off goes on from its newest checkpoint. `watch` sees each round's record.

    Same job, data and seed give the same bytes, resumed or not. Raises ConfigError for a job that
    does not fit the data, DataError for data that cannot be trained on, StateError for the folder,
    QuorumError where nobody can train or evaluate.
    """
    _check(data, seed, world)
    if job.privacy is not None:
        rows = sum(len(d) for d in data) if all(hasattr(d, "y") for d in data) else None
        job.privacy.holds(len(data), rows, job.cohort)
        job.privacy.check(job.cohort, job.rounds)
    job.fits(len(data))
    run = Run(job, seed, prepare(job, data, workers), Update.of({}))
    folder = Folder(Path(out), RECORDS) if out is not None else None
    state = _open(folder, run, data, resume=resume) if folder else None
    began = time.perf_counter()

    def note(_peer: str, record: dict[str, Any]) -> None:
        run.history.append(record)
        _evaluated(run.history, 1 if world is None else rounds.PATIENCE)
        if folder is not None:
            folder.record(record)
        if watch is not None:
            watch(record)

    local = _local(run, data, state)

    def checkpoint(_peer: str, progress: Any) -> None:
        if folder is not None:
            folder.save(progress.round, State(progress, dict(local.committed), dict(local.staged)))

    sim = Simulation(
        world or World(),
        Rng.of(seed),
        size=_size,
        on_note=note,
        on_checkpoint=checkpoint,
        restored={COORDINATOR: state.progress} if state else None,
    )
    roles = job.trained.protocol or rounds.ROLES
    plan = _plan(run, data, local, _grow(sim, job, local, roles, apart=world is not None or roles.apart))
    sim.add(COORDINATOR, main=lambda p: roles.coordinator(p, plan))
    last: Progress = sim.run(until=COORDINATOR)
    served = getattr(run.learner, "served", lambda params: params)
    run.params = served(last.best[2] if last.best is not None else last.params)
    run.stopped = last.over
    run.example = data.x[:2] if hasattr(data, "x") else None
    run.classes = tuple(getattr(data, "classes", ()))
    if folder is not None:
        took = round(time.perf_counter() - began, 3)
        folder.finish(dict(run.params), {**about(job), "took": took, "resumed": state is not None})
    return run


def _check(data: Any, seed: Any, world: Any) -> None:
    """Refuse what is no data, no seed or no world, before anything runs."""
    if world is not None and not isinstance(world, World):
        raise ConfigError(f"a world is World(loss=0.1, ...), got {type(world).__name__}", "$.world")
    if isinstance(data, Dataset):
        raise ConfigError("a data set is not divided yet: give partition(data, clients=20)", "$.data")
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ConfigError(
            f"data is Sites or a list with one entry a client, got {type(data).__name__}", "$.data"
        )
    if not isinstance(seed, (int, np.integer)):
        raise ConfigError(f"the seed is a whole number, got {seed!r}", "$.seed")
    if not len(data):
        raise ConfigError("there are no clients: the data has no sites", "$.data")
    if hasattr(data, "check"):
        data.check()


def _evaluated(history: Sequence[Mapping[str, Any]], patience: int) -> None:
    """Raise QuorumError where nobody could evaluate the model, `patience` times in a row.

    Without a world no site is merely out of reach: once is enough.
    """
    last = [r for r in history if "metrics" in r][-patience:]
    if len(last) == patience and all(r.get("sites_failed") and not r["metrics"] for r in last):
        raise QuorumError(
            f"nobody could evaluate the model of round {last[-1]['round']}."
            f" {rounds.why(last[-1]['sites_failed'])}"
        )


def about(job: Job) -> dict[str, Any]:
    """What may differ between two runs of one job: versions and the machine."""
    from importlib.metadata import version

    return {
        "atoll": version("atoll-fl"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "engine": getattr(job.learner, "engine", type(job.learner).__name__),
    }


def _open(folder: Folder, run: Run, data: Any, *, resume: bool) -> State | None:
    """Begin a run folder, or take up the one that is there."""
    described = {"job": run.job.describe(), "seed": run.seed, "data": census(data)}
    if not resume:
        folder.begin(described, about(run.job))
        return None
    before = folder.job()
    other = [name for name, value in described.items() if before.get(name) != value]
    if other:
        raise StateError(
            f"{folder.root} was made with another {' and '.join(other)}: resume with the same,"
            " or choose another folder"
        )
    state: State | None = folder.resume()
    run.history = folder.history()
    return state


def census(data: Any) -> dict[str, Any]:
    """What tells two federations' data apart: clients, rows, site names, and a checksum of all rows."""
    found: dict[str, Any] = {"clients": len(data)}
    if all(hasattr(d, "__len__") for d in data):
        found["rows"] = sum(len(d) for d in data)
    if hasattr(data, "names"):
        found["names"] = list(data.names)
    if isinstance(getattr(data, "x", None), np.ndarray):
        found["crc32"] = _crc(data.y, _crc(data.x))
    return found


def _crc(array: Any, before: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data, before)


def _local(run: Run, data: Any, state: State | None) -> Local:
    tests = getattr(data, "tests", None)
    held = dict(enumerate(tests)) if tests is not None else {}
    draw = _drawn(run.seed)
    seat = Seat(draw, coins=draw(32))
    local = Local(run.learner, run.job.trained, dict(enumerate(data)), held, Rng.of(run.seed), seat=seat)
    if state is not None:
        local.committed, local.staged = dict(state.committed), dict(state.staged)
    return local


def _drawn(seed: int) -> Callable[[int], bytes]:
    """Bytes of a simulated client's entropy: the seed's, so that a simulation repeats itself."""
    rng = Rng.of(seed).at("entropy").generator()
    return rng.bytes


def _plan(run: Run, data: Any, local: Local, children: Mapping[str, Sequence[int]]) -> Plan:
    job = run.job
    return Plan(
        run.learner,
        job.trained,
        children,
        job.rounds,
        job.cohort,
        sizes=[len(d) for d in data] if all(hasattr(d, "__len__") for d in data) else None,
        test=_central(run.learner, getattr(data, "test", None), local.key),
        every=job.every,
        sites=job.sites and bool(local.test),
        stop=job.stop,
        deadline=job.deadline,
        wait=job.wait,
        max_weight=job.max_weight,
        secret=blake2b(b"simulated noise", key=repr(run.seed).encode(), digest_size=32).digest(),
    )


def _grow(sim: Simulation, job: Job, local: Local, roles: Roles, *, apart: bool) -> dict[str, list[int]]:
    """Add the clients and the edges above them; the coordinator's children and whom they answer for.

    `apart`: every client is a peer of its own; otherwise a lane answers for all below one edge.
    """

    def below(name: str, members: Sequence[int], fanout: Sequence[int]) -> dict[str, list[int]]:
        if fanout:
            groups = {f"{name}.{i}": list(members[i :: fanout[0]]) for i in range(fanout[0])}
            for edge, mine in groups.items():
                children = below(edge, mine, fanout[1:])
                made = (roles.edge or rounds.edge)(children, job.trained, _online(sim.world, edge, name))
                sim.add(edge, answers=made)
            return groups
        peers = {f"client{c}": [c] for c in members} if apart else {f"lane{name}": list(members)}
        for peer in peers:
            sim.add(peer, answers=(roles.client or rounds.client)(local), device=True)
        return peers

    return below("", sorted(local.train), job.topology.fanout)


def _online(world: World, edge: str, above: str) -> Callable[[float], bool]:
    """Whether nothing stands between an edge and who is above it, at a moment of the world's clock."""
    ends = (edge, above or COORDINATOR)
    cuts = [c for c in world.partitions if (ends[0] in c.peers) != (ends[1] in c.peers)]
    return lambda now: not any(c.start <= now < c.stop for c in cuts)


def _central(learner: Any, test: Any, key: Rng) -> Callable[[Update], Mapping[str, Any]] | None:
    if test is None or not len(test):
        return None

    def metrics(params: Update) -> Mapping[str, Any]:
        return measure(learner, params, test, FitContext(key.at("test"), client=-1))

    return metrics


def _size(body: Any) -> int:
    match body:
        case Task():
            return wire(body.params)
        case Answer():
            return body.sent
        case Update():
            return wire(body)
        case _:
            return 0
