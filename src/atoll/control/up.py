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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ..core.errors import ConfigError, StateError
from ..data import Sites
from ..data.examples import Examples, gaps
from ..privacy.private import write_private
from ..simulate.folder import write
from .config import JobFile, read
from .settings import Server, make
from .topology import doors

FEDERATION = "local"
HUB = "coordinator"
CLIENTS, MOST = 6, 26  # clients where nobody says how many; sites that get one each
WAIT = 90.0  # seconds until everybody must be there
_NAME = re.compile(r"[^a-z0-9._-]+")
Own: TypeAlias = Callable[[Path], Mapping[str, Any]]


def start(
    folder: Path,
    job: Path,
    *,
    above: Mapping[str, str],
    transport: str,
    tell: Callable[[str], None],
    own: Own | None = None,
    parts: Path | None = None,
) -> dict[str, Any]:
    """Start a federation in `folder` for the data of `job`; what runs and where.

    `above`: each member's parent, "" for the coordinator; whoever has nobody below it is a client.
    `own(place)`: puts a client's files into its folder and returns its settings; without, it gets its part of
    the job's data. `parts`: a Python file with parts of one's own, which every member gets.
    Raises StateError if one runs there already or does not come up, ConfigError where there is no client.
    """
    if _everybody(folder):
        raise StateError(f"a federation runs in {folder} already: atoll down --folder {folder} ends it")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if not (folder / "coordinator" / "atoll.db").exists():
            names = [name for name in above if above[name] and name not in above.values()]
            if not names:
                raise ConfigError("a federation needs at least one client")
            if own is None:
                own = _deal(given(job, len(names)), folder / "clients", names)
            write(folder / "job.toml", job.read_bytes())
            ports = held.enter_context(reserved(doors_of(above)))
            laid = _lay(folder, above, names, transport, ports, own)
        else:
            laid = json.loads((folder / "ports.json").read_text("utf-8"))
            if "tiers" not in laid:
                raise StateError(f"{folder} was laid out by an earlier version: name another one (--folder)")
        if parts is not None:
            laid["parts"] = str(parts.absolute())
        write_private(folder / "ports.json", json.dumps(laid, indent=1).encode())
        return _started(folder, laid, tell)


def clients_of(job: Path) -> int:
    """How many clients a job gets where nobody says: one a site where its data lie at a few, else CLIENTS."""
    sites = _sites(read(job))
    return sites if 0 < sites <= MOST else CLIENTS


def given(job: Path, clients: int) -> JobFile:
    """The job for so many clients: what lies at so many sites stays there, else it is dealt to them."""
    file = read(job)
    return file if _sites(file) == clients else read(job, [f"data.clients={clients}"])


def _sites(file: JobFile) -> int:
    """At how many sites a job's data lie of themselves; 0 where they do not."""
    if "clients" in file.data:
        return 0
    try:
        return len(file.sites(raw=True))
    except ConfigError:
        return 0


def doors_of(above: Mapping[str, str]) -> int:
    """How many ports these members listen on: two each, and the coordinator's API."""
    return 2 * len(above) + 1


