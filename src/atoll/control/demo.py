"""`atoll demo`: the whole of it once, on this machine: start, train, export, predict, end; real processes.

It says each step as it does it, and ends with what federated learning is measured against: each site
alone, all data pooled, and the same job simulated, whose model has the same bytes.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import baselines
from ..core.errors import StateError
from ..learn.stop import main_metric
from ..run import Run, simulate
from . import config, live, up
from .remote import predicting
from .remote.sdk import RemoteRun, connect
from .remote.where import read as kept
from .settings import Client, read
from .table import number, size, table

Say = Callable[[str], str]
ROWS = 100  # test rows that a client is asked to predict
WAIT = 20.0  # seconds for a model to reach a client


def run(
    folder: Path,
    job: Path,
    say: Say,
    *,
    above: Mapping[str, str],
    transport: str,
    parts: Path | None = None,
) -> int:
    """Everything, and in the end `down`, whatever happened; the exit code."""
    began = time.perf_counter()

    def step(text: str) -> None:
        print(f"\n[{time.perf_counter() - began:5.1f} s] {text}", flush=True)

    up.start(
        folder,
        job,
        above=above,
        transport=transport,
        tell=lambda text: step(say(text)),
        parts=parts,
    )
    try:
        return _through(folder, job, say, step, began)
    finally:
        up.stop(folder)


def _through(folder: Path, job: Path, say: Say, step: Callable[[str], None], began: float) -> int:
    where = kept(folder / "operator.json")
    with connect(where.url, where.token) as fed:
        step(say("training: each client on its own rows, over mutual TLS, through the edges"))
        remote = fed.submit(folder / "job.toml")
        code = live.follow(fed, remote, say, quiet=False)
        if code:
            return code
        model = fed.models(run=remote.id)[0]
        step(say("the model, exported to ONNX and checked against its source"))
        graph = fed.export(model["name"], folder / "model.onnx", model["version"])
        result = remote.result()
        print(f"{graph}  {say('largest difference')} {_difference(graph, result):.1e}")
        step(say("predictions of a client, from the ONNX model, on its own test rows"))
        print(_predictions(folder, model, say))
        step(say("for comparison: each site alone, all data pooled"))
        count = sum(1 for _ in (folder / "clients").iterdir())
        _compare(up.given(job, count), result, remote, say)
        print(f"{time.perf_counter() - began:.0f} {say('seconds in all')}; {say('logs')}: {folder / 'logs'}")
    return 0


def _difference(graph: Path, result: Run) -> float:
    """The largest gap between the ONNX graph and the learner's own answers, on rows drawn at random."""
    from ..serve.export import verify

    rows = np.random.default_rng(1).normal(size=(256, *result.example.shape[1:])).astype(np.float32)
    return verify(graph, result.learner, result.params, rows)


def _predictions(folder: Path, model: dict[str, Any], say: Say) -> str:
    """What the first client's service answers, once it serves this version."""
    place = min((folder / "clients").iterdir())
    url = f"http://{read(place / 'client.toml', Client).predict}"
    until = time.monotonic() + WAIT
    while (served := _served(url, model["name"])) != model["version"]:
        if time.monotonic() > until:
            raise StateError(
                f"{place.name} serves version {served} of {model['name']}: see {folder / 'logs'}"
            )
        time.sleep(0.1)
    path = place / "test.csv"
    with path.open(newline="", encoding="utf-8") as file:
        labels = [row["label"] for row in csv.DictReader(file)][:ROWS]
    rows = predicting.read_rows(path, ["label"])[:ROWS]
    started = time.perf_counter()
    answer = predicting.ask(url, rows)
    took = 1000 * (time.perf_counter() - started)
    classes = json.loads((folder / "data.json").read_text("utf-8"))["classes"]
    right = sum(classes[int(p)] == label for p, label in zip(answer["predictions"], labels, strict=True))
    made = f"{model['name']} {say('version')} {model['version']}"
    return f"{place.name}, {made}: {right} / {len(labels)} {say('right')}, {took:.1f} ms"


def _served(url: str, name: str) -> int:
    """The version a client serves; 0 where it serves none yet."""
    models = predicting.models(url)
    return next((int(m["version"]) for m in models if m["name"] == name), 0)


def _compare(file: config.JobFile, result: Run, remote: RemoteRun, say: Say) -> None:
    sites = file.sites()
    again = simulate(file.job, sites, file.seed)
    ways = {
        "federated": baselines.scores(result),
        "each site alone": baselines.alone(file.job, sites, file.seed),
        "all data pooled": baselines.pooled(file.job, sites, file.seed),
    }
    metric = main_metric(result.metrics)
    rows = []
    for name, scores in ways.items():
        s = scores.over_sites(metric)
        values = scores.pooled.get(metric, float("nan")), s.mean, s.worst
        rows.append([say(name), *map(number, values)])
    table([say("trained"), say(metric), say("mean over sites"), say("worst tenth")], rows)
    same = again.params.buffer.tobytes() == result.params.buffer.tobytes()
    record = remote.record
    print(f"{say('the same job simulated in one process: the same bytes')}: {say('yes' if same else 'no')}")
    sent = f"{say('sent up')} {size(record['up'])}, {say('sent down')} {size(record['down'])}"
    print(f"{record['round']} {say('rounds')}, {result.seconds:.1f} {say('seconds')}, {sent}")
    if not same:
        print(
            say("the engines of this machine's processes differ: see docs/explanation/engines.md"),
            file=sys.stderr,
        )
