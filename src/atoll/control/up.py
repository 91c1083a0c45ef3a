"""`atoll up`: a whole federation on this machine, each member a process of its own; `atoll down` ends it.

    FOLDER/coordinator/   FOLDER/edges/edge-a/   FOLDER/clients/client-1/   each member's own files
    FOLDER/logs/          what each of them says
    FOLDER/operator.json  where the API is and its token, 0600: `atoll submit` and the others find it
    FOLDER/processes.json who runs, for `atoll down`

The data of the job are dealt to the clients as files, as they would lie at real sites.
"""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, StateError
from ..data import Sites
from ..data.examples import Examples
from ..privacy.private import write_private
from ..simulate.folder import write
from .config import JobFile, read
from .settings import Server

FEDERATION = "local"
WAIT = 90.0  # seconds until everybody must be there
_NAME = re.compile(r"[^a-z0-9._-]+")


def start(
    folder: Path, job: Path, *, clients: int, edges: int, transport: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Start a federation in `folder` for the data of `job`; what runs and where.

    Raises StateError if one runs there already or does not come up, ConfigError for numbers that make none.
    """
    if clients < 1 or edges < 0:
        raise ConfigError("a federation needs at least one client, and 0 edges or more")
    if running(folder):
        raise StateError(f"a federation runs in {folder} already: atoll down --folder {folder} ends it")
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "job.toml"
    fresh = not (folder / "coordinator" / "atoll.db").exists()
    if fresh:
        file = read(job, [f"data.clients={clients}"])
        names = _deal(file, folder / "clients")
        write(made, job.read_bytes())
        ports = _lay(folder, names, edges, transport)
    else:
        ports = json.loads((folder / "ports.json").read_text("utf-8"))
        names = sorted(p.name for p in (folder / "clients").iterdir())
    tell(f"starting a coordinator, {edges} edges and {len(names)} clients in {folder}")
    processes = _launch(folder, names, ports)
    try:
        _await_members(folder, [*_edges(ports), *names], processes)
    except StateError:
        stop(folder)
        raise
    return {
        "folder": str(folder),
        "api": ports["api"],
        "processes": {name: pid for name, (pid, _) in processes.items()},
        "job": str(made),
        "logs": str(folder / "logs"),
    }


def stop(folder: Path) -> list[str]:
    """End every process of the federation in `folder`, in order; the names of those that ran."""
    import psutil

    ended = []
    found = [(name, process) for name, process in running(folder).items()]
    for name, process in found:
        ended.append(name)
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs([process for _, process in found], timeout=15)
    for process in alive:
        process.kill()
    (folder / "processes.json").unlink(missing_ok=True)
    return ended


def running(folder: Path) -> dict[str, Any]:
    """The processes of the federation in `folder` that run, by name: never another with a reused number."""
    import psutil

    path = folder / "processes.json"
    if not path.exists():
        return {}
    found = {}
    for name, (pid, began) in json.loads(path.read_text("utf-8")).items():
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - began) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
                found[name] = process
        except psutil.NoSuchProcess:
            continue
    return found


# -- what each member finds in its folder ----------------------------------------------------


def _deal(file: JobFile, folder: Path) -> list[str]:
    """Each client's rows as CSV files in its folder, as a site would have them; the clients' names."""
    sites = file.sites()
    digits = len(str(len(sites)))
    names = []
    for k in range(len(sites)):
        name = f"client-{k + 1:0{digits}d}"
        names.append(name)
        _rows(folder / name / "train.csv", sites, sites[k])
        if sites.tests:
            _rows(folder / name / "test.csv", sites, sites.tests[k])
    write(
        folder.parent / "data.json",
        json.dumps({"name": file.data["name"], "classes": list(sites.classes)}).encode(),
    )
    return names


def _rows(path: Path, sites: Sites, rows: Examples) -> None:
    import io

    columns = list(sites.columns) or [f"x{i}" for i in range(rows.x[0].size)]
    text = io.StringIO(newline="")
    out = csv.writer(text, lineterminator="\n")
    out.writerow([*columns, "label"])
    labels = [sites.classes[y] for y in rows.y] if sites.classes else rows.y.tolist()
    flat = rows.x.reshape(len(rows), -1).tolist()
    out.writerows([*row, label] for row, label in zip(flat, labels, strict=True))
    write(path, text.getvalue().encode())


def _lay(folder: Path, names: Sequence[str], edges: int, transport: str) -> dict[str, Any]:
    """Ports, tokens and settings of every member, before any of them runs."""
    from .founding import found_authority
    from .store.store import Store

    ports = _free(3 + 2 * edges)
    hub = {"listen": ports[0], "grpc": ports[1], "api": ports[2]}
    place = folder / "coordinator"
    settings = Server(
        folder=str(place),
        federation=FEDERATION,
        listen=f"127.0.0.1:{hub['listen']}",
        grpc=f"127.0.0.1:{hub['grpc']}",
        api=f"127.0.0.1:{hub['api']}",
        names=("localhost", "127.0.0.1"),
    )
    _toml(
        place / "coordinator.toml",
        {k: getattr(settings, k) for k in ("name", "federation", "listen", "grpc", "api", "names")},
    )
    laid: dict[str, Any] = {"api": f"https://127.0.0.1:{hub['api']}", "edges": {}}
    at_hub = f"https://127.0.0.1:{hub['listen']}"
    with Store.open("", place) as store:
        registrar, _ = found_authority(settings, store, now=time.time())

        def token(role: str, name: str) -> str:
            return str(
                registrar.token(role, name, now=time.time(), random=secrets.token_bytes, actor="atoll up")
            )

        for i in range(edges):
            name, (listen, grpc) = f"edge-{chr(97 + i)}", ports[3 + 2 * i : 5 + 2 * i]
            laid["edges"][name] = f"https://127.0.0.1:{listen}"
            _toml(
                folder / "edges" / name / "edge.toml",
                {
                    "name": name,
                    "join": [at_hub],
                    "token": token("edge", name),
                    "transport": transport,
                    "listen": f"127.0.0.1:{listen}",
                    "grpc": f"127.0.0.1:{grpc}",
                    "names": ["localhost", "127.0.0.1"],
                },
            )
        doors = list(laid["edges"].values())
        for k, name in enumerate(names):
            home = doors[k % len(doors) :] + doors[: k % len(doors)] if doors else []
            _client(
                folder / "clients" / name, name, [*home, at_hub], token("client", name), transport, folder
            )
    write_private(folder / "ports.json", json.dumps(laid, indent=1).encode())
    return laid


def _client(place: Path, name: str, join: Sequence[str], token: str, transport: str, folder: Path) -> None:
    data = json.loads((folder / "data.json").read_text("utf-8"))
    table: dict[str, Any] = {"train": "train.csv", "target": "label"}
    if data["classes"]:
        table |= {"task": "classes", "classes": data["classes"]}
    if (place / "test.csv").exists():
        table["test"] = "test.csv"
    settings = {"name": name, "join": list(join), "token": token, "transport": transport}
    port = _free(1)[0]
    _toml(place / "client.toml", {**settings, "predict": f"127.0.0.1:{port}", "data": {data["name"]: table}})


def _toml(path: Path, values: Mapping[str, Any]) -> None:
    """A settings file, for its owner only: it may hold a token."""
    from .config import dump

    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, dump(values).encode())


def _free(count: int) -> list[int]:
    """Ports nobody listens on at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


# -- processes -------------------------------------------------------------------------------


def _edges(ports: Mapping[str, Any]) -> list[str]:
    return list(ports["edges"])


def _launch(folder: Path, names: Sequence[str], ports: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """Start everybody; (pid, when it began) by name."""
    (folder / "logs").mkdir(exist_ok=True)
    started: dict[str, tuple[int, float]] = {}
    todo = [("coordinator", "coordinator", folder / "coordinator" / "coordinator.toml")]
    todo += [(name, "edge", folder / "edges" / name / "edge.toml") for name in _edges(ports)]
    todo += [(name, "client", folder / "clients" / name / "client.toml") for name in names]
    for name, command, settings in todo:
        started[name] = _spawn(command, settings, folder / "logs" / f"{name}.log")
        write_private(folder / "processes.json", json.dumps(started).encode())
    return started


def launched(command: str, settings: Path, log: Path, **more: str) -> subprocess.Popen[bytes]:
    """A member's process, begun; `more`: further environment. What it says goes to the end of `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(  # noqa: S603  our own command, no shell
            [sys.executable, "-m", "atoll", command, "--config", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **more},
        )


def _spawn(command: str, settings: Path, log: Path) -> tuple[int, float]:
    import psutil

    process = launched(command, settings, log)
    return process.pid, psutil.Process(process.pid).create_time()


def _await_members(folder: Path, names: Sequence[str], processes: Mapping[str, tuple[int, float]]) -> None:
    """Wait until the coordinator has seen everybody. Raises StateError, with the log, if somebody ends."""
    until = time.monotonic() + WAIT
    admin = folder / "coordinator" / "admin.json"
    while time.monotonic() < until:
        alive = running(folder)
        for name in processes:
            if name not in alive:
                raise StateError(f"{name} ended at once; it said:\n{_tail(folder / 'logs' / f'{name}.log')}")
        if admin.exists():
            write_private(folder / "operator.json", admin.read_bytes())
            if _online(folder) >= set(names):
                return
        time.sleep(0.2)
    missing = sorted(set(names) - _online(folder))
    raise StateError(
        f"after {WAIT:g} seconds {', '.join(missing) or 'the API'} had not joined: see {folder / 'logs'}"
    )


def _online(folder: Path) -> set[str]:
    from ..core.errors import AtollError
    from .sdk import connect
    from .where import read as kept

    where = kept(folder / "operator.json")
    try:
        return {n["name"] for n in connect(where.url, token=where.token).nodes() if n["online"]}
    except AtollError:
        return set()


def _tail(path: Path, lines: int = 12) -> str:
    try:
        return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return "nothing"
