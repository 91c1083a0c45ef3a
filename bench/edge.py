"""A node that serves: `python -m bench edge [--json FILE] [--seconds S] [--rate R] [--models DIR]`.

Requests come at a fixed rate whether or not earlier ones were answered, and each is timed from the moment
it was due, so that a stall is seen by every request that falls into it. One row a request, kept connections.

    atoll serve           a network of MNIST's size, its file replaced every second
    a client's service    jobs finish one after the other, each model is swapped in; then the coordinator is
                          killed (SIGKILL), stays away for a third of the time, and comes back
    joint inference       two `atoll serve` with mutual TLS, the student and the teacher that `python -m bench
                          distil --keep DIR` left; doubt is calibrated on 5,000 rows of MNIST's test set, and
                          the other 5,000 are asked one by one

Every answer must be the one of the version that it names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
from aiohttp import ClientError, ClientSession, TCPConnector

import atoll as at
from atoll.control import up
from atoll.core.errors import AtollError
from atoll.privacy.keys import Authority, Identity, new_key, request
from atoll.serve.doubt import calibrate
from atoll.serve.model import Model
from atoll.serve.variants import score

from .carry import cpu_seconds
from .federation import Federation
from .rows import Disagreement
from .wire import Figure

GOAL = 20.0  # milliseconds
_JSON = {"Content-Type": "application/json"}


@dataclass
class Load:
    """What a load has seen: milliseconds of each answered request, why others failed, answers by version."""

    took: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)

    def figures(self, name: str) -> Iterator[Figure]:
        """Percentiles and counts."""
        for p, goal in ((50, None), (99, GOAL), (99.9, None)):
            yield Figure(f"{name}: p{p:g}", float(np.percentile(self.took, p)), "ms", goal)
        yield Figure(f"{name}: requests", len(self.took), "")
        yield Figure(f"{name}: failed", len(self.failed), "", 0, self.failed[0] if self.failed else "")
        yield Figure(f"{name}: versions that answered", len(self.versions), "")


async def load(
    url: str, rows: list[Any], rate: float, seconds: float, right: Callable[[int, int, Any], bool]
) -> Load:
    """Ask for `seconds`; `right(k, version, predictions)` judges the answer to rows[k]."""
    seen = Load()

    async def one(session: ClientSession, k: int, due: float) -> None:
        body = {"rows": [rows[k]]}
        try:
            async with session.post(f"{url}/v1/predict", json=body) as answer:
                found = await answer.json()
                if answer.status != 200:
                    raise ValueError(found["error"])
        except (ClientError, OSError, ValueError, TimeoutError) as error:
            seen.failed.append(f"{type(error).__name__}: {error}")
            return
        seen.took.append((time.perf_counter() - due) * 1e3)
        version = found["model"]["version"]
        seen.versions[version] = seen.versions.get(version, 0) + 1
        if not right(k, version, found["predictions"]):
            raise Disagreement(f"version {version} answered what is not its own")

    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        began, asked = time.perf_counter(), []
        for n in range(int(rate * seconds)):
            due = began + n / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.ensure_future(one(session, n % len(rows), due)))
        await asyncio.gather(*asked)
    return seen


async def beside(work: Awaitable[None], main: Awaitable[Load]) -> Load:
    """The load, with work that goes on until it is over."""
    task = asyncio.ensure_future(work)
    try:
        return await main
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def served(folder: Path, rate: float, seconds: float) -> Load:
    """`atoll serve` with a file that is replaced every second."""
    data = at.load_data("mnist").train
    sites = at.Sites.of([(data.x[:2000], data.y[:2000])])
    runs = [at.simulate(at.Job(at.mlp((200,), lr=0.1), rounds=1), sites, seed=seed) for seed in (1, 2)]
    graphs = [run.export(folder / f"{k}.onnx", data.x[:2]).read_bytes() for k, run in enumerate(runs)]
    x = np.asarray(data.x[:200], np.float32)
    answers = [Model(graph).run(x)["probabilities"] for graph in graphs]
    path = folder / "digits.onnx"
    path.write_bytes(graphs[0])
    process, url = _serving(path)

    def right(k: int, version: int, found: Any) -> bool:
        return bool(np.allclose(found["probabilities"][0], answers[(version - 1) % 2][k], atol=1e-5))

    async def swaps() -> None:
        turn = 0
        while True:
            await asyncio.sleep(1.0)
            turn += 1
            fresh = path.with_suffix(".new")
            await asyncio.to_thread(fresh.write_bytes, graphs[turn % 2])
            fresh.replace(path)

    try:
        asyncio.run(load(url, x.tolist(), rate, 1.0, right))  # warm
        return asyncio.run(beside(swaps(), load(url, x.tolist(), rate, seconds, right)))
    finally:
        process.terminate()
        process.communicate()


def batching(folder: Path, seconds: float = 4.0) -> Iterator[Figure]:
    """What a request costs the service in CPU, of one caller and of 32 who ask again at once, by `--batch`.

    CPU and not latency: it is the same on a busy machine.
    """
    rows = json.dumps({"rows": np.random.default_rng(0).random((1, 784)).tolist()}).encode()

    async def crowd(url: str, callers: int) -> int:
        end, done = time.perf_counter() + seconds, 0

        async def one(session: ClientSession) -> None:
            nonlocal done
            while time.perf_counter() < end:
                async with session.post(f"{url}/v1/predict", data=rows, headers=_JSON) as answer:
                    await answer.read()
                done += 1

        async with ClientSession(connector=TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one(session) for _ in range(callers)))
        return done

    services = {most: _serving(folder / "digits.onnx", "--batch", str(most)) for most in (1, 32)}
    try:
        for callers in (1, 32):
            for most, (process, url) in services.items():
                watched = psutil.Process(process.pid)
                before = cpu_seconds(watched)
                done = asyncio.run(crowd(url, callers))
                took = (cpu_seconds(watched) - before) / done
                yield Figure(f"{callers} callers, --batch {most}: CPU of a request", took * 1e3, "ms")
    finally:
        for process, _ in services.values():
            process.terminate()
            process.communicate()


def federated(folder: Path, rate: float, seconds: float) -> tuple[Load, Load]:
    """A client's own service; the coordinator is away for the middle third. All of it, and that third."""
    with up.reserved(1) as (port,):
        url = f"http://127.0.0.1:{port}"
    job = {"name": "bench", "data": {"name": "bench"}, "learner": {"name": "softmax"}, "rounds": 1}
    rows = [[float(k)] for k in range(10)]
    with Federation(folder, 1, settings={"predict": f"127.0.0.1:{port}"}) as fed:
        fed.run(job)
        time.sleep(2.0)

        def right(k: int, version: int, found: Any) -> bool:
            return bool(abs(sum(found["probabilities"][0]) - 1) < 1e-4)

        async def jobs() -> None:
            while True:
                with suppress(AtollError, OSError):
                    await asyncio.to_thread(
                        fed.api.submit, {"name": "bench", "data": {"name": "bench"}, **job}
                    )
                await asyncio.sleep(1.0)

        async def third() -> Load:
            return await load(url, rows, rate, seconds / 3, right)

        first = asyncio.run(beside(jobs(), third()))
        fed.processes["coordinator"].send_signal(signal.SIGKILL)
        away = asyncio.run(third())
        fed.back()
        last = asyncio.run(beside(jobs(), third()))
    whole = Load(first.took + away.took + last.took, first.failed + away.failed + last.failed)
    whole.versions = {v: 1 for part in (first, away, last) for v in part.versions}
    return whole, away


