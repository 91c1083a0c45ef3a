"""kill -9 at each failpoint of each role, in a federation of real processes; then what must hold, holds.

with Sweep() as sweep:                     # lays one federation out and counts what it reaches
    for case in sweep.cases((1, 2, 3)):
        outcome = sweep.kill(case)         # broken invariants, seconds until the victim was back
"""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

from atoll.control import up
from atoll.core.errors import Gone
from tests.federation import invariants
from tests.federation.processes import JOB, Federation, Nursery, simulated

_PORT = re.compile(r"127\.0\.0\.1:(\d+)")
VICTIMS = {"coordinator": "coordinator", "edge": "edge-a", "client": "client-1", "learner": "client-1"}
_lock = threading.Lock()


@dataclass(frozen=True)
class Case:
    """Kill `role` when it reaches `point` for the `hit`th time. `first`: at its very first start."""

    role: str
    point: str
    hit: int
    seed: int
    first: bool = False


@dataclass
class Outcome:
    """`broken`: what does not hold. `back`: seconds until the victim took connections again."""

    case: Case
    broken: list[str] = field(default_factory=list)
    back: float | None = None
    seconds: float = 0.0


class Sweep:
    """A federation laid out once, as a folder to copy; `job` small enough that a case takes seconds."""

    def __init__(
        self,
        job: Mapping[str, Any] = JOB,
        *,
        transport: str = "https",
        edges: int = 1,
        hours: float = 24.0,
    ) -> None:
        self.job = dict(job)
        self.hours = hours
        self.transport = transport
        self.edges = edges
        self._stack = ExitStack()
        self._known: dict[int, dict[str, bytes]] = {}
        self._nurseries = threading.local()
        self.hits: dict[bool, dict[str, dict[str, int]]] = {}

    def __enter__(self) -> Self:
        memory = Path("/dev/shm")  # noqa: S108  a folder of our own in it
        where = self._stack.enter_context(
            tempfile.TemporaryDirectory(dir=memory if memory.exists() else None, prefix="atoll-kills-")
        )
        self.folder = Path(where)
        self.bare, self.known = self.folder / "bare", self.folder / "known"
        with Federation(self.bare, self.job, edges=self.edges, transport=self.transport) as fed:
            fed.set("coordinator", hours=self.hours)
        self.hits = {True: {}, False: {}}
        with self.federation(self.bare, "first") as fed:
            self._count(fed, self.hits[True], fed.begin_all)
        shutil.rmtree(self.folder / "known", ignore_errors=True)
        shutil.copytree(self.folder / "first", self.known)
        with self.federation(self.known, "calm") as fed:
            self._count(fed, self.hits[False], fed.begin_all)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def nursery(self) -> Nursery:
        """One for each thread."""
        if not hasattr(self._nurseries, "one"):
            with _lock:
                self._nurseries.one = self._stack.enter_context(Nursery())
        found: Nursery = self._nurseries.one
        return found

    def federation(self, template: Path, name: str) -> Placed:
        """A copy of a laid-out federation, with ports of its own."""
        folder = self.folder / name
        shutil.copytree(template, folder)
        placed = Placed(folder, self.job, edges=self.edges, transport=self.transport, nursery=self.nursery())
        _ports(folder, placed.held)
        return placed

    def expected(self, seed: int) -> dict[str, bytes]:
        """The leaves of the undisturbed run."""
        with _lock:
            if seed not in self._known:
                self._known[seed] = simulated(self.job, seed)
            return self._known[seed]

    def _count(self, fed: Placed, hits: dict[str, dict[str, int]], begin: Any) -> None:
        """An undisturbed life, which counts what each role reaches."""
        begin(hits=True)
        fed.until(lambda: set(fed.clients + fed.edges) <= fed.joined(), what="everybody has joined")
        run = fed.submit(seed=0)
        fed.finished(run)
        fed.stop(*reversed(fed.names))
        for role, name in VICTIMS.items():
            if name in fed.names:
                end = ".learner" if role == "learner" else ""
                hits[role] = json.loads((fed.folder / f"{name}.hits{end}").read_text())
        agent = hits["client"]  # which would reach it, too, and die itself
        hits["learner"] = {n: k for n, k in hits["learner"].items() if n not in agent}
        with fed.store() as store:
            wrong = invariants.broken(store, run, expected=self.expected(0), rounds=self.job["rounds"])
        assert not wrong, wrong

    def cases(self, seeds: Sequence[int], roles: Sequence[str] = tuple(VICTIMS)) -> Iterator[Case]:
        """Each failpoint that a role reaches, with each seed; those of a first start alone with it."""
        for role in roles:
            calm = dict(self.hits[False].get(role, {}))
            first = {name: n for name, n in self.hits[True].get(role, {}).items() if name not in calm}
            first |= {name: calm.pop(name) for name in list(calm) if name.startswith("store.submit.")}
            for is_first, found in ((False, calm), (True, first)):
                for point, reached in sorted(found.items()):
                    for seed in seeds:
                        draw = random.Random(f"{role} {point} {seed}")
                        yield Case(role, point, draw.randint(1, max(1, reached // 2)), seed, is_first)

    def kill(self, case: Case) -> Outcome:
        """Play one case."""
        began, outcome = time.monotonic(), Outcome(case)
        name = f"{case.role}-{re.sub('[^a-z_.]', '', case.point)}-{case.seed}"
        try:
            with self.federation(self.bare if case.first else self.known, name) as fed:
                self._kill(fed, case, outcome)
        except (AssertionError, OSError) as error:
            outcome.broken.append(f"{type(error).__name__}: {error}")
        outcome.seconds = time.monotonic() - began
        if not outcome.broken:
            shutil.rmtree(self.folder / name)
        return outcome

    def _kill(self, fed: Placed, case: Case, outcome: Outcome) -> None:
        victim = VICTIMS[case.role]
        run = "" if case.first else fed.submit(case.seed)
        fed.begin_all({victim: f"{case.point}:{case.hit}:kill"})
        if case.first:
            fed.until(
                lambda: fed.dead(victim) or fed.joined() >= set(fed.clients + fed.edges), what="joining"
            )
            if not fed.dead(victim):
                with suppress(Gone):
                    run = fed.submit(case.seed)
        if case.role == "learner":
            fed.finished(run)
            if "was ended by SIGKILL: it is started again" not in fed.logs(1000):
                outcome.broken.append(f"{case.point} was not reached {case.hit} times")
            self._over(fed, run, case, outcome)
            return
        over = ("done", "failed")
        fed.until(lambda: fed.dead(victim) or fed.state(run) in over, what=f"{victim} to die")
        with suppress(AssertionError):  # what comes after the end of a run
            fed.until(lambda: fed.dead(victim), 1.0)
        if not fed.dead(victim):
            fed.stop(*(name for name in fed.clients if name != victim))  # they say goodbye
            with suppress(AssertionError):
                fed.until(lambda: fed.dead(victim), 3.0)
        if not fed.dead(victim):
            outcome.broken.append(f"{case.point} was not reached {case.hit} times")
        else:
            outcome.back = fed.revived(victim, forked=case.seed != 1)
        if case.first and not run:
            fed.until(lambda: fed.joined() >= set(fed.clients + fed.edges), what="joining")
            run = next((row[0] for row in fed.sql("select id from runs")), "") or fed.submit(case.seed)
        fed.finished(run)
        self._over(fed, run, case, outcome)

    def _over(self, fed: Placed, run: str, case: Case, outcome: Outcome) -> None:
        for name in fed.names:
            if name in fed.lives:
                fed.kill(name)
        outcome.broken += fed.broken(run, self.expected(case.seed))


class Placed(Federation):
    """A federation copied to where it is, and what a sweep does with it."""

    def begin_all(self, failpoints: Mapping[str, str] = MappingProxyType({}), *, hits: bool = False) -> None:
        """Start everybody, servers first, so that clients come to their edge."""
        for name in self.names:
            file = self.folder / f"{name}.hits" if hits else None
            self.start(name, failpoints=failpoints.get(name, ""), hits=file)
            if self.role(name) != "client":
                begun = list(self.lives)
                up = partial(self._up, name, begun)
                self.until(up, what=f"{name} to listen")

    def _up(self, name: str, begun: Sequence[str]) -> bool:
        return self.listens(name) or any(map(self.dead, begun))

    def address(self, name: str) -> tuple[str, int]:
        """Where a server listens."""
        import tomllib

        host, _, number = tomllib.loads(self.settings(name).read_text())["listen"].partition(":")
        return host, int(number)

    def listens(self, name: str) -> bool:
        """Whether a server takes connections."""
        with suppress(OSError), socket.create_connection(self.address(name), timeout=1.0):
            return True
        return False

    def revived(self, victim: str, *, forked: bool) -> float | None:
        """Start it again; for a server, seconds until it took connections."""
        began = time.monotonic()
        self.start(victim, forked=forked)
        if self.role(victim) == "client":
            return None
        while not self.listens(victim):
            assert time.monotonic() < began + 60 and not self.dead(victim), self.logs()
            threading.Event().wait(0.02)
        return time.monotonic() - began

    def broken(self, run: str, expected: Mapping[str, bytes]) -> list[str]:
        """Which invariants do not hold, in any member's store."""
        with self.store() as store:
            wrong = invariants.broken(store, run, expected=expected, rounds=self.job["rounds"])
        from atoll.control.store import Store

        for edge in self.edges:
            if (self.place(edge) / "atoll.db").exists():
                with Store.open("", self.place(edge)) as store:
                    wrong += [
                        f"{edge}: {text}"
                        for text in (*invariants.chain(store), *invariants.aggregates(store, withdrawn=True))
                    ]
        return wrong


def _ports(folder: Path, held: ExitStack) -> None:
    """New ports in every settings file, the same for the same, and nobody else's meanwhile."""
    files = [path for path in sorted(folder.rglob("*.toml")) if path.name != "job.toml"]
    files += [p for p in (folder / "ports.json", folder / "coordinator" / "admin.json") if p.exists()]
    texts = {path: path.read_text() for path in files}
    old = sorted({port for text in texts.values() for port in _PORT.findall(text)})
    new = dict(zip(old, held.enter_context(up.reserved(len(old))), strict=True))
    for path, text in texts.items():
        path.write_text(_PORT.sub(lambda found: f"127.0.0.1:{new[found[1]]}", text))


__all__ = ["VICTIMS", "Case", "Outcome", "Placed", "Sweep", "urlsplit"]
