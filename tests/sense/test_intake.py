"""From files, tables and calls into the store: acknowledged once it is on disk, once each, or held back."""

import asyncio
import io
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image

from atoll.core.errors import ConfigError, StateError
from atoll.data.contract import Contract
from atoll.sense import folder, push
from atoll.sense.intake import Busy, Feed, Intake
from atoll.sense.judge import Rules
from atoll.sense.reading import Reading, moment, parse
from atoll.sense.source import Folder, Push, Span, Sql
from atoll.sense.sql import follow
from atoll.sense.store import Store
from atoll.sense.window import Form, windows
from atoll.wire import failpoint
from tests.sense.plant import NOW, contract, rules, said, vault

FILE = {"token_file": "tokens"}
TOKEN = "a-token-of-sixteen-or-more"  # noqa: S105  of a test


@asynccontextmanager
async def running(path: Path, judged: Rules | None = None, **over):
    """A feed into a store, its clock at NOW."""
    with Store.open(path, "press", vault(), judged or rules()) as store:
        feed = Feed(store, clock=lambda: NOW, pause=0.0, **over)
        task = asyncio.create_task(feed.run())
        try:
            yield feed
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(what) -> None:
    """Wait until it is so: tests have a time limit, and this none."""
    while not what():  # noqa: ASYNC110  what other tasks and the disk do
        await asyncio.sleep(0.01)


def ids(store: Store) -> list[str]:
    return [r.id for r in store.readings()]


# -- what comes in ------------------------------------------------------------------------------------------


def test_a_message_becomes_readings_and_what_is_wrong_with_it_a_fault() -> None:
    one = b'{"at": 5, "id": 7, "values": {"heat": 1}, "units": {"heat": "K"}}'
    assert parse(one, NOW, "p", {"load": "kN"}) == [
        Reading("p", 5.0, "7", {"heat": 1}, {"load": "kN", "heat": "K"})
    ]
    flat = b'[{"at": "2025-07-02T09:00:00Z", "heat": 1}, {"heat": 2}]'
    assert [(r.at, r.values) for r in parse(flat, NOW, "p")] == [
        (1751446800.0, {"heat": 1}),
        (NOW, {"heat": 2}),
    ]
    for text, words in (
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"3", "expected an object"),
        (b'{"source": "q", "heat": 1}', "speaks for another device"),
        (b'{"at": "noon", "heat": 1}', "time cannot be read"),
        (b'{"at": 1e999, "heat": 1}', "no JSON"),
        (b'{"at": "inf", "heat": 1}', "time cannot be read"),
        (b'{"at": "2025-07-02T09:00:00", "heat": 1}', "time cannot be read"),
        (b'{"id": [1], "heat": 1}', "id is no name"),
        (b'{"values": 3}', "by column"),
        (b" " * (1 << 21), "at most"),
    ):
        (found,) = parse(text, NOW, "p")
        assert words in found.fault
    assert "its source is no name" in parse(b'{"heat": 1}', NOW)[0].fault  # nobody says whose it is
    assert moment("1751446800.5") == 1751446800.5


def test_the_queue_is_bounded_and_says_so(tmp_path) -> None:
    async def main() -> None:
        async with running(tmp_path, most=10) as feed:
            first = asyncio.create_task(feed.put([said(i) for i in range(8)]))
            await asyncio.sleep(0)
            second = asyncio.create_task(feed.put([said(i) for i in range(8, 16)]))  # waits for room
            with pytest.raises(Busy, match="come again later"):
                await feed.put([said(i) for i in range(16, 24)], wait=False)
            assert feed.counts()["refused"] == 8
            await asyncio.gather(first, second)
            assert feed.counts() | {"bytes": 0} == {
                "stored": 16, "repeated": 0, "late": 0, "aside": 0, "expired": 0, "dropped": 0, "bytes": 0,
                "waiting": 0, "refused": 8,
            }  # fmt: skip

    asyncio.run(main())


def test_a_full_disk_acknowledges_nothing_and_heals(tmp_path) -> None:
    async def main() -> None:
        async with running(tmp_path) as feed:
            failpoint.arm("sense.stored.before:1:full")
            try:
                with pytest.raises(StateError, match="No space left"):
                    await feed.put([said(1)])
            finally:
                failpoint.arm("")
            assert "No space left" in feed.trouble
            with pytest.raises(Busy, match="No space left"):
                await feed.put([said(1)], wait=False)
            await feed.put([said(1)])
            assert feed.trouble == ""
            assert ids(feed.store) == ["1"]

    asyncio.run(main())


# -- folders ------------------------------------------------------------------------------------------------

