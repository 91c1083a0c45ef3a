"""A small federation for the durable driver: its journal, its peers, its clients, without sockets."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import atoll as at
from atoll.core.errors import AtollError
from atoll.core.rng import Rng
from atoll.job import prepare
from atoll.learn import rounds
from atoll.learn.local import Local
from atoll.learn.rounds import Plan
from atoll.run import RECORDS
from atoll.transport.drive import Answered, Closed, Drive, Resumed
from atoll.wire import checkpoint


@dataclass
class Disk:
    """A journal in memory that survives a kill; `before(what)` may raise Killed around each record."""

    before: Callable[[str], None] = lambda what: None
    state: bytes | None = None
    requests: int = 0
    notes: int = 0
    past: dict[int, dict[str, Any]] = field(default_factory=dict)
    answers: list[Answered] = field(default_factory=list)
    over: dict[int, Closed] = field(default_factory=dict)
    noted: dict[int, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[str, Any] = field(default_factory=dict)
    local: Local | None = None  # the clients, who live on

    def resume(self) -> Resumed:
        return Resumed(
            self.state, self.requests, self.notes, dict(self.past), list(self.answers), dict(self.over)
        )

    def asked(self, request, detail):
        self.before("asked")
        self.past.setdefault(request, dict(detail))
        self.before("asked.after")

    def answered(self, request, peer, *, blob, reason, info):
        self.before("answered")
        assert request not in self.over, "recorded after it closed"
        assert not any(a.request == request and a.peer == peer for a in self.answers), "recorded twice"
        self.answers.append(Answered(request, peer, blob, reason, info))
        self.before("answered.after")
        return True

    def closed(self, request, replied: Sequence[str], missing):
        self.before("closed")
        assert request not in self.over
        self.over[request] = Closed(tuple(replied), dict(missing))
        self.before("closed.after")

    def note(self, number, record):
        self.before("note")
        fresh = number not in self.noted
        self.noted.setdefault(number, dict(record))
        self.before("note.after")
        return fresh

    def checkpoint(self, state, requests, notes, keep):
        self.before("checkpoint")
        self.state, self.requests, self.notes = state, requests, notes
        self.past = {r: d for r, d in self.past.items() if r in keep}
        self.answers = [a for a in self.answers if a.request in keep]
        self.over = {r: c for r, c in self.over.items() if r in keep}
        self.before("checkpoint.after")


@dataclass
class Peers:
    """Clients that answer after a while drawn by the seed; what they made is kept as blobs."""

    local: Local
    draw: Any
    blobs: dict[str, Any]
    drive: Drive | None = None
    tasks: dict[tuple[int, str], asyncio.Task] = field(default_factory=dict)
    lose: float = 0.0
    counted: list[tuple[int, str]] = field(default_factory=list)

    async def prepare(self, messages):
        return messages

    def ask(self, request, peer, letter, deadline):
        self.tasks[request, peer] = asyncio.get_running_loop().create_task(
            self._answer(request, peer, letter)
        )

    def cancel(self, request, peers):
        for peer in peers:
            task = self.tasks.get((request, peer))
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    def body(self, answered):
        return self.blobs[answered.blob]

    async def _answer(self, request, peer, task):
        await asyncio.sleep(float(self.draw.exponential(1.0)))
        if self.draw.random() < self.lose:
            await self.drive.failed(request, peer, "lost")
            return
        try:
            made = self.local.answer(task)
        except AtollError as error:
            await self.drive.failed(request, peer, str(error))
            return
        blob = f"{request}-{peer}"
        self.blobs[blob] = made
        for _ in range(2):  # every answer comes twice
            if await self.drive.answered(request, peer, blob=blob, info={}):
                self.counted.append((request, peer))


def federation(job: at.Job, data: Any, seed: int, disk: Disk, luck: Any, lose: float = 0.0):
    """A drive over clients that hold `data`, each client a peer of its own."""
    learner = prepare(job, data)
    if disk.local is None:
        train, tests = dict(enumerate(data)), dict(enumerate(data.tests))
        disk.local = Local(learner, job.trained, train, tests, Rng.of(seed), raw=True)
    children = {f"client{c}": [c] for c in range(len(data))}
    plan = Plan(
        learner,
        job.trained,
        children,
        job.rounds,
        job.cohort,
        sizes=[len(d) for d in data],
        every=job.every,
        sites=job.sites,
        stop=job.stop,
        deadline=job.deadline,
    )
    roles = job.trained.protocol or rounds.ROLES
    peers = Peers(disk.local, luck, disk.blobs, lose=lose)

    async def inline(f):
        await asyncio.sleep(0)
        return f()

    drive = Drive(
        "coordinator",
        Rng.of(seed).at("coordinator"),
        lambda p: roles.coordinator(p, plan),
        journal=disk,
        net=peers,
        durable=inline,
        work=inline,
        dump=lambda s: checkpoint.dump(s, RECORDS),
        load=lambda b: checkpoint.load(b, RECORDS),
    )
    peers.drive = drive
    return drive, peers
