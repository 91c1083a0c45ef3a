"""A whole federation in one thread and virtual time: the real coordinator, edges and clients.

Everything above the sockets is what runs in production: store, journal, host, drive, service, dial. The
net between them is made of memory and dice; one seed gives one trace. A process dies as a real one
does: from that moment nothing it does reaches the disk or the net.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import numpy as np

import atoll as at
from atoll.control.engine.agent import Agent
from atoll.control.engine.coordinator import Coordinator
from atoll.control.engine.edge import EdgeNode
from atoll.control.engine.outside import Outside
from atoll.control.engine.pki import Registrar
from atoll.control.engine.sensors import Sensors
from atoll.control.engine.workplace import Here
from atoll.control.gate.gate_worker import Case, look
from atoll.control.settings import Client, Edge, Power, Server
from atoll.control.store import Store
from atoll.control.topology import doors
from atoll.control.up import _rows, plain
from atoll.core.errors import AtollError, Gone, ProtocolError
from atoll.core.session import Packet
from atoll.privacy.keys import Authority, Current
from atoll.transport.link import KEPT, letter, pack, read, split, unpack
from atoll.transport.memory import MemoryLink
from atoll.transport.service import Limits, Service
from atoll.wire import failpoint
from atoll.wire.body import Checked, layout_of
from tests.federation.quick import identity, pki, quick
from tests.federation.virtual import VirtualLoop
from tests.store.fresh import opened

PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)
OWNER: WeakKeyDictionary[Any, Process | None] = WeakKeyDictionary()  # of each task


class Dead(BaseException):
    """What a dead process meets wherever it turns."""


class Gatekeeper:
    """The gate's judgement without its process."""

    async def check(self, want, head, path):
        verdict = look(Case(1, want, head, str(path), 1 << 30))
        if verdict.refused or verdict.failed:
            raise ProtocolError(f"{want.member}: {verdict.refused or verdict.failed}")
        return Checked(verdict.values, verdict.sections, layout_of(want.leaves))

    async def close(self):
        pass


class Doors:
    """A server's doors in memory: its service stands in the net's table while it lives."""

    def __init__(self, net: Net, name: str, host: Any, folder: Path) -> None:
        self.net = net
        self.url = f"memory://{name}"
        clock = asyncio.get_running_loop().time
        limits = Limits(heartbeat=5.0, grace=15.0, window=30.0)
        self.service = Service(host, limits, deltas=folder / "deltas", clock=clock)
        host.service = self.service

    async def start(self):
        await self.service.start()
        self.net.servers[self.url] = (PROCESS.get(), self.service)

    def announce(self, more):
        pass

    def counts(self):
        return {}

    async def stop(self):
        if not PROCESS.get().dead:
            self.net.servers.pop(self.url, None)
            await self.service.close()