CSV = "at,id,source,heat [degF],load,state,fails\n"


def lines(begin: int, end: int) -> str:
    return "".join(
        f"{NOW + i},{i},press-7,{68 + i % 50},{i / 8 if i % 3 else ''},run,{i % 2}\n"
        for i in range(begin, end)
    )


async def watched(feed: Feed, path: Path, picture=None, **over) -> asyncio.Task:
    return asyncio.create_task(folder.watch(Folder(path=".", every=0.01, **over), path, feed, picture))


def test_files_of_a_folder_are_read_and_moved(tmp_path) -> None:
    incoming = tmp_path / "in"
    incoming.mkdir()

    async def main() -> None:
        async with running(tmp_path) as feed:
            (incoming / "a.csv").write_text(CSV + lines(0, 10))
            (incoming / "b.csv").write_text(CSV + lines(5, 15))  # five of them again
            (incoming / "c.csv").write_text("heat,heat\n1,2\n")
            (incoming / "d.csv").write_text(CSV + lines(15, 16) + "1,2\n")
            (incoming / ".e.csv").write_text(CSV + lines(20, 21))
            (incoming / "f.csv.part").write_text(CSV + lines(20, 21))
            task = await watched(feed, incoming)
            await until(lambda: not [*incoming.glob("[a-d].csv")])
            task.cancel()
            assert {p.name for p in (incoming / "done").iterdir()} == {"a.csv", "b.csv"}
            assert {p.name for p in (incoming / "aside").iterdir()} == {"c.csv", "d.csv"}
            assert ids(feed.store) == [str(i) for i in range(16)]
            first = next(iter(feed.store.readings()))
            assert first.cells[0] == pytest.approx(20.0)  # 68 degF
            assert np.isnan(first.cells[1])
            assert {a.reason for a in feed.store.aside()} == {
                "a table without a header, or with a column twice",
                "line 3 has another number of cells than the header",
            }

    asyncio.run(main())


def test_rows_without_time_and_id_are_known_by_their_file(tmp_path) -> None:
    incoming = tmp_path / "in"
    incoming.mkdir()
    text = "heat,state\n20,run\n20,run\n21,idle\n"

    async def main() -> None:
        async with running(tmp_path) as feed:
            for name in ("a.csv", "copy of a.csv"):
                (incoming / name).write_text(text)
            task = await watched(feed, incoming, device="press-7", keep=False)
            await until(lambda: not [*incoming.glob("*.csv")])
            task.cancel()
            assert not [*(incoming / "done").iterdir()]
            counts = feed.counts()
            assert (counts["stored"], counts["repeated"]) == (3, 3)

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs POSIX")
@pytest.mark.parametrize("name", ["sense.folder.stored", "sense.folder.moved"])
def test_killed_around_a_move_each_row_is_there_once(name, tmp_path) -> None:
    incoming = tmp_path / "in"
    incoming.mkdir()
    (incoming / "a.csv").write_text(CSV + lines(0, 10))
    env = os.environ | {failpoint.VARIABLE: f"{name}:1:kill"}
    command = [sys.executable, "-m", "tests.sense.life", str(tmp_path), "folder"]
    for variables, ended in ((env, -signal.SIGKILL), (os.environ, 0)):
        done = subprocess.run(command, env=variables, check=False, timeout=60)
        assert done.returncode == ended
    with Store.open(tmp_path, "press", vault()) as store:
        assert ids(store) == [str(i) for i in range(10)]
    assert [p.name for p in (incoming / "done").iterdir()] == ["a.csv"]


