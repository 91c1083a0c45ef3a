"""What serves is there while somebody asks, and whoever asks is answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from atoll.control import up
from atoll.control.engine import resting, sensing
from atoll.control.engine.parcels import keep_frames
from atoll.control.engine.resting import Resting
from atoll.control.engine.safe import opened
from atoll.control.settings import Client, Watch, make, rests
from atoll.core.errors import Refused, StateError
from atoll.core.update import Update
from atoll.learn.dense import linear
from atoll.privacy.keys import Authority, Identity, sign_model
from atoll.sense.reading import Reading
from atoll.wire.codec import Message
from tests.wire.pki import member

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sockets are handed on by descriptors")

CONTRACT = """
name = "line"
label = "y"
[columns.x]
low = -99
high = 99
[columns.y]
low = -99
high = 99
"""
QUIET = 0.4
SOURCE = {"contract": "line.toml", "folder": {"path": "in"}, "window": {"size": 5}}
WATCH = {"sources": {"line": SOURCE}, "watch": {"source": "line", "stable": 2, "least": 5}}


class Uplink:
    """What is left of it where there is no federation: letters, and blobs that have been fetched."""

    dial = None

    def __init__(self, folder: Path) -> None:
        self.folder, self.letters = folder, list[tuple[str, Mapping[str, Any]]]()

    def send(self, kind: str, head: Mapping[str, Any]) -> None:
        self.letters.append((kind, head))

    async def fetch(self, blob: str) -> Path:
        if not (path := self.folder / blob).exists():
            raise Refused(f"there is no {blob}")
        return path


class Node:
    """A client that serves, all real but its federation."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.authority = Authority.new("lagoon", now=time.time())
        self.hub = member(self.authority, "coordinator", "hub", now=time.time())
        mine = member(self.authority, "client", "press", now=time.time())
        Identity(mine.key, mine.chain, mine.roots).save(folder / "identity")
        (folder / "in").mkdir()
        (folder / "line.toml").write_text(CONTRACT)
        with up.reserved(1) as (self.port,):
            at = f"127.0.0.1:{self.port}"
        self.settings = make(Client, {"folder": str(folder), "predict": at, "quiet": QUIET, **more})
        self.folder, self.uplink, vault = folder, Uplink(folder), opened(self.settings)
        self.intake = sensing.intake(self.settings, vault) if more else None
        self.feed = None if self.intake is None else self.intake.feed("line")

        async def tune(*_: Any) -> Any:
            raise Refused("nothing is renewed here")

        self.resting = Resting(self.settings, self.uplink, vault, self.feed, tune)  # type: ignore[arg-type]

    def offer(self, version: int, slope: float) -> dict[str, Any]:
        """A signed model y = slope x, as its letter says."""
        path = self.folder / "line.onnx"
        params = Update.of({"layer0.weight": np.float32([[slope]]), "layer0.bias": np.float32([0.0])})
        linear().sized(1, 1).export(params, path, np.zeros((1, 1), np.float32))
        graph = path.read_bytes()
        keep_frames(
            self.folder / f"b{version}", Message("model", {}, {"onnx": np.frombuffer(graph, np.uint8)})
        )
        fields = {
            "federation": "lagoon",
            "run": "r1",
            "name": "line",
            "version": version,
            "created": time.time(),
            "sha256": hashlib.sha256(graph).hexdigest(),
        }
        manifest = sign_model(self.hub.key, self.hub.chain, fields)
        return {"name": "line", "version": version, "manifest": manifest, "blob": f"b{version}"}

    async def ask(self, x: float) -> tuple[float, int]:
        """The answer, and whose it is."""

        def asked() -> Any:
            line = HTTPConnection("127.0.0.1", self.port, timeout=20)
            kind = {"Content-Type": "application/json"}
            line.request("POST", "/v1/predict", json.dumps({"rows": [[x]]}), kind)
            answer = json.loads(line.getresponse().read())
            line.close()
            return answer

        found = await asyncio.to_thread(asked)
        return found["predictions"]["y"][0][0], found["model"]["version"]

    async def told(self, kind: str, true: Callable[[Mapping[str, Any]], bool]) -> None:
        await until(lambda: any(k == kind and true(head) for k, head in self.uplink.letters))

    async def rested(self) -> None:
        await until(lambda: not self.resting.awake)

    def play(self, story: Callable[[], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            if self.intake is not None:
                self.intake.start()
            await self.resting.start()
            try:
                await story()
            finally:
                await self.resting.stop()
                if self.intake is not None:
                    await self.intake.stop()

        asyncio.run(all_of_it())
        assert not psutil.Process().children(), "somebody was left behind"


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.02)


def test_who_asks_is_answered_whether_it_rests_or_not(tmp_path: Path) -> None:
    node = Node(tmp_path)

    async def story() -> None:
        await node.rested()
        await node.resting.offered(node.offer(1, 2.0))  # it rests: the process starts and takes it
        await node.told("serving", lambda head: head["version"] == 1)
        assert await node.ask(3.0) == (6.0, 1)
        await node.rested()
        started, letters = node.resting.started, len(node.uplink.letters)
        assert await node.ask(4.0) == (8.0, 1)
        assert node.resting.started == started + 1
        await node.resting.offered(node.offer(2, -1.0))
        await node.told("serving", lambda head: head["version"] == 2)
        assert await node.ask(4.0) == (-4.0, 2)
        assert len(node.uplink.letters) == letters + 1, "what the parent knows is not said again"
        node.resting.report()
        assert len(node.uplink.letters) == letters + 2, "but where it may not"
        for k in range(5):  # connections come as it is about to rest, and just after
            assert await node.ask(k) == (-k, 2)
            await asyncio.sleep(QUIET + 0.06 * (k - 1))

    node.play(story)


def test_one_that_takes_its_time_to_end_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import os, sys, time; os.close(1); sys.stdin.buffer.read(); time.sleep(0.5)"
    monkeypatch.setattr(resting, "COMMAND", (sys.executable, "-c", slow))
    node = Node(tmp_path)

    async def story() -> None:
        await until(lambda: node.resting.started == 1 and node.resting._process is None)
        assert node.resting.awake

    node.play(story)  # which looks for whoever is left


def test_one_that_was_killed_is_started_again(tmp_path: Path) -> None:
    node = Node(tmp_path, **WATCH)

    async def story() -> None:
        await node.resting.offered({**node.offer(1, 1.0), "blob": "lost"})
        await node.told("log", lambda head: "there is no lost" in head["text"])
        await node.resting.offered(node.offer(1, 1.0))
        await node.told("serving", lambda head: head["version"] == 1)
        (process,) = psutil.Process().children()
        process.send_signal(signal.SIGKILL)
        process.wait(5)
        assert await node.ask(7.0) == (7.0, 1)
        assert node.resting.started >= 2

    node.play(story)


def test_it_wakes_for_a_window_and_not_for_less(tmp_path: Path) -> None:
    node = Node(tmp_path, **WATCH)

    def heard() -> list[Any]:
        return [head for kind, head in node.uplink.letters if kind == "watch"]

    async def put(first: int, n: int) -> None:
        assert node.feed is not None
        now = time.time()
        await node.feed.put(
            [Reading("a", now, f"{i}", {"x": i, "y": 2 * i}) for i in range(first, first + n)]
        )

    async def story() -> None:
        await node.resting.offered(node.offer(1, 2.0))
        await node.told("serving", lambda head: head["version"] == 1)
        await put(0, 5)  # while it is awake
        await node.rested()
        started = node.resting.started
        await put(5, 4)
        await asyncio.sleep(0.3)
        assert node.resting.started == started, "four are no window"
        await put(9, 1)
        await until(lambda: any(e["kind"] == "calibrated" for head in heard() for e in head["events"]))
        assert node.resting.started == started + 1
        assert heard()[-1]["model"] == {"name": "line", "version": 1, "own": 0}
        await node.rested()

    node.play(story)


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    node = Node(tmp_path / "a")

    async def story() -> None:
        (tmp_path / "b").mkdir()
        other = Resting(node.settings, node.uplink, opened(node.settings), None, None)  # type: ignore[arg-type]
        with pytest.raises(StateError, match="cannot listen on 127"):
            await other.start()

    node.play(story)


def test_what_is_not_on_disk_is_not_let_go() -> None:
    plain = Client(predict="127.0.0.1:0", data={"rows": {"train": "rows.csv"}})
    assert rests(plain)
    windows = {"rows": {"source": "line", "windows": True}}
    watch = Watch(source="line", data="rows")
    for change in (
        {"quiet": 0.0},
        {"int8": "rows"},
        {"joint": msgspec.structs.replace(plain.joint, send="sample", readers="edge")},
        {"data": windows, "watch": watch},
    ):
        assert not rests(msgspec.structs.replace(plain, **change))
