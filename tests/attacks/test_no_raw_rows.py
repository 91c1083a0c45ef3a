"""Rows with planted values stay at their sites: every byte of a real run is recorded and searched."""

import asyncio
import csv
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard

from atoll.control.engine.uplink import Uplink
from atoll.control.settings import Client
from atoll.core.errors import ConfigError
from atoll.core.update import Update
from atoll.transport.open import open_link
from atoll.wire.codec import Message, encode
from atoll.wire.shapes import only_model
from tests.attacks.leaking import CLASSES, FEATURES, Softmax
from tests.attacks.recorder import Recorder
from tests.attacks.traces import Planted, arrays, messages
from tests.federation.processes import JOB, ROOT, Federation, Nursery

ROWS, TESTS = (41, 43, 47), 11  # numbers that no dimension of the model has
PLAIN_JOB = {
    **JOB,
    "learner": "plain_softmax",
    "algorithm": "fedavg",
    "data": {**JOB["data"], "holdout": 0.2},
}
PARTS = str(ROOT / "tests" / "attacks" / "leaking.py")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def plant(folder: Path, rows: int, seed: int) -> np.ndarray:
    """Fill a site with rows of planted values; returns them."""
    draw = np.random.default_rng(seed)
    made = draw.choice(np.arange(1_000_001, 9_999_999), (rows + TESTS, FEATURES), replace=False) / 1e7
    for name, part in (("train", made[:rows]), ("test", made[rows:])):
        path = folder / f"{name}.csv"
        head, *lines = csv.reader(path.read_text().splitlines())
        labels = sorted({line[-1] for line in lines})
        with path.open("w", newline="") as out:
            table = csv.writer(out)
            table.writerow(head)
            table.writerows([*map(repr, row), labels[i % CLASSES]] for i, row in enumerate(part.tolist()))
    return made


def recorded(folder: Path, nursery: Nursery, scheme: str, leaks: str = "") -> tuple[list[bytes], Planted]:
    """All that passed between members in one run, and what is looked for in it."""
    with Federation(folder, PLAIN_JOB, nursery=nursery, transport="https") as fed:
        planted = Planted(
            np.concatenate([plant(fed.place(c), n, n) for c, n in zip(fed.clients, ROWS, strict=True)])
        )
        for name in fed.names:
            fed.words[name] = ("--parts", PARTS)
            fed.start(name)
        fed.until(lambda: fed.joined() >= {*fed.clients, *fed.edges}, what="everybody to enrol over TLS")
        fed.stop(*fed.names)
        door = "grpc" if scheme == "grpc" else "listen"
        servers = {name: int(fed.read(name)[door].rpartition(":")[2]) for name in ("coordinator", "edge-a")}
        with Recorder(list(servers.values())) as recorder:
            above = dict(zip(servers, (f"{scheme}://127.0.0.1:{p}" for p in recorder.ports), strict=True))
            fed.set("coordinator", insecure=True)
            fed.set("edge-a", insecure=True, join=[above["coordinator"]])
            for name in fed.clients:
                fed.set(name, insecure=True, join=[above["edge-a"]])
            for name in fed.names:
                fed.start(name, FAULTY="leaks" if name == leaks else "")
            run = fed.submit()
            fed.finished(run)
            fed.stop(*fed.names)
        return recorder.streams(), planted


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_row_leaves_its_site(tmp_path: Path, nursery: Nursery, scheme: str) -> None:
    streams, planted = recorded(tmp_path, nursery, scheme)
    assert sum(map(len, streams)) > 20_000
    assert [planted.found(stream) for stream in streams] == [0] * len(streams)
    layout = Update.of(Softmax().init(None)).layout
    kinds = []
    for message in messages(streams):
        kinds.append(message.kind)
        if message.kind in {"params", "answer"}:
            only_model(message, [layout])
        for array in arrays([message]):
            assert not {*ROWS, TESTS, *(n * FEATURES for n in ROWS)}.intersection(array.shape)
    assert kinds.count("answer") >= 3 * 4 and "params" in kinds and "ask" in kinds


def test_control_a_client_that_sends_its_rows_is_found(tmp_path: Path, nursery: Nursery) -> None:
    streams, planted = recorded(tmp_path, nursery, "http", leaks="client-2")
    assert sum(map(planted.found, streams)) > 0


ROW = np.arange(1_234_567, 9_000_000, 597_341)[None, :13] / 1e7
F4 = ROW.astype("<f4")


@pytest.mark.parametrize(
    "data",
    [
        str(ROW.tolist()).encode(),
        F4.tobytes(),
        F4.byteswap().tobytes(),
        ROW.tobytes(),
        ROW.byteswap().tobytes(),
        np.rint(ROW * 1e7).astype("<i4").tobytes(),
        np.rint(ROW * 1e7).astype(">i8").tobytes(),
        b64encode(F4.tobytes()),
        b"x" + b64encode(ROW.tobytes()),
        zlib.compress(F4.tobytes()),
        zstandard.compress(ROW.tobytes()),
        b"".join(encode(Message("answer", {}, {"0": F4.ravel()}))),
    ],
    ids=["text", "f4", "F4", "f8", "F8", "i4", "I8", "base64 f4", "base64 f8", "zlib", "zstd", "message"],
)
def test_control_rows_are_found_however_they_are_written(data: bytes) -> None:
    planted = Planted(ROW)
    noise = np.random.default_rng(0).bytes(100_003)
    assert planted.found(noise) == 0
    assert planted.found(noise + data + noise) > 0


def test_plain_text_needs_leave_and_stays_on_this_machine(tmp_path: Path) -> None:
    def member(**more: object) -> Uplink:
        settings = Client(folder=str(tmp_path), join=("http://127.0.0.1:1",), **more)
        return Uplink(settings, dict, None, None)

    with pytest.raises(ConfigError, match="has no TLS"):
        asyncio.run(member().run())
    for url in ("http://198.51.100.7:80", "grpc://198.51.100.7:80", "ws://198.51.100.7:80"):
        with pytest.raises(ConfigError, match="can be reached by others"):
            open_link(url, None)