def _started(folder: Path, laid: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    edges, tiers = laid["edges"], laid["tiers"]
    members = [name for tier in tiers for name in tier]
    clients = len(members) - len(edges)
    tell(f"starting a coordinator, {len(edges)} edges and {clients} clients in {folder}")
    (folder / "logs").mkdir(exist_ok=True)
    processes: dict[str, tuple[int, float]] = {}
    words = ["--parts", laid["parts"]] if laid.get("parts") else []
    end = time.monotonic() + WAIT
    try:
        _launch(folder, HUB, "coordinator", words, processes)
        for tier in tiers:
            for name in tier:
                _launch(folder, name, "edge" if name in edges else "client", words, processes)
            doors = {name: edges[name] for name in tier if name in edges}
            _until(folder, processes, end, partial(_closed, doors))  # or who is below them went elsewhere
        _until(folder, processes, end, partial(_away, folder, members))
    except StateError:
        stop(folder)
        raise
    return {
        "folder": str(folder),
        "api": laid["api"],
        "processes": {name: pid for name, (pid, _) in processes.items()},
        "job": str(folder / "job.toml"),
        "logs": str(folder / "logs"),
        "parts": laid.get("parts", ""),
    }


def plain(edges: int, clients: int) -> dict[str, str]:
    """A coordinator, so many edges under it and clients dealt to them in turn: each one's parent."""
    if clients < 1 or not 0 <= edges <= 26:
        raise ConfigError("a federation on one machine has at least one client and 0 to 26 edges")
    doors = [f"edge-{chr(97 + i)}" for i in range(edges)]
    digits = len(str(clients))
    homes = doors or [HUB]
    members = {f"client-{k + 1:0{digits}d}": homes[k % len(homes)] for k in range(clients)}
    return {HUB: "", **dict.fromkeys(doors, HUB), **members}


def stop(folder: Path) -> list[str]:
    """End every process of the federation in `folder`, in order; the names of those that ran."""
    import psutil

    found = _everybody(folder)
    for process in found.values():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(list(found.values()), timeout=15)
    for process in alive:
        process.kill()
    (folder / "processes.json").unlink(missing_ok=True)
    return list(found)


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


def _everybody(folder: Path) -> dict[str, Any]:
    """`running`, and whom somebody else started in the members' folders, as after a kill."""
    import psutil

    from .engine.process import holder

    found = running(folder)
    known = {process.pid for process in found.values()}
    for place in (folder / "coordinator", *sorted(folder.glob("edges/*")), *sorted(folder.glob("clients/*"))):
        pid = holder(place)
        if pid is not None and pid not in known:
            with suppress(psutil.NoSuchProcess):
                found[place.name] = psutil.Process(pid)
    return found


# -- what each member finds in its folder ----------------------------------------------------


def _deal(file: JobFile, folder: Path, names: Sequence[str]) -> Own:
    """Each client's rows as CSV files in its folder, as a site would have them, and its settings for them."""
    sites = file.sites(raw=True)
    for k, name in enumerate(sorted(names)):
        _rows(folder / name / "train.csv", sites, sites[k])
        if sites.tests:
            _rows(folder / name / "test.csv", sites, sites.tests[k])
    about = {"name": file.data["name"], "classes": list(sites.classes)}
    write(folder.parent / "data.json", json.dumps(about).encode())
    table: dict[str, Any] = {"train": "train.csv", "target": "label"}
    if sites.classes:
        table |= {"task": "classes", "classes": list(sites.classes)}
    if sites.tests:
        table["test"] = "test.csv"
    if any(gaps(rows) for rows in (*sites, *sites.tests)):
        table["missing"] = "keep"  # the job's pipeline fills them
    return lambda place: {"data": {str(file.data["name"]): table}}


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


def _lay(
    folder: Path,
    above: Mapping[str, str],
    clients: Sequence[str],
    transport: str,
    free: Sequence[int],
    own: Own,
) -> dict[str, Any]:
    """Ports, of `free`, tokens and settings of every member, before any of them runs."""
    from .engine.founding import found_authority
    from .store.store import Store

    (hub,) = (name for name, parent in above.items() if not parent)
    edges = [name for name in above if name != hub and name not in clients]
    api, *rest = free
    ports = {name: rest[2 * i : 2 * i + 2] for i, name in enumerate([hub, *edges, *clients])}
    urls = {name: f"https://127.0.0.1:{listen}" for name, (listen, _) in ports.items()}
    laid: dict[str, Any] = {
        "api": f"https://127.0.0.1:{api}",
        "edges": {name: urls[name] for name in edges},
        "tiers": _tiers(above),
    }

    def server(name: str) -> dict[str, Any]:
        listen, grpc = ports[name]
        own = {"listen": f"127.0.0.1:{listen}", "grpc": f"127.0.0.1:{grpc}"}
        return {"name": name, **own, "names": ["localhost", "127.0.0.1"]}

    place = folder / "coordinator"
    top = {**server(hub), "federation": FEDERATION, "api": f"127.0.0.1:{api}"}
    _toml(place / "coordinator.toml", top)
    with Store.open("", place) as store:
        registrar, _ = found_authority(make(Server, {**top, "folder": str(place)}), store, now=time.time())

        def member(name: str, role: str) -> dict[str, Any]:
            token = registrar.token(role, name, now=time.time(), random=secrets.token_bytes, actor="atoll up")
            join = [urls[door] for door in doors(name, above)]
            return {"name": name, "join": join, "token": str(token), "transport": transport}

        for name in edges:
            _toml(folder / "edges" / name / "edge.toml", {**server(name), **member(name, "edge")})
        for name in clients:
            predict = f"127.0.0.1:{ports[name][0]}"
            place = folder / "clients" / name
            _toml(place / "client.toml", {**member(name, "client"), "predict": predict, **own(place)})
    return laid


def _tiers(above: Mapping[str, str]) -> list[list[str]]:
    """Whoever is below the coordinator, tier by tier."""
    found = [[name for name, parent in above.items() if not parent]]
    while found[-1]:
        found.append([name for name, parent in above.items() if parent in found[-1]])
    return found[1:-1]


def _toml(path: Path, values: Mapping[str, Any]) -> None:
    """A settings file, for its owner only: it may hold a token."""
    from .config import dump

    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, dump(values).encode())