def joint(folder: Path, models: Path, rate: float) -> Iterator[Figure]:
    """A student that asks its teacher over mutual TLS: what it sends, what it gains, how long it takes."""
    test = at.load_data("mnist").test
    assert test is not None  # noqa: S101  MNIST has its own
    usual, asked = test[:5000], test[5000:]
    small, large = (Model((models / f"{name}.onnx").read_bytes()) for name in ("student", "teacher"))
    found = calibrate(small, usual.x, 0.15)
    _certify(folder)
    tls = ["--tls", str(folder / "plant" / "cert.pem"), str(folder / "plant" / "key.pem")]
    tls += ["--callers", str(folder / "root.pem"), "--identity", str(folder / "plant")]
    above, url = _serving(models / "teacher.onnx", *tls)
    (folder / "joint.toml").write_text(
        f'send = "sample"\nabove = ["{url}"]\nreaders = "edge"\nroots = "root.pem"\n'
        "limit = 0.2\nshare = 0.15\n"
        f'certificate = "north/cert.pem"\nkey = "north/key.pem"\nthreshold = {found.threshold!r}\n',
        "utf-8",
    )
    node, url = _serving(models / "student.onnx", "--joint", str(folder / "joint.toml"))
    right: list[bool] = []

    def judged(k: int, version: int, answer: Any) -> bool:
        right.append(int(np.argmax(answer["out"][0])) == asked.y[k])
        return True

    try:
        seen = asyncio.run(load(url, asked.x.tolist(), rate, len(asked) / rate, judged))
        with urlopen(f"{url}/v1/models", timeout=10) as answer:  # noqa: S310  our own
            counts = json.loads(answer.read())["joint"]
    finally:
        for process in (node, above):
            process.terminate()
            process.communicate()
    alone, best = (100 * score(model, asked) for model in (small, large))
    together = 100 * float(np.mean(right))
    yield Figure("joint: sent up", 100 * counts["sent"] / counts["seen"], "%", 15.0)
    yield Figure("joint: answered in time, of these", 100 * counts["answered"] / counts["sent"], "%")
    for name, value in (("the student", alone), ("both together", together), ("the teacher", best)):
        yield Figure(f"joint: accuracy of {name}", value, "%")
    yield Figure("joint: points below the teacher", best - together, "points", 0.3)
    yield from seen.figures("joint")


