"""The process that learns: it is there while there is work, and its end is never the client's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from atoll.control.engine import workplace
from atoll.control.engine.spoken import Spoiled
from atoll.control.engine.work import signed
from atoll.control.engine.workplace import Apart, Here
from atoll.control.pipes import framed
from atoll.control.settings import Client
from atoll.core.errors import CodecError, ConfigError, ProtocolError, Refused, StateError
from atoll.privacy.keys import Authority
from atoll.privacy.vault import Vault
from atoll.transport.delta import make
from atoll.transport.frames import FrameFile
from atoll.wire.codec import HEADER, Message, encode
from tests.engine.test_work import VALUES
from tests.wire.pki import member

VAULT = Vault(bytes(32))
ROWS = "x,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(10))
STUB = """
import os, sys, time
import msgspec
from atoll.control.engine import learner
from atoll.control.engine.workplace import Order, Said
def followed(learning, order):
    how = order.federation
    if how == "sleeps":
        time.sleep(600)
    if how == "dies once" and not os.path.exists(order.files[1]):
        open(order.files[1], "w").close()
        os.kill(os.getpid(), 9)
    if how == "ends":
        os._exit(3)
    print("among the answers", flush=True)
    return Said(text=str(os.getpid()), kind="Refused")
learner._followed = followed
learner.main()
"""


def settings(folder: Path, **values: Any) -> Client:
    folder.mkdir(exist_ok=True)
    (folder / "rows.csv").write_text(ROWS)
    data = {"rows": {"train": "rows.csv", "target": "label"}}
    return Client(folder=str(folder), **{"data": data, "token": "secret", **values})


def blob(folder: Path, version: int) -> str:
    """The name of a blob that differs from others in a few numbers."""
    data = np.random.default_rng(1).integers(0, 256, 100_000, np.uint8)
    data[:version] = 0
    frames = list(encode(Message("params", {}, {"x": data})))
    name = sha256(frames[0][HEADER:]).hexdigest()
    (folder / name).write_bytes(b"".join(frames))
    return name


def play(made: Apart | Here, story: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        try:
            await story(made)
        finally:
            await made.close()

    asyncio.run(all_of_it())


def stub(folder: Path, **values: Any) -> Apart:
    return Apart(settings(folder, **values), VAULT, [sys.executable, "-c", STUB])


async def ask(made: Apart, folder: Path, how: str) -> str:
    """What came of it: the number of the process, or why not."""
    try:
        await made.answer({}, folder / "model", folder / "to", sound=True, roots=b"", federation=how)
    except Refused as error:
        return str(error)
    return ""


async def gone(pid: int, seconds: float = 20.0) -> bool:
    for _ in range(int(seconds / 0.05)):
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.05)
                continue
        return True
    return False


@pytest.mark.parametrize("kind", [Apart, Here])
def test_rows_are_described_and_deltas_restored(tmp_path: Path, kind: Any) -> None:
    old, new = (blob(tmp_path, version) for version in (1, 2))
    assert make(FrameFile.of(tmp_path / old), FrameFile.of(tmp_path / new), tmp_path / "delta")

    async def story(made: Any) -> None:
        about = await made.about()
        assert about["data"]["rows"]["rows"] + about["data"]["rows"]["test_rows"] == 10
        await made.restore(tmp_path / old, tmp_path / "delta", tmp_path / "whole")
        assert (tmp_path / "whole").read_bytes() == (tmp_path / new).read_bytes()
        (tmp_path / "delta").write_bytes(b"nonsense")
        with pytest.raises((CodecError, ProtocolError)):
            await made.restore(tmp_path / old, tmp_path / "delta", tmp_path / "whole")

    play(kind(settings(tmp_path / "site"), VAULT), story)


@pytest.mark.parametrize("kind", [Apart, Here])
def test_an_ask_is_checked_where_it_is_followed(tmp_path: Path, kind: Any) -> None:
    authority = Authority.new("test", now=time.time())
    values = {**VALUES, "data": "rows", "features": 1, "classes": ["a", "b"]}
    job = signed(values, member(authority, "coordinator", "hub", now=time.time()))
    model = tmp_path / blob(tmp_path, 1)

    async def story(made: Any) -> None:
        call = partial(made.answer, to=tmp_path / "to", roots=authority.root, federation="test")
        with pytest.raises(ProtocolError, match="without a signed job"):
            await call({}, model, sound=True)
        with pytest.raises(ProtocolError, match="signed"):
            await call({"job": {**job, "text": job["text"] + b" "}}, model, sound=True)
        model.write_bytes(model.read_bytes()[:-1])
        for sound in (True, False):
            with pytest.raises(Spoiled):
                await call({"job": job}, model, sound=sound)
        assert not (tmp_path / "to").exists()

    play(kind(settings(tmp_path / "site"), VAULT), story)


@pytest.mark.parametrize("kind", [Apart, Here])
def test_rows_that_cannot_be_used_are_said_at_once(tmp_path: Path, kind: Any) -> None:
    async def story(made: Any) -> None:
        await made.about()

    with pytest.raises(ConfigError, match=r"\$\.data\.rows"):
        play(kind(settings(tmp_path / "site", data={"rows": {"train": "none.csv"}}), VAULT), story)


def test_no_process_waits_for_work_for_long(tmp_path: Path) -> None:
    async def story(made: Apart) -> None:
        await made.about()
        first, second = int(await ask(made, tmp_path, "")), int(await ask(made, tmp_path, ""))
        assert first == second and await gone(first)
        third = int(await ask(made, tmp_path, ""))
        assert third != first and made.started == 2

    play(stub(tmp_path / "site", linger=0.3), story)


def test_one_that_died_is_started_again_and_twice_is_refused(tmp_path: Path) -> None:
    async def story(made: Apart) -> None:
        assert (await ask(made, tmp_path, "dies once")).isdecimal()
        assert "exit code 3, 2 times" in await ask(made, tmp_path, "ends")
        assert (await ask(made, tmp_path, "")).isdecimal()

    play(stub(tmp_path / "site"), story)


def test_what_nobody_waits_for_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "GRACE", 0.2)

    async def story(made: Apart) -> None:
        pid = int(await ask(made, tmp_path, ""))
        long = asyncio.ensure_future(ask(made, tmp_path, "sleeps"))
        queued = asyncio.ensure_future(ask(made, tmp_path, "sleeps"))
        after = asyncio.ensure_future(ask(made, tmp_path, ""))
        await asyncio.sleep(0.3)
        queued.cancel()
        long.cancel()
        assert int(await asyncio.wait_for(after, 60)) != pid
        assert await gone(pid)

    play(stub(tmp_path / "site"), story)


def test_it_is_ended_with_its_client_in_the_midst_of_its_work(tmp_path: Path) -> None:
    async def story(made: Apart) -> None:
        pid = int(await ask(made, tmp_path, ""))
        long = asyncio.ensure_future(ask(made, tmp_path, "sleeps"))
        await asyncio.sleep(0.3)
        await made.close()
        assert await gone(pid)
        assert (await long) == ""

    play(stub(tmp_path / "site"), story)


def test_a_client_that_was_killed_leaves_nobody_behind(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", STUB], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    first, second = started
    greeting = framed(msgspec.msgpack.encode(workplace.Begin(settings(tmp_path / "site"), VAULT.key)))
    assert first.stdin and first.stdout and second.stdin and second.stdout
    first.stdin.write(greeting)
    first.stdin.flush()
    assert first.stdout.read(5)
    first.stdin.write(framed(msgspec.msgpack.encode(workplace.Order([], {}, federation="sleeps"))))
    second.stdin.write(greeting)
    for process in started:
        process.stdin.flush()  # type: ignore[union-attr]
    os.set_blocking(second.stdout.fileno(), False)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert second.stdout.read(1) is None, "two have the client's state at once"
        time.sleep(0.1)
    os.set_blocking(second.stdout.fileno(), True)
    first.stdin.close()  # as the system does for a client that it has ended
    assert first.wait(20) == 0
    assert second.stdout.read(5)
    second.stdin.close()
    assert second.wait(20) == 0
    for process in started:
        process.stdout.close()  # type: ignore[union-attr]


def test_one_that_does_not_start_is_said(tmp_path: Path) -> None:
    async def story(made: Apart) -> None:
        with pytest.raises(StateError, match=r"does not start: exit code 7"):
            await made.about()

    play(Apart(settings(tmp_path / "site"), VAULT, [sys.executable, "-c", "raise SystemExit(7)"]), story)


def test_it_is_told_no_token(tmp_path: Path) -> None:
    assert Apart(settings(tmp_path / "site"), VAULT)._settings.token == ""
