"""`atoll demo-edge`: engines report over MQTT to six nodes, which learn together, serve, notice and renew.

Real processes: a broker, a coordinator, two edges, six clients. In the end somebody trains a bad model; the
nodes try it, take it back by themselves, and answer every request meanwhile.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np

from ..core.errors import PeerError, StateError
from ..data.turbofan import CAP
from . import broker, live, up
from .config import dump
from .plant import Plant, Send, contract
from .remote import predicting
from .remote.sdk import Federation, connect
from .remote.where import read as kept
from .settings import Client, read
from .table import table

Say = Callable[[str], str]
EDGES, NODES = 2, 6
WAIT = 60.0  # seconds that anything may take
WINDOW = 100  # readings
USUAL = 10  # windows from which a node learns what is usual
CHANGED, MOST = 12, 40  # windows after the exchange, at least and at most
ROUNDS = 15
JOB = {
    "name": "engines",
    "rounds": ROUNDS,
    "learner": {"name": "mlp", "hidden": [32], "loss": "squared", "lr": 0.05, "epochs": 2},
    "algorithm": {"name": "fedavg"},
    "data": {"name": "engines", "contract": "engines.toml", "pipeline": "range"},
}
WATCH = {"source": "engines", "least": WINDOW, "stable": USUAL}
RENEW = {"cool_down": 2.0, "minutes": 1.0, "recent": 800, "held": 0.25, "passes": 6, "reach": 1.0}
GATES = {"least": 40, "labels": 40, "disagreement": 1.0, "drift": 100.0}  # its errors alone speak against it
STAGES = {"first": 0.34, "shadow": 40, "canary": 0.5, "gates": GATES}
BAD = {**JOB, "rounds": 1, "learner": {**JOB["learner"], "lr": 1e-6}, "rollout": STAGES}  # type: ignore[dict-item]


@dataclass
class _Demo:
    folder: Path
    say: Say
    fed: Federation
    plant: Plant
    send: Send
    step: Callable[[str], None]
    seen: int = 0  # the last event of the log that was looked at
    told: dict[str, set[str]] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def url(self, node: str) -> str:
        """Where a node's predictions are."""
        return f"http://{read(self.folder / 'clients' / node / 'client.toml', Client).predict}"

    def error(self, node: str, *, exchanged: bool) -> float:
        """Root mean squared error in cycles of what a node's service says of the same 1,000 readings."""
        x, y, _ = self.plant.now(node, 1000, np.random.default_rng(1), exchanged=exchanged)
        found = np.array(predicting.ask(self.url(node), x.tolist())["predictions"], float).reshape(-1)
        return float(CAP * np.sqrt(np.mean((found - y) ** 2)))


def run(folder: Path, say: Say, *, generated: bool | None = None) -> int:
    """Everything, and in the end nothing runs, whatever happened; the exit code."""
    began = time.perf_counter()

    def step(text: str) -> None:
        print(f"\n[{time.perf_counter() - began:5.1f} s] {text}", flush=True)

    above = up.plain(EDGES, NODES)
    nodes = [name for name in above if name.startswith("client")]
    # Line A is below the first edge, line B below the second.
    nodes.sort(key=lambda name: (above[name], name))
    words: Iterator[str] = (secrets.token_urlsafe(18) for _ in repeat(None))
    plant = Plant.of(nodes, words, generated=generated)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    with up.reserved(1) as (port,):
        place = folder / "broker"
        step(f"{say('a broker for the machines')}: {broker.which()}")
        process = broker.start(place, port, plant.users(), folder / "logs" / "broker.log")
    try:
        job = _written(folder, plant)
        up.start(
            folder, job, above=above, transport="grpc", tell=lambda text: step(say(text)),
            own=lambda place: {**plant.files(place, port, broker.version()), "watch": WATCH, "renew": RENEW},
        )  # fmt: skip
        where = kept(folder / "operator.json")
        with connect(where.url, where.token) as fed, plant.speaking(port) as send:
            return _through(_Demo(folder, say, fed, plant, send, step), began)
    finally:
        up.stop(folder)
        process.terminate()
        process.wait()


def _written(folder: Path, plant: Plant) -> Path:
    """The job file, and the contract beside it."""
    (folder / "engines.toml").write_text(dump(contract()), "utf-8")
    (folder / "bad.toml").write_text(dump(BAD), "utf-8")
    (folder / "demo.toml").write_text(dump(JOB), "utf-8")
    return folder / "demo.toml"


