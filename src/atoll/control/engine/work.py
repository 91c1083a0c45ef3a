"""What a coordinator asks of members, in a form each checks for itself: a signed job.

    text = {"run": ..., "table": the job file's values, "seed": ..., what the sites' data have in common}

A table whose pipeline has no figures yet asks for these figures; with them it asks to train.

The text is signed by the coordinator's key, so that an edge in between, or a proxy, can neither invent
nor change work. Members run named, installed parts with these values; no code travels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...adapt.plan import Plan
from ...adapt.plan_table import planned, travels
from ...core.edge import Task
from ...core.errors import ConfigError, ProtocolError
from ...core.rng import Rng
from ...core.update import Update
from ...data.pipeline import Pipeline
from ...job import Job, prepare
from ...learn.local import Local
from ...learn.rounds import COORDINATOR, first
from ...privacy.keys import Identity, sign, verify
from .. import config
from ..settings import Policy
from .datasets import Held

PURPOSE = "atoll job"
_KEYS = {"run", "table", "seed", "data", "features", "outputs", "classes", "federation"}


@dataclass(frozen=True)
class Shape:
    """How wide rows and answers are, for a learner that sizes itself."""

    features: Any
    outputs: int


@dataclass(frozen=True)
class Work:
    """One run's job as its members see it. `text` is what was signed; `plan`: the plan that it names, where
    its learner is one and it has been brought.
    """

    text: bytes
    plan: Plan | None = None
    seconds: float = Policy().plan_seconds

    @cached_property
    def values(self) -> dict[str, Any]:
        """The signed values. Raises ProtocolError where keys are missing."""
        found = json.loads(self.text)
        if not isinstance(found, dict) or found.keys() != _KEYS:
            raise ProtocolError("a signed job holds other keys than this version knows: upgrade this member")
        return found

    @property
    def run(self) -> str:
        """The run it belongs to."""
        return str(self.values["run"])

    @property
    def data(self) -> str:
        """The name under which sites hold the data it learns from."""
        return str(self.values["data"])

    @property
    def seed(self) -> int:
        """The seed of every random stream of the run."""
        return int(self.values["seed"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The federation's class names in their order, () for a regression."""
        return tuple(self.values["classes"])

    @cached_property
    def file(self) -> config.JobFile:
        """The job file. Raises ConfigError for parts that are not installed here."""
        table = self.values["table"]
        travels(table)
        if planned(table) is not None:
            from ...adapt import plan_learner  # noqa: F401  or all parts there are are loaded to find it
        return config.parse(table)

    @property
    def fits(self) -> bool:
        """Whether this is the part of a run that comes before its rounds: a pipeline without figures yet."""
        return self.file.fits

    @property
    def name(self) -> str:
        """What this part of the run is called where its two may not be taken for each other."""
        return f"{self.run}.fit" if self.fits else self.run

    @property
    def job(self) -> Job:
        """The job, or the one that fits its pipeline."""
        return self.file.fitting if self.fits else self.file.job

    @property
    def pipeline(self) -> Pipeline | None:
        """What happens to raw rows before they are learnt from, and in the graph before the model."""
        return self.file.pipeline

    @cached_property
    def learner(self) -> Any:
        """The learner that runs: sized for the data and wrapped by the algorithm."""
        features = self.values["features"]
        wide = tuple(features) if isinstance(features, list) else features
        job = self.job
        if self.plan is not None:
            job = job.replace(learner=job.learner.given(self.plan, self.seconds))  # type: ignore[attr-defined]
        if self.pipeline is not None:
            out = len(self.pipeline.names)
            wide = (*wide[:-1], out) if isinstance(wide, tuple) else out
        return prepare(job, Shape(wide, self.values["outputs"]), self.file.workers)

    def first(self) -> Update:
        """The model that its rounds start from, as the coordinator makes it: it follows from the job."""
        return first(self.learner, Rng.of(self.seed).at(COORDINATOR))

    def local(self, held: Held, client: int) -> Local:
        """The part of one client that holds its own data."""
        rows = held.labelled(self.classes)
        if self.pipeline is not None:
            test = None if rows.test is None else self.pipeline.examples(rows.test)
            rows = replace(rows, train=self.pipeline.examples(rows.train), test=test)
        tests = {} if rows.test is None else {client: rows.test}
        return Local(self.learner, self.job.trained, {client: rows.train}, tests, Rng.of(self.seed), raw=True)


def signed(values: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """The job as letters carry it: its text, the coordinator's signature and certificates."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return {"text": text, "signature": sign(identity.key, text, purpose=PURPOSE), "chain": identity.chain}


def opened(letter: Mapping[str, Any], roots: bytes, federation: str, *, now: float) -> Work:
    """The job of a letter, once its signature is found to be a coordinator's of this federation.

    Raises ProtocolError for any other.
    """
    text, signature, chain = (letter.get(name) for name in ("text", "signature", "chain"))
    if not (isinstance(text, bytes) and isinstance(signature, bytes) and isinstance(chain, bytes)):
        raise ProtocolError("expected a signed job (text, signature, chain)")
    signer = verify(chain, roots, text, signature, now=now, purpose=PURPOSE)
    if signer.role != "coordinator" or signer.federation != federation:
        raise ProtocolError(
            f"a job is signed by this federation's coordinator, this one by {signer.role} {signer.name}"
        )
    work = Work(text)
    if work.values["federation"] != federation:
        raise ProtocolError("this job was signed for another federation")
    return work


def data_name(table: Mapping[str, Any]) -> str:
    """The name of a job's data. Raises ConfigError where it names none."""
    data = table.get("data")
    name = data.get("name") if isinstance(data, Mapping) else data
    if not isinstance(name, str) or not name:
        raise ConfigError('name the data, as the sites call it: name = "heart"', "$.data.name")
    return name


def belongs(task: Task, client: int) -> None:
    """Raise ProtocolError unless the task is for this one client."""
    if task.clients != (client,):
        raise ProtocolError(f"expected a task for client {client} alone, got one for {len(task.clients)}")