class Link(MemoryLink):
    """A link that takes time, breaks by dice, and reaches nobody over a partition."""

    def __init__(
        self, net: Net, service: Service, mine: Process, theirs: Process, member: Any, url: str
    ) -> None:
        super().__init__(service, member, url)
        self.net, self.mine, self.theirs = net, mine, theirs
        net.links.append(self)

    async def _way(self):
        await asyncio.sleep(self.net.dice.exponential(self.net.latency))
        if self.mine.dead:
            raise Dead
        pair = {self.mine.name, self.theirs.name}
        if self.theirs.dead or pair in self.net.partitions or self.net.dice.random() < self.net.loss:
            self.cut()
            raise Gone("the net is down")

    def _start(self, work):
        """What a link starts is done by the server."""
        context = PROCESS.set(self.theirs)
        try:
            return super()._start(work)
        finally:
            PROCESS.reset(context)

    async def session(self, name, hello):
        await self._way()
        plain = self.net.plain or self.net.crowd
        channel = await super().session(name, self.net.older(hello) if plain else hello)
        channel.send = self._laden(channel.send)
        channel.down.put = self._laden(channel.down.put)
        if self.net.twice:
            channel.send = self._twice(channel.send)
            channel.down.put = self._twice(channel.down.put)
        return channel

    def _laden(self, send):
        """What goes along with a letter takes its time, as a call does."""

        async def sent(packet):
            if packet is not None and (body := unpack(packet).body) and split(body)[1]:
                await self._way()
            await send(packet)

        return sent

    def _twice(self, send):
        """Some packets arrive twice."""

        async def sent(packet):
            await send(packet)
            if packet is not None and unpack(packet).number and self.net.dice.random() < self.net.twice:
                await send(packet)

        return sent

    async def offset(self, upload):
        await self._way()
        return await super().offset(upload)

    async def upload(self, upload, frames, start):
        await self._way()
        if self.net.crowd:
            receipt = await self._crowd(upload, frames, start)
        else:
            receipt = await super().upload(upload, frames, start)
        if self.net.dice.random() < self.net.twice:  # the same again, after it was acknowledged
            with suppress(AtollError):
                assert await super().upload(upload, frames, KEPT) == receipt
        await self._way()  # the receipt may be lost on its way back
        return receipt

    async def _crowd(self, upload, frames, start):
        """The same upload many times at once, here and at every other server: one receipt, counted once."""
        data = [frame async for frame in frames]

        async def once(link):
            async def again():
                for frame in data:
                    yield frame

            return await MemoryLink.upload(link, upload, again(), start)

        others = [
            Link(self.net, service, self.mine, theirs, self._member, url)
            for url, (theirs, service) in self.net.servers.items()
            if url != self.url and not theirs.dead
        ]
        copies = [once(self) for _ in range(self.net.crowd)] + [once(link) for link in others]
        found = await asyncio.gather(*copies, return_exceptions=True)
        receipts = [one for one in found if isinstance(one, dict)]
        for one in found[self.net.crowd :]:
            assert isinstance(one, AtollError), one  # nobody else takes it
        assert all(one == receipts[0] for one in receipts), receipts
        if not receipts:
            raise next(one for one in found if isinstance(one, BaseException))
        return receipts[0]

    async def download(self, blob, start, have):
        await self._way()
        async for frame in super().download(blob, start, have):
            yield frame

    async def probe(self):
        await self._way()


class Unreachable:
    """A link to a server that is not there."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def session(self, name, hello):
        await asyncio.sleep(0.01)
        raise Gone("nobody listens there")

    async def probe(self):
        raise Gone("nobody listens there")

    async def offset(self, upload):
        raise Gone("nobody listens there")

    async def upload(self, upload, frames, start):
        raise Gone("nobody listens there")

    async def download(self, blob, start, have):
        raise Gone("nobody listens there")
        yield b""

    async def close(self):
        pass


@dataclass
class Net:
    dice: Any
    latency: float = 0.01
    loss: float = 0.0
    twice: float = 0.0
    crowd: int = 0
    plain: bool = False  # members are of an earlier version: nothing goes along with letters
    servers: dict[str, tuple[Process, Service]] = field(default_factory=dict)
    partitions: list[set[str]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    def link(self, mine: Process, current: Current, url: str) -> Any:
        found = self.servers.get(url)
        if found is None or found[0].dead:
            return Unreachable(url)
        return Link(self, found[1], mine, found[0], current().member, url)

    @staticmethod
    def older(hello: bytes) -> bytes:
        packet = unpack(hello)
        said = dict(read(packet.body).head)
        said["capabilities"] = [one for one in said["capabilities"] if one != "along"]
        return pack(Packet(0, packet.seen, letter("hello", said)))

    def cut(self, process: Process) -> None:
        for link in self.links:
            if process in (link.mine, link.theirs):
                link.cut()
        self.links = [link for link in self.links if process not in (link.mine, link.theirs)]

    def part(self, *names: str) -> None:
        """Nothing passes between these from now on."""
        pair = set(names)
        self.partitions.append(pair)
        for link in self.links:
            if {link.mine.name, link.theirs.name} == pair:
                link.cut()


@dataclass(eq=False)
class Process:
    """One life of a member's process."""

    name: str
    dead: bool = False
    task: asyncio.Task[Any] | None = None
    node: Any = None
    world: Any = None

    def check(self) -> None:
        if self.dead:
            raise Dead


