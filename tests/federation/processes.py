"""Whole federations of real processes: started, killed and started again by name, and always ended.

    with Nursery() as nursery, Federation(folder, JOB, nursery=nursery) as fed:
        fed.start_all()
        run = fed.submit(seed=5)
        fed.kill("edge-a"); fed.start("edge-a", failpoints="drive.folded.before:2:kill")
        fed.until(lambda: fed.state(run) == "done")

Folders, ports, tokens and settings are those of `atoll up`. Without a nursery each process is the
command `python -m atoll ...` itself. Nothing sleeps: waiting wakes when a process ends, and looks again
ten times a second.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.numpy import load

import atoll as at
from atoll.control import up
from atoll.control.config import dump, parse, read
from atoll.control.store import Store
from atoll.core.errors import AtollError
from atoll.privacy.private import write_private

ROOT = Path(__file__).parents[2]
WAIT = 90.0  # seconds until it is an error, on a machine that does other things as well
JOB: Mapping[str, Any] = {
    "name": "wine",
    "seed": 5,
    "rounds": 2,
    "data": {"name": "wine", "clients": 3, "holdout": 0.25},
    "learner": {"name": "softmax", "lr": 0.1},
    "algorithm": {"name": "scaffold"},
}


class Nursery:
    """Where members are forked from; end it, and they end with it."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.federation.nursery"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(
        self,
        command: str,
        settings: Path,
        log: Path,
        words: Sequence[str],
        env: Mapping[str, str],
        hits: Path | None,
    ) -> int:
        task: dict[str, Any] = {"command": command, "settings": str(settings), "log": str(log)}
        task |= {"words": list(words), "env": dict(env)}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({**task, "hits": str(hits) if hits else ""}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass
class Life:
    """A member's process: its number, a descriptor that can be waited for, Popen's own if it has one."""

    pid: int
    end: int
    popen: subprocess.Popen[bytes] | None = None

    @property
    def over(self) -> bool:
        return bool(select.select([self.end], [], [], 0)[0])

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.end, number)

    def bury(self) -> None:
        """Wait for the end of one that was told to end."""
        if not select.select([self.end], [], [], 20)[0]:
            self.signal(signal.SIGKILL)
            select.select([self.end], [], [])
        if self.popen is not None:
            self.popen.wait()
        os.close(self.end)