def _certify(folder: Path) -> None:
    """A federation's root, an edge and a client, as `atoll pki` and enrolment make them."""
    now, authority = time.time(), Authority.new("bench", now=time.time())
    for role, name, hosts in (("edge", "plant", ("127.0.0.1",)), ("client", "north", ())):
        key = new_key()
        csr = request(key, "bench", role, name)
        chain = authority.sign(csr, role=role, name=name, now=now, hosts=hosts)
        Identity(key, chain, authority.root).save(folder / name)
    (folder / "root.pem").write_bytes(authority.root)


def _serving(model: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """`atoll serve` and its URL."""
    process = subprocess.Popen(  # noqa: S603  ourselves
        [sys.executable, "-m", "atoll", "serve", str(model), "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None  # noqa: S101  asked for
    return process, str(json.loads(process.stdout.readline())["url"])


def figures(folder: Path, rate: float, seconds: float, models: Path | None) -> Iterator[Figure]:
    """Everything, in turn."""
    yield from served(folder, rate, seconds).figures("atoll serve, a swap a second")
    yield from batching(folder)
    whole, away = federated(folder / "fed", rate, seconds)
    yield from whole.figures("a client's service, jobs and a lost coordinator")
    yield from away.figures("of these, while the coordinator was away")
    if models is None:
        print("joint inference: left out, it needs the models of `python -m bench distil --keep DIR`")
    else:
        yield from joint(folder, models, rate)


def main(words: list[str]) -> int:
    """Print the figures, write the file; 1 where an answer is wrong or one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench edge", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--models", type=Path, help="what `python -m bench distil --keep` left")
    asked = parser.parse_args(words)
    found: list[Figure] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for figure in figures(Path(folder), asked.rate, asked.seconds, asked.models):
                print(figure, flush=True)
                found.append(figure)
    except Disagreement as why:
        print(f"no time counts: {why}", file=sys.stderr)
        return 1
    if asked.json:
        asked.json.write_text(json.dumps([asdict(figure) for figure in found], indent=1) + "\n")
    return int(any(f.name.endswith(": failed") and f.value for f in found))