class World:
    """Coordinator, edges and clients over one folder. `start` and `kill` them by name."""

    def __init__(
        self,
        folder: Path,
        data: at.Sites,
        *,
        edges: int = 0,
        above: Mapping[str, str] | None = None,
        seed: int = 0,
        latency: float = 0.01,
        loss: float = 0.0,
        twice: float = 0.0,
    ) -> None:
        self.folder = folder
        self.data = data
        self.dice = np.random.default_rng(seed)
        self.net = Net(self.dice, latency, loss, twice, plain=seed % 2 == 1)
        self.seed = seed
        self.above = above or plain(edges, len(data))
        self.edges = [name for name in self.above if name.startswith("edge-")]
        self.clients = [name for name in self.above if name.startswith("client-")]
        self.bombs: dict[str, int] = {}
        self.processes: dict[str, Process] = {}
        self.lives = 0
        self.patience = {"patience": 20.0, "edge_patience": 6.0}
        self.look = 0.5  # virtual seconds
        self.power: dict[str, Power] = {}  # of clients that hold back now and then
        self.sensors: dict[str, Any] = {}
        self.workplace: Any = Here
        self._watch: list[Callable[[str], None]] = []

    # -- processes ----------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        for name in names:
            self.lives += 1
            process = Process(name, world=self)
            self.processes[name] = process
            context = PROCESS.set(process)
            process.task = asyncio.ensure_future(self._life(process))
            PROCESS.reset(context)

    def start_all(self) -> None:
        self.start("coordinator", *self.edges, *self.clients)

    async def _life(self, process: Process) -> None:
        with suppress(Dead):
            process.node = self._make(process)
            await process.node.serve()

    def kill(self, name: str) -> None:
        """Now: nothing it does after this reaches anybody."""
        process = self.processes[name]
        process.dead = True
        self.net.cut(process)
        loop = asyncio.get_running_loop()
        for task in asyncio.all_tasks(loop):
            if OWNER.get(task) is process and task is not asyncio.current_task():
                task.cancel()

    def crash(self, point: str, count: int) -> None:
        """Whoever reaches this failpoint for the `count`th time from now on dies there."""
        self.bombs[point] = count
        failpoint.arm(",".join(f"{name}:{left}:kill" for name, left in self.bombs.items()))

    def reached(self, point: str) -> None:
        process = PROCESS.get()
        if process is None or process.dead or point not in self.bombs:
            return
        self.bombs[point] -= 1
        if self.bombs[point] <= 0:
            del self.bombs[point]
            self.kill(process.name)
            raise Dead

    def _make(self, process: Process) -> Any:
        name, place = process.name, self.folder / process.name
        outside = Outside(
            store=lambda url, folder: self._store(process, folder),
            authority=self._authority,
            gate=lambda folder: Gatekeeper(),
            servers=lambda settings, current, host, registrar=None: Doors(self.net, name, host, place),
            api=lambda *args: None,
            draw=lambda: random.Random(f"{self.seed} {self.lives}"),
            link=lambda current, settings: lambda url: self.net.link(process, current, url),
            workplace=self.workplace,
            sensors=lambda link: self.sensors.get(name) or Sensors(link),
            clock=lambda: 1.8e9 + asyncio.get_running_loop().time(),
        )
        patience = self.patience
        if name == "coordinator":
            return Coordinator(Server(folder=str(place), federation="test", **patience), outside)
        self._enrol(name)
        join = tuple(f"memory://{door}" for door in doors(name, self.above))
        if name in self.edges:
            return EdgeNode(Edge(folder=str(place), name=name, join=join, home=5.0, **patience), outside)
        held = {"rows": {"train": "train.csv", "test": "test.csv", "target": "label", "task": "classes"}}
        power = self.power.get(name, Power())
        named = name if name in self.clients else ""  # a copy of a folder: as its identity says
        settings = Client(folder=str(place), name=named, join=join, data=held, home=5.0, power=power)
        return Agent(settings, outside)

    def _store(self, process: Process, folder: Path) -> Store:
        store = opened(folder, clock=lambda: 1.8e9 + asyncio.get_running_loop().time())
        write = store.write

        def guarded(*args, **values):
            process.check()
            return write(*args, **values)

        store.write = guarded
        return store

    def _authority(self, settings: Server, store: Store) -> Any:
        place = pki()
        return Registrar(Authority.open(place / "authority"), store), Current(place / "identity")

    def _enrol(self, name: str) -> None:
        place = self.folder / name / "identity"
        if not place.exists():
            role = "edge" if name in self.edges else "client"
            shutil.copytree(identity(role, name), place)
        if name in self.clients and not (self.folder / name / "train.csv").exists():
            k = self.clients.index(name)
            _rows(self.folder / name / "train.csv", self.data, self.data[k])
            _rows(self.folder / name / "test.csv", self.data, self.data.tests[k])

    # -- what operators do --------------------------------------------------------------------

    @property
    def store(self) -> Store:
        return self.processes["coordinator"].node.store

    def submit(self, table: dict[str, Any], seed: int) -> str:
        return self.store.submit(table, seed, "test", name=str(table.get("name", "job")))

    async def until(self, ready: Callable[[], bool], seconds: float = 600.0) -> None:
        """Let time pass until it is so."""
        end = asyncio.get_running_loop().time() + seconds
        while not ready():
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"not within {seconds:g} virtual seconds: {self.report()}")
            await asyncio.sleep(self.look)

    def alive(self, name: str = "coordinator") -> bool:
        process = self.processes.get(name)
        return process is not None and not process.dead and hasattr(process.node, "host")

    def online(self) -> set[str]:
        """Whom the store says to be there."""
        return {node["name"] for node in self.store.nodes() if node["online"]}

    async def gathered(self) -> None:
        """Until the coordinator can reach every client."""
        count = len(self.clients)

        def here() -> int:
            found = self.processes["coordinator"].node.host.fleet.reachable()
            return sum("data" in about for about in found.values())

        await self.until(lambda: self.alive() and here() == count)

    def state(self, run: str) -> str:
        return self.store.run(run)["state"]

    async def finished(self, run: str, seconds: float = 900.0) -> dict[str, Any]:
        await self.until(lambda: self.alive() and self.state(run) in ("done", "failed", "stopped"), seconds)
        return self.store.run(run)

    def params(self, run: str) -> bytes:
        model = next(m for m in self.store.models() if m["run"] == run)
        return self.store.blobs.read(model["blob"])

    def report(self) -> dict[str, Any]:
        ended = {
            n: p.task.exception()
            for n, p in self.processes.items()
            if p.task.done() and not p.task.cancelled()
        }
        runs = [(r["id"], r["state"], r["reason"], r["rounds"]) for r in self.store.runs()]
        return {
            "runs": runs,
            "ended": ended,
            "open": self.processes["coordinator"].node.host.asks.open.keys(),
        }


def run(main: Any) -> Any:
    """A coroutine in a loop of its own in virtual time; whatever still runs then dies."""
    with quick(), patch.object(failpoint, "_fire", _reached):
        try:
            return _run(main)
        finally:
            failpoint.arm("")


def _reached(point: str) -> None:
    process = PROCESS.get()
    if process is not None:
        process.world.reached(point)


def _run(main: Any) -> Any:
    loop = VirtualLoop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.set_task_factory(_owned)
    task = loop.create_task(main)
    try:
        return loop.run_until_complete(task)
    finally:
        for left in asyncio.all_tasks(loop):
            process = OWNER.get(left)
            if process is not None:
                process.dead = True
            left.cancel()
        loop.run_until_complete(_ended(loop))
        loop.close()


def _owned(loop: Any, job: Any, **values: Any) -> Any:
    task = asyncio.Task(job, loop=loop, **values)
    OWNER[task] = PROCESS.get()
    return task


async def _ended(loop: Any) -> None:
    while left := asyncio.all_tasks(loop) - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=5.0)
        for task in left:
            task.cancel()