def test_parquet_files(tmp_path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    incoming = tmp_path / "in"
    incoming.mkdir()
    columns = {
        "at": [NOW, NOW + 1],
        "source": ["p", "p"],
        "heat": [20.0, 21.0],
        "load": [None, 2.5],
        "state": ["run", "x"],
    }
    parquet.write_table(arrow.table(columns), incoming / "a.parquet")
    (incoming / "b.parquet").write_bytes(b"PAR1 no more")

    async def main() -> None:
        async with running(tmp_path) as feed:
            task = await watched(feed, incoming)
            await until(lambda: not [*incoming.glob("*.parquet")])
            task.cancel()
            (kept,) = feed.store.readings()
            assert (kept.source, kept.at, kept.cells[0], kept.cells[2]) == ("p", NOW, 20.0, 1.0)
            assert {a.reason for a in feed.store.aside()} == {
                "column 'state' is none of its 2 categories", "a file that is no Parquet",
            }  # fmt: skip

    asyncio.run(main())


def test_pictures_and_their_labels(tmp_path) -> None:
    seen = Contract.of({
        "name": "parts", "label": "what",
        "columns": {
            "picture": {"kind": "image", "shape": [4, 6]},
            "what": {"kind": "category", "values": ["good", "bad"]},
        },
    })  # fmt: skip
    judged = Rules(seen.taken, tuple(seen.columns), seen.form)
    incoming = tmp_path / "in"
    for name in ("good", "bad", "odd"):
        (incoming / name).mkdir(parents=True)
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    whole = io.BytesIO()
    Image.fromarray(grey).save(whole, "png")
    (incoming / "bad" / "1.png").write_bytes(whole.getvalue())
    (incoming / "bad" / "2.png").write_bytes(whole.getvalue()[:-30])
    (incoming / "good" / "3.png").write_bytes(b"no picture")
    Image.fromarray(grey.T).save(incoming / "good" / "4.png")
    Image.fromarray(grey + 1).save(incoming / "odd" / "5.png")

    async def main() -> None:
        async with running(tmp_path, judged) as feed:
            picture = folder.Picture("picture", (4, 6), "what")
            task = await watched(feed, incoming, picture)
            await until(
                lambda: not [p for p in incoming.glob("*/*.png") if p.parts[-2] not in ("done", "aside")]
            )
            task.cancel()
            assert Counter(a.reason for a in feed.store.aside()) == {
                "a picture that cannot be read": 2,
                "a picture of another size than 6 x 4": 1,
                "column 'what' is none of its 2 categories": 1,
            }
            form = Form(seen.form, seen.row, 1)
            (window,) = windows(feed.store, Span(size=1), form)
            assert window.rows.dtype == np.float32
            assert (np.round(window.rows[0] * 255) == grey).all()
            assert window.labels.tolist() == [1.0]
            assert (incoming / "done" / "bad" / "1.png").exists()

    asyncio.run(main())


# -- tables, calls ------------------------------------------------------------------------------------------


def test_rows_of_a_database_by_their_cursor(tmp_path) -> None:
    pytest.importorskip("sqlalchemy")
    base = tmp_path / "log.sqlite"
    with sqlite3.connect(base) as sql:
        sql.execute("CREATE TABLE log (n INTEGER PRIMARY KEY, at REAL, heat REAL, load REAL, state TEXT)")
        sql.executemany(
            "INSERT INTO log VALUES (?, ?, ?, ?, 'run')", [(i, NOW, 20.0, i) for i in range(1, 26)]
        )
    settings = Sql(
        url=f"sqlite:///{base}",
        query="SELECT * FROM log WHERE n > :cursor ORDER BY n LIMIT 10",
        cursor="n",
        device="press-7",
        every=0.01,
    )

    async def main(stored: int) -> None:
        async with running(tmp_path) as feed:
            task = asyncio.create_task(follow(settings, tmp_path, feed))
            await until(lambda: feed.counts()["stored"] == stored)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert [r.cells[1] for r in feed.store.readings()] == list(range(1, stored + 1))
            assert feed.counts()["repeated"] == 0  # the cursor is in the same commit

    asyncio.run(main(25))
    with sqlite3.connect(base) as sql:
        sql.executemany(
            "INSERT INTO log VALUES (?, ?, ?, ?, 'run')", [(i, NOW, 20.0, i) for i in range(26, 30)]
        )
    asyncio.run(main(29))
    with pytest.raises(ConfigError, match=":cursor"):
        asyncio.run(follow(Sql(url="sqlite://", query="SELECT 1", cursor="n"), tmp_path, None))


@asynccontextmanager
async def served(feed: Feed):
    from aiohttp.test_utils import TestClient, TestServer

    known = push.tokens(f"{TOKEN}\npress-7 {'7' * 20}\n")
    async with TestClient(TestServer(push.app(Push(token_file=""), known, feed))) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_readings_are_pushed_with_a_token(tmp_path) -> None:
    body = {"source": "press-9", "at": NOW, "values": {"heat": 20, "state": "run"}}

    async def main() -> None:
        async with running(tmp_path) as feed, served(feed) as http:
            everyone, seven = bearer(TOKEN), bearer("7" * 20)
            for headers in ({}, bearer("wrong"), {"Authorization": f"Basic {'7' * 20}"}):
                assert (await http.post("/readings", json=body, headers=headers)).status == 401
            assert (await http.post("/readings", json=body, headers=everyone)).status == 200
            assert [r.source for r in feed.store.readings()] == ["press-9"]
            assert (await http.post("/readings", json=body, headers=seven)).status == 200  # set aside
            assert [a.reason for a in feed.store.aside()] == ["it speaks for another device"]
            mine = {"at": NOW, "values": {"heat": 21, "state": "run"}}
            assert (await http.post("/readings", json=[mine, mine], headers=seven)).status == 200
            counts = await (await http.get("/readings", headers=seven)).json()
            assert (counts["stored"], counts["repeated"], counts["aside"]) == (2, 1, 1)
            failpoint.arm("sense.stored.before:1:full")
            try:
                late = await http.post("/readings", json=body | {"at": NOW + 1}, headers=everyone)
            finally:
                failpoint.arm("")
            assert (late.status, late.headers["Retry-After"]) == (503, "1")
            with suppress(aiohttp.ClientError):
                assert (
                    await http.post("/readings", data=io.BytesIO(b"x" * (1 << 21)), headers=everyone)
                ).status == 413

    asyncio.run(main())


def test_another_machine_needs_tls_and_tokens_are_long(tmp_path) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    for host in ("0.0.0.0", "192.168.1.5", "::", "hub"):  # noqa: S104
        with pytest.raises(ConfigError, match="give a certificate"):
            asyncio.run(push.serve(Push(**FILE), tmp_path, None, host, 0))
    with pytest.raises(ConfigError, match="16 characters"):
        push.tokens("short")
    with pytest.raises(ConfigError, match="cannot be read"):
        asyncio.run(push.serve(Push(token_file=str(tmp_path / "gone")), tmp_path, None, "127.0.0.1", 0))


# -- windows ------------------------------------------------------------------------------------------------


def form() -> Form:
    return Form(contract().form, contract().row, 3)


def test_windows_by_count(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        for begin in range(0, 50, 7):
            store.take([said(i) for i in range(begin, min(begin + 7, 50))], NOW)
        found = list(windows(store, Span(size=20, step=5), form()))
        assert [w.cursor for w in found] == [5, 10, 15, 20, 25, 30, 35]
        assert [w.at - NOW for w in found] == [19, 24, 29, 34, 39, 44, 49]
        assert found[1].rows.shape == (20, 3)
        assert found[1].rows[:, 1].tolist() == [i / 8 for i in range(5, 25)]
        assert found[1].labels.tolist() == [float(i % 5 == 0) for i in range(5, 25)]
        again = list(windows(store, Span(size=20, step=5), form(), after=15))
        assert [w.cursor for w in again] == [20, 25, 30, 35]
        assert (again[0].rows == found[3].rows).all()
        assert list(windows(store, Span(size=20), Form("of another contract", (3,)))) == []


def test_windows_by_time_wait_for_stragglers_and_are_in_order(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules(late=60.0)) as store:
        order = [0, 1, 12, 3, 11, 2, 25, 4, 14, 31, 33, 24, 47]  # 4 comes too late for its window
        for i in order:
            store.take([said(i)], NOW)
        found = list(windows(store, Span(seconds=10.0), form(), late=10.0))
        assert [sorted(w.rows[:, 1] * 8) for w in found] == [[0, 1, 2, 3], [11, 12, 14], [24, 25]]
        assert [w.at - NOW for w in found] == [3, 14, 25]
    with Store.open(tmp_path / "one", "press", vault(), rules(late=60.0)) as store:
        store.take([said(i) for i in order], NOW)  # in one commit
        again = list(windows(store, Span(seconds=10.0), form(), late=10.0))
        assert [w.rows.tolist() for w in again] == [w.rows.tolist() for w in found]
        again = list(windows(store, Span(seconds=10.0), form(), after=found[0].cursor, late=10.0))
        assert [w.cursor for w in again] == [w.cursor for w in found[1:]]


def test_new_windows_come_as_they_fill_and_go_on_after_a_restart(tmp_path) -> None:
    async def some(after: int, n: int, begin: int, most: int) -> tuple[list[float], int]:
        async with running(tmp_path, span=Span(size=10, step=5), form=form) as feed:
            found: list[float] = []

            async def follow() -> int:
                async for window in Intake({"press": feed}).windows("press", after):
                    found.append(float(window.rows[0, 1]) * 8)
                    if len(found) == n:
                        return window.cursor
                return -1

            task = asyncio.create_task(follow())
            for i in range(begin, most, 4):
                await feed.put([said(j) for j in range(i, min(i + 4, most))])
            return found, await task

    first, cursor = asyncio.run(some(0, 3, 0, 24))
    assert (first, cursor) == ([0, 5, 10], 15)
    assert asyncio.run(some(cursor, 3, 24, 36)) == ([15, 20, 25], 30)


def test_a_wrong_name_is_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'press'"):
        Intake({"press": None}).windows("pres")
