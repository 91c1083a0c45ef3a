"""`at.serve` and `atoll serve`: a model in use from Python and from files, swapped while it is asked."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

import atoll as at
from atoll.core.errors import ConfigError, DataError, Gone, MisuseError, Refused, StateError
from atoll.learn.dense import linear
from atoll.serve.models import Shelf
from atoll.serve.service import called, follow, trust

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def line(path: Path, slope: float) -> Path:
    """y = slope * x0 + 0.5."""
    learner = linear(2, 1)
    params = learner.init(np.random.default_rng(0)).map(lambda b: np.array([slope, 0.0, 0.5], np.float32))
    learner.export(params, path, np.zeros((1, 2)))
    return path


def test_from_a_file_bytes_or_a_run(tmp_path: Path) -> None:
    path = line(tmp_path / "My Line.onnx", 2.0)
    with at.serve(path, port=0) as service:
        assert service.predict([[1.0, 9.0], [2.0, 9.0]])["y"].tolist() == [[2.5], [4.5]]
        assert [one.name for one in service.shelf] == ["my-line"]
        with pytest.raises(DataError, match="expected rows of 2 numbers"):
            service.predict([[1.0]])
        with pytest.raises(Refused, match="no such model: there is my-line"):
            service.predict([[1.0, 2.0]], model="other")
        served = service.swap(line(tmp_path / "b.onnx", 3.0))
        assert (served.version, service.predict([[1.0, 0.0]])["y"].tolist()) == (2, [[3.5]])
        with pytest.raises(StateError, match="not an ONNX model"):
            service.swap(b"rubbish")
        with pytest.raises(StateError, match="expected an ONNX model"):
            service.swap(tmp_path / "none.onnx")
        assert service.predict([[1.0, 0.0]])["y"].tolist() == [[3.5]]
    with pytest.raises(Gone, match="does not answer"):
        service.predict([[1.0, 0.0]])
    service.close()  # again is nothing

    x = np.eye(2, dtype=np.float32)
    run = at.simulate(at.Job(at.linear(), rounds=1), at.Sites.of([(x, x[:, 0])]))
    with at.serve({"mine": run, "file": path.read_bytes()}, port=0) as service:
        found = service.predict(x, "mine")["y"]
        np.testing.assert_allclose(found, run.learner.answers(run.params, x)["y"], atol=1e-6)
        with pytest.raises(MisuseError, match="say whose place it takes"):
            service.swap(run)
    with pytest.raises(MisuseError, match="a finished run, got int"):
        at.serve(3)


def test_an_address_that_cannot_be_had_is_said_at_once(tmp_path: Path) -> None:
    path = line(tmp_path / "a.onnx", 1.0)
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        at.serve(path, host="192.0.2.1")
    with pytest.raises(ConfigError, match="batch is at least 1, got 0"):
        at.serve(path, port=0, batch=0)
    with at.serve(path, port=0) as service, pytest.raises(StateError, match="cannot listen on"):
        at.serve(path, port=int(service.url.rpartition(":")[2]))
    with pytest.raises(ConfigError, match="PEM files"):
        trust(path, path)


def answered(url: str, body: bytes) -> int:
    asked = Request(f"{url}/v1/predict", body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urlopen(asked, timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def test_bad_requests_beside_good_ones_and_swaps_lose_nothing(tmp_path: Path) -> None:
    """Bad rows, bad bodies and models that are none come all the while; every good request is answered."""
    files = [line(tmp_path / f"{n}.onnx", float(n)) for n in range(1, 9)]
    faults: list[Any] = []
    with at.serve(files[0], port=0, name="line", batch=8) as service:
        over = threading.Event()

        def good() -> None:
            seen = 0
            while not over.is_set():
                y = float(service.predict([[1.0, 0.0]] * 3)["y"][0, 0])
                if y < seen or y - 0.5 not in range(1, 9):
                    faults.append(y)
                seen = int(y)

        def bad() -> None:
            bodies = (b'{"rows": [[1]]}', b"{", b'{"rows": [[1e39, 0]]}', b'{"rows": [["x", 1]]}', b"\xff")
            while not over.is_set():
                faults.extend(body for body in bodies if answered(service.url, body) != 400)

        threads = [threading.Thread(target=one) for one in (good, good, bad)]
        for thread in threads:
            thread.start()
        for path in files[1:]:
            service.swap(path)
            with pytest.raises(StateError):
                service.swap(path.read_bytes()[:-9])
            time.sleep(0.02)
        over.set()
        for thread in threads:
            thread.join()
        assert service.predict([[1.0, 0.0]])["y"].tolist() == [[8.5]]
    assert faults == []


def test_a_file_is_followed_and_a_bad_one_leaves_what_was_served(tmp_path: Path) -> None:
    path, shelf = line(tmp_path / "line.onnx", 1.0), Shelf()
    shelf.put("line", 1, path.read_bytes())

    async def until(wanted: Any) -> None:
        async with asyncio.timeout(10):
            while not wanted():  # noqa: ASYNC110  files tell no event
                await asyncio.sleep(0.005)

    async def talk() -> None:
        following = asyncio.ensure_future(follow(shelf, {"line": path}, every=0.005))
        await asyncio.sleep(0)
        line(path, 2.0)
        await until(lambda: shelf.get("line").version == 2)  # type: ignore[union-attr]
        path.write_bytes(b"half of a mod")
        await until(lambda: "line" in shelf.problems)
        path.unlink()
        assert shelf.get("line").version == 2  # type: ignore[union-attr]
        line(path, 3.0)
        await until(lambda: shelf.get("line").version == 3)  # type: ignore[union-attr]
        assert shelf.problems == {}
        following.cancel()

    asyncio.run(talk())
    assert shelf.get("line").model.run(np.ones((1, 2), np.float32))["y"].tolist() == [[3.5]]  # type: ignore[union-attr]


def test_what_files_are_called() -> None:
    names = [called(Path(name)) for name in ("a/Digits v2.onnx", "..onnx", "ünï.onnx", "x" * 99 + ".onnx")]
    assert names == ["digits-v2", "model", "n", "x" * 63]


def test_the_command_serves_follows_and_ends_in_order(tmp_path: Path) -> None:
    path = line(tmp_path / "line.onnx", 1.0)
    command = [sys.executable, "-m", "atoll", "serve", str(path), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        told = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        assert told["models"] == ["line"]

        def ask() -> dict[str, Any]:
            body, headers = b'{"rows": [[1, 0]]}', {"Content-Type": "application/json"}
            with urlopen(Request(f"{told['url']}/v1/predict", body, headers), timeout=10) as answer:  # noqa: S310
                return dict(json.loads(answer.read()))

        assert ask()["predictions"] == {"y": [[1.5]]}
        line(path, 4.0)
        until = time.monotonic() + 20
        while ask()["model"]["version"] == 1:
            assert time.monotonic() < until
        assert ask()["predictions"] == {"y": [[4.5]]}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["none.onnx"], "none.onnx cannot be served"),
        (["bad.onnx"], "bad.onnx cannot be served: bad is not an ONNX model"),
        (["line.onnx", "Line.onnx"], "under one name"),
        (["line.onnx", "--callers", "ca.pem"], "--callers needs --tls"),
        (["line.onnx", "--host", "192.0.2.1"], "can be reached from other machines"),
        (["line.onnx", "--token-file", "empty"], "is empty: write a token"),
        (["line.onnx", "--tls", "bad.onnx", "bad.onnx"], "PEM files"),
    ],
)
def test_what_cannot_be_served_is_said(
    argv: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from atoll.control.cli import main

    monkeypatch.chdir(tmp_path)
    line(Path("line.onnx"), 1.0)
    line(Path("Line.onnx"), 1.0)
    Path("bad.onnx").write_bytes(b"bad")
    Path("empty").write_bytes(b"\n")
    assert main(["serve", *argv]) == 2
    assert says in capsys.readouterr().err