def _through(demo: _Demo, began: float) -> int:
    say, plant = demo.say, demo.plant
    name = "engines"
    kind = "FD001" if plant.real else say("made")
    demo.step(f"{say('engines that ran until they failed report what they read')} ({kind})")
    past = {node: list(plant.past(node)) for node in plant.nodes}
    demo.send([message for messages in past.values() for message in messages])
    stored = {node: _stored(demo, node, messages) for node, messages in past.items()}
    print(f"{sum(n for n, _ in stored.values())} {say('readings, each stored once, encrypted')}")
    print(f"{sum(n for _, n in stored.values())} {say('set aside: outside the ranges of the contract')}")

    demo.step(say("training: each node on its own readings, over mutual TLS, through the edges"))
    remote = demo.fed.submit(demo.folder / "demo.toml")
    if code := live.follow(demo.fed, remote, say, quiet=False):
        return code
    _until(lambda: all(_version(demo, node) == 1 for node in plant.nodes), say("a node does not serve"))

    demo.step(say("serving: machines at work report, and nodes learn what is usual"))
    for _ in range(USUAL):
        _window(demo, exchanged=False)
    _until(lambda: _events(demo, "calibrated") >= set(plant.nodes), say("a node does not watch"))
    before = {node: demo.error(node, exchanged=False) for node in plant.nodes}

    line = [node for node in plant.nodes if plant.line_a(node)]
    demo.step(f"{say('on line A four sensors are exchanged, and read higher')}: {', '.join(line)}")
    drifted = {node: demo.error(node, exchanged=True) for node in plant.nodes}
    windows = 0
    while windows < (CHANGED if _events(demo, "renewed") >= set(line) else MOST):
        _window(demo, exchanged=True)
        windows += 1
    noticed, renewed = _events(demo, "raised"), _events(demo, "renewed")
    print(f"{say('noticed by')}: {', '.join(sorted(noticed)) or '–'}")
    print(f"{say('renewed by')}: {', '.join(sorted(renewed)) or '–'}")
    after = {node: demo.error(node, exchanged=True) for node in plant.nodes}

    demo.step(say("somebody submits a job that trains nothing; its model is tried before it serves"))
    if code := live.follow(demo.fed, demo.fed.submit(demo.folder / "bad.toml"), say, quiet=False):
        return code
    asked, failed = _tried(demo, name)
    stages = demo.fed.stages(name)
    for row in stages["nodes"]:
        if row["reason"]:
            print(f"{row['node']}: {row['reason']}")
    print(f"{asked} {say('requests meanwhile')}, {failed} {say('failed')}")

    demo.step(say("root mean squared error in cycles"))
    heads = ["node", "line", "readings", "at first", "sensors exchanged", "renewed", "serves"]
    rows = [
        [node, "A" if plant.line_a(node) else "B", str(stored[node][0]), f"{before[node]:.1f}",
         f"{drifted[node]:.1f}", f"{after[node]:.1f}", _serves(demo, node)]
        for node in plant.nodes
    ]  # fmt: skip
    table(list(map(say, heads)), rows)
    print(f"{time.perf_counter() - began:.0f} {say('seconds in all')}; {say('logs')}: {demo.folder / 'logs'}")
    good = renewed >= set(line) and stages["serves"] == 1 and not failed
    return 0 if good else 1


def _stored(demo: _Demo, node: str, messages: list[tuple[str, bytes]]) -> tuple[int, int]:
    """How many of a node's readings are in its store, and how many it has set aside; waits for all."""
    from .engine.safe import opened
    from .engine.sensing import stored

    settings = read(demo.folder / "clients" / node / "client.toml", Client)
    wanted = sum(len(json.loads(text)) for _, text in messages)
    found = 0, 0

    def all_there() -> bool:
        nonlocal found
        with stored(settings, "engines", opened(settings)) as store:
            counts = store.counts()
        found = counts["stored"], counts["aside"]
        return sum(found) >= wanted

    _until(all_there, f"{node}: {demo.say('readings do not come')}")
    return found


def _window(demo: _Demo, *, exchanged: bool) -> None:
    """A window of readings for every node, mixed as machines speak."""
    messages = [
        m for n in demo.plant.nodes for m in demo.plant.now(n, WINDOW, demo.rng, exchanged=exchanged)[2]
    ]
    demo.send(messages)
    time.sleep(0.3)


def _events(demo: _Demo, kind: str) -> set[str]:
    """The nodes that have told such an event, as the coordinator's log has it."""
    while (page := demo.fed.events(demo.seen))[0]:
        for event in page[0]:
            demo.told.setdefault(str(event["kind"]), set()).add(str(event["node"]))
        demo.seen = page[1]
    return set(demo.told.get(f"watch.{kind}", set()))


def _version(demo: _Demo, node: str) -> int:
    models = predicting.models(demo.url(node))
    return next((int(m["version"]) for m in models), 0)


def _serves(demo: _Demo, node: str) -> str:
    (model,) = predicting.models(demo.url(node))
    own = f" + {demo.say('own')} {model['own']}" if model.get("own") else ""
    return f"{model['version']}{own}"


def _tried(demo: _Demo, name: str) -> tuple[int, int]:
    """Ask all nodes, and tell them the truth, until the new version is served or back; (asked, failed)."""
    asked = failed = 0
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        for node in demo.plant.nodes:
            for _ in range(5):
                exchanged = demo.plant.line_a(node)
                x, y, _ = demo.plant.now(node, 5, demo.rng, exchanged=exchanged)
                asked += 1
                try:
                    predicting.ask(demo.url(node), x.tolist(), ticket := f"{node} {asked}")
                    predicting.tell(demo.url(node), ticket, y.tolist())
                except PeerError:
                    failed += 1
        if not demo.fed.stages(name)["trial"]:
            break
    return asked, failed


def _until(true: Callable[[], bool], failed: str) -> None:
    until = time.monotonic() + WAIT
    while not true():
        if time.monotonic() > until:
            raise StateError(f"{failed}: {WAIT:g} s")
        time.sleep(0.2)
