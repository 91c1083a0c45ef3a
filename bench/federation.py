"""A federation of processes for the bench: the real coordinator and clients on loopback, mutual TLS.

with Federation(folder, clients=2) as fed:
    marks = fed.train(size=100_000, rounds=10)    # seconds of each round, from the event log
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil

from atoll.control import config, up
from atoll.control.engine.founding import found_authority
from atoll.control.remote.sdk import connect
from atoll.control.settings import Server
from atoll.control.store.store import Store
from atoll.core.errors import AtollError

from .carry import cpu_seconds

ROWS = "x,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(10))
INSTANT = Path(__file__).with_name("instant.py")
WAIT = 120.0
LINGER = 2.0  # seconds until what learned gives its memory back, for those who wait for that


class Federation:
    """A coordinator without edges and its clients, each a process of its own.

    `client`: the command of a client, to which its settings file is added. `again`: members that joined in
    this folder before. `settings`: more of what stands in each client's file; `files`: texts beside it.
    """

    def __init__(
        self,
        folder: Path,
        clients: int,
        *,
        transport: str = "grpc",
        client: Sequence[str] = (),
        again: bool = False,
        settings: Mapping[str, Any] = MappingProxyType({}),
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.names = [f"c{k:02d}" for k in range(clients)]
        self.transport = transport
        self.processes: dict[str, psutil.Process] = {}
        self._again, self._settings, self._files = again, settings, files
        self._client = list(client) or [sys.executable, "-m", "atoll", "client", "--config"]
        self._open: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            if not self._again:
                self._lay()
            self._launch("coordinator", [sys.executable, "-m", "bench.member"])
            self._until(self._reach)
            for name in self.names:
                self._launch(name, self._client)
            self._until(self._online)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._open):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._open:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def identities(self) -> tuple[Path, Path]:
        """The folders of the coordinator's identity and, once it has joined, of a client's."""
        return self.folder / "coordinator" / "pki" / "identity", self.folder / self.names[0] / "identity"

    def back(self) -> None:
        """Start the coordinator again, once it has ended, and wait until it is reached."""
        self.processes["coordinator"].wait(20)
        self._open.pop(0).wait()
        self._launch("coordinator", [sys.executable, "-m", "bench.member"])
        self._until(self._reach)

    def train(self, size: int, rounds: int) -> list[float]:
        """Seconds of each round of instant clients."""
        return self.run(
            {"learner": {"name": "instant", "size": size}, "rounds": rounds, "every": rounds, "sites": False}
        )

    def run(self, table: dict[str, Any]) -> list[float]:
        """Seconds of each round, from one round's record in the log to the next one's."""
        run = str(self.api.submit({"name": "bench", "data": {"name": "bench"}, **table}).id)
        while (state := self._rows("SELECT state, reason FROM runs WHERE id = ?", run)[0])[0] != "done":
            if state[0] not in ("queued", "running"):
                raise RuntimeError(f"run {run} {state[0]}: {state[1]}")
            time.sleep(0.1)
        at = self._rows("SELECT at FROM events WHERE kind = 'note' AND run = ? ORDER BY seq", run)
        return [b - a for (a,), (b,) in itertools.pairwise(at)]

    def gate(self) -> psutil.Process | None:
        """The coordinator's gate worker."""
        return next(iter(self.processes["coordinator"].children()), None)

    def cpu(self) -> float:
        """Seconds of CPU of the coordinator and its gate so far."""
        both = [self.processes["coordinator"], *self.processes["coordinator"].children()]
        return cpu_seconds(*both)

    def said(self, name: str) -> str:
        """The end of what a member has logged."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")[-2000:]

    def _rows(self, query: str, *values: Any) -> list[Any]:
        """From the coordinator's store, which a reader does not hold up."""
        with closing(
            sqlite3.connect(f"file:{self.folder / 'coordinator' / 'atoll.db'}?mode=ro", uri=True)
        ) as base:
            return base.execute(query, values).fetchall()

    def _lay(self) -> None:
        place = self.folder / "coordinator"
        with up.reserved(3) as ports:
            doors = {k: f"127.0.0.1:{port}" for k, port in zip(("listen", "grpc", "api"), ports, strict=True)}
        values: dict[str, Any] = {
            "name": "coordinator",
            "federation": "bench",
            "names": ["localhost", "127.0.0.1"],
            **doors,
        }
        _toml(place / "coordinator.toml", values)
        server = Server(
            folder=str(place), federation="bench", listen=values["listen"], names=("localhost", "127.0.0.1")
        )
        with Store.open("", place) as store:
            registrar, _ = found_authority(server, store, now=time.time())
            for name in self.names:
                token = registrar.token(
                    "client", name, now=time.time(), random=secrets.token_bytes, actor="bench"
                )
                (self.folder / name).mkdir()
                for file, text in {"rows.csv": ROWS, **self._files}.items():
                    (self.folder / name / file).parent.mkdir(exist_ok=True)
                    (self.folder / name / file).write_text(text, "utf-8")
                _toml(
                    self.folder / name / "client.toml",
                    {
                        "name": name,
                        "join": [f"https://{values['listen']}"],
                        "token": str(token),
                        "transport": self.transport,
                        "parts": str(INSTANT),
                        "data": {"bench": {"train": "rows.csv", "target": "label"}},
                        **self._settings,
                    },
                )

    def _launch(self, name: str, command: Sequence[str]) -> None:
        settings = self.folder / name / ("coordinator.toml" if name == "coordinator" else "client.toml")
        with (self.folder / f"{name}.log").open("ab") as out:
            process = subprocess.Popen(  # noqa: S603  our own members
                [*command, str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._open.append(process)
        self.processes[name] = psutil.Process(process.pid)

    def _reach(self) -> bool:
        with suppress(AtollError, FileNotFoundError):
            where = json.loads((self.folder / "coordinator" / "admin.json").read_text("utf-8"))
            self.api = connect(where["url"], token=where["token"])
            return True
        return False

    def _online(self) -> bool:
        with suppress(AtollError):
            return {n["name"] for n in self.api.nodes() if n["online"]} >= set(self.names)
        return False

    def _until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT
        while not true():
            for process, name in zip(self._open, self.processes, strict=True):
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {self.said(name)}")
            if time.monotonic() > end:
                raise RuntimeError(f"no federation after {WAIT:g} seconds: {self.said('coordinator')}")
            time.sleep(0.1)


def memory(process: psutil.Process) -> tuple[int, int]:
    """Bytes of a process and those it has started: its share of all memory (PSS), and all that it can see."""
    found = [p.memory_full_info() for p in (process, *process.children(recursive=True))]
    return sum(m.pss for m in found), sum(m.rss for m in found)


def status(process: psutil.Process, key: str) -> int:
    """A line of /proc/PID/status, as VmHWM, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _toml(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.dump(values), "utf-8")