class Federation:
    """A coordinator, edges and clients in `folder`; leave the block, and every process has ended."""

    def __init__(
        self,
        folder: Path,
        job: Mapping[str, Any] = JOB,
        *,
        edges: int = 1,
        above: Mapping[str, str] | None = None,
        transport: str = "https",
        nursery: Nursery | None = None,
    ) -> None:
        self.folder = folder
        self.job = job
        self.nursery = nursery
        self.lives: dict[str, Life] = {}
        self.words: dict[str, Sequence[str]] = {}  # further words of a member's command
        self.held = ExitStack()  # ports, which no other test may take while a member is away
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        self.file = folder / "job.toml"
        if not self.file.exists():
            self.file.write_text(dump(dict(job)))
            above = above or up.plain(edges, read(self.file).data["clients"])
            names = [name for name in above if name.startswith("client-")]
            own = up._deal(read(self.file), folder / "clients", names)
            ports = self.held.enter_context(up.reserved(up.doors_of(above)))
            up._lay(folder, above, names, transport, ports, own)
        self.clients = sorted(path.name for path in (folder / "clients").iterdir())
        self.edges = sorted(path.name for path in (folder / "edges").iterdir()) if edges else []
        self.names = ["coordinator", *self.edges, *self.clients]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*reversed(self.names))
        self.held.close()

    def outlived(self, names: Collection[str]) -> None:
        """Wait until each of these has died, and start it again as soon as it has."""
        left = set(names)
        while left:
            dead = self.until(lambda left=left: {n for n in left if self.dead(n)}, what=f"{left} to die")
            for name in dead:
                self.start(name)
            left -= dead

    # -- processes ------------------------------------------------------------------------------

    def role(self, name: str) -> str:
        return "coordinator" if name == "coordinator" else "edge" if name in self.edges else "client"

    def place(self, name: str) -> Path:
        return (
            self.folder / {"coordinator": ".", "edge": "edges", "client": "clients"}[self.role(name)] / name
        )

    def settings(self, name: str) -> Path:
        return self.place(name) / f"{self.role(name)}.toml"

    def read(self, name: str) -> dict[str, Any]:
        """A member's settings."""
        return tomllib.loads(self.settings(name).read_text())

    def set(self, name: str, **values: Any) -> None:
        """Change a member's settings; it reads them when it starts."""
        write_private(self.settings(name), dump({**self.read(name), **values}).encode())

    def start(
        self, name: str, *, failpoints: str = "", hits: Path | None = None, forked: bool = True, **env: str
    ) -> None:
        """Start a member; `forked`: from the nursery where there is one."""
        if name in self.lives:
            assert self.lives[name].over, f"{name} runs already"
            self.lives.pop(name).bury()
        log = self.folder / "logs" / f"{name}.log"
        env = {"ATOLL_FAILPOINTS": failpoints, **env} if failpoints else env
        words, role = self.words.get(name, ()), self.role(name)
        if self.nursery is not None and forked:
            pid, popen = self.nursery.fork(role, self.settings(name), log, words, env, hits), None
        else:
            path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
            popen = up.launched(role, self.settings(name), log, *words, PYTHONPATH=path, **env)
            pid = popen.pid
        self.lives[name] = Life(pid, os.pidfd_open(pid), popen)

    def start_all(self, **failpoints: str) -> None:
        for name in self.names:
            self.start(name, failpoints=failpoints.get(name.replace("-", "_"), ""))

    def kill(self, name: str) -> None:
        """kill -9, and it is over when this returns."""
        life = self.lives.pop(name)
        life.signal(signal.SIGKILL)
        life.bury()

    def stop(self, *names: str) -> None:
        """Ask these to end in order, the coordinator last; wait for it."""
        lives = [self.lives.pop(name) for name in names if name in self.lives]
        for life in lives:
            life.signal(signal.SIGTERM)
        for life in lives:
            life.bury()

    def dead(self, name: str) -> bool:
        return name not in self.lives or self.lives[name].over

    def until(self, ready: Callable[[], Any], seconds: float = WAIT, what: str = "") -> Any:
        """Wait until it is so; what `ready` answered. Fails, with the logs, after `seconds`."""
        end = time.monotonic() + seconds
        while not (found := ready()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.logs()}")
            ends = [life.end for life in self.lives.values() if not life.over]
            select.select(ends, [], [], 0.1)
        return found

    def logs(self, lines: int = 12) -> str:
        tails = {name: up._tail(self.folder / "logs" / f"{name}.log", lines) for name in self.names}
        return "\n".join(f"--- {name}\n{text}" for name, text in tails.items())

    # -- what operators see ---------------------------------------------------------------------

    def sql(self, statement: str, *values: Any, name: str = "coordinator") -> list[tuple[Any, ...]]:
        """Rows of a member's database as they are now; [] where there is none yet."""
        if url := self._database(name):
            return rows(url, statement.replace("?", "%s"), values)
        path = self.place(name) / "atoll.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path, timeout=20)) as db:
            try:
                return db.execute(statement, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def store(self) -> Store:
        """The coordinator's, to be closed; while it does not run."""
        return Store.open(self._database("coordinator"), self.place("coordinator"))

    def _database(self, name: str) -> str:
        return str(self.read(name).get("store", "")) if name == "coordinator" else ""

    def submit(self, seed: int = 5, job: Mapping[str, Any] | None = None) -> str:
        """Queue the job, as an operator through the API if the coordinator runs, else in the store."""
        table = dict(job or self.job)
        if self.dead("coordinator"):
            with self.store() as store:
                return store.submit(table, seed, "test", name=str(table["name"]))
        return str(self.connect().submit(table, seed=seed).id)

    def connect(self) -> at.Federation:
        found: at.Federation = self.until(self._admin, what="the coordinator's API")
        return found

    def _admin(self) -> Any:
        kept = self.place("coordinator") / "admin.json"
        with suppress(AtollError):
            if kept.exists():
                where = json.loads(kept.read_text())
                return at.connect(where["url"], token=where["token"])
        return None

    def state(self, run: str) -> str:
        return next((row[0] for row in self.sql("select state from runs where id = ?", run)), "")

    def rounds(self, run: str) -> int:
        return next((row[0] for row in self.sql("select rounds from runs where id = ?", run)), 0)

    def joined(self) -> frozenset[str]:
        return frozenset(row[0] for row in self.sql("select name from nodes"))

    def finished(self, run: str, seconds: float = WAIT) -> None:
        """Wait for a run's end; fails where it does not end well."""
        self.until(lambda: self.state(run) in ("done", "failed", "stopped"), seconds, f"run {run}")
        reason = self.sql("select state, reason from runs where id = ?", run)
        assert reason[0][0] == "done", (reason, self.logs())

    def leaves(self, run: str) -> dict[str, bytes]:
        """The finished model's leaves; the coordinator need not run."""
        ((blob,),) = self.sql("select blob from models where run = ?", run)
        data = (self.place("coordinator") / "blobs" / blob[:2] / blob).read_bytes()
        return {name: leaf.tobytes() for name, leaf in load(data).items()}

    def expected(self, seed: int = 5, job: Mapping[str, Any] | None = None) -> dict[str, bytes]:
        return simulated(dict(job or self.job), seed)


def rows(url: str, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Of a PostgreSQL database as they are now; [] where there is no such table yet."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as db:
        try:
            return db.execute(statement, values).fetchall()
        except psycopg.errors.UndefinedTable:
            return []


def simulated(table: dict[str, Any], seed: int) -> dict[str, bytes]:
    """The leaves the same job has in simulation."""
    file = parse(table)
    run = at.simulate(file.job, file.sites(), seed=seed)
    return {name: leaf.tobytes() for name, leaf in run.params.items()}