@contextmanager
def reserved(count: int) -> Iterator[list[int]]:
    """Ports below those that systems give to outgoing connections; others who look in this way pass them
    over meanwhile, and our members may listen there, since nobody does here.
    """
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = 20_000 + secrets.randbelow(12_000)
            mine = socket.socket()
            try:
                mine.bind(("127.0.0.1", port))
            except OSError:
                mine.close()
                continue
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.enter_context(mine)
            ports.append(port)
        yield ports


# -- processes -------------------------------------------------------------------------------


def _launch(
    folder: Path, name: str, role: str, words: Sequence[str], started: dict[str, tuple[int, float]]
) -> None:
    """Start a member; `started` gets (pid, when it began) under its name."""
    place = folder / "coordinator" if role == "coordinator" else folder / f"{role}s" / name
    started[name] = _spawn(role, place / f"{role}.toml", folder / "logs" / f"{name}.log", words)
    write_private(folder / "processes.json", json.dumps(started).encode())


def launched(command: str, settings: Path, log: Path, *words: str, **more: str) -> subprocess.Popen[bytes]:
    """A member's process, begun; `more`: further environment. What it says goes to the end of `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(  # noqa: S603  our own command, no shell
            [sys.executable, "-m", "atoll", command, "--config", str(settings), *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **more},
        )


def _spawn(command: str, settings: Path, log: Path, words: Sequence[str]) -> tuple[int, float]:
    import psutil

    process = launched(command, settings, log, *words)
    return process.pid, psutil.Process(process.pid).create_time()


def _until(
    folder: Path, started: Collection[str], end: float, missing: Callable[[], Collection[str]]
) -> None:
    """Wait until nobody is `missing`. Raises StateError, with the log, if somebody ends or it is late."""
    while lacking := missing():
        for name in set(started).difference(running(folder)):
            raise StateError(f"{name} ended at once; it said:\n{_tail(folder / 'logs' / f'{name}.log')}")
        if time.monotonic() > end:
            who = ", ".join(sorted(lacking))
            raise StateError(f"after {WAIT:g} seconds {who} had not joined: see {folder / 'logs'}")
        time.sleep(0.2)


def _closed(doors: Mapping[str, str]) -> list[str]:
    """Who does not listen yet, of these members and their URLs."""
    found = []
    for name, url in doors.items():
        try:
            socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), 1.0).close()
        except OSError:
            found.append(name)
    return found


def _away(folder: Path, names: Collection[str]) -> list[str]:
    """Whom of these the coordinator has not seen yet; the API, where it cannot be asked."""
    admin = folder / "coordinator" / "admin.json"
    if not admin.exists():
        return ["the API"]
    write_private(folder / "operator.json", admin.read_bytes())
    return [name for name in names if name not in _online(folder)]


def _online(folder: Path) -> set[str]:
    from ..core.errors import AtollError
    from .remote.sdk import connect
    from .remote.where import read as kept

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
