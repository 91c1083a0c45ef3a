"""Labels that come by themselves: each once, to its reading, in whatever order and however often."""

import asyncio
import math
import os
import sqlite3
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import MisuseError, StateError
from atoll.privacy.hazmat.suite import usable
from atoll.sense import intake, push
from atoll.sense.intake import Feed
from atoll.sense.reading import Reading
from atoll.sense.source import Push, Span, Sql
from atoll.sense.sql import follow
from atoll.sense.store import Store
from atoll.sense.window import Form, windows
from atoll.wire import failpoint
from tests.sense.life import BATCHES, SIZE, join
from tests.sense.plant import NOW, contract, rules, said, vault
from tests.sense.test_store import life, plain

WAIT = 3600.0


def bare(i: int, source: str = "press-7", **over) -> Reading:
    """As `said`, without its label."""
    return said(i, source, **{"fails": None, **over})


def label(i: int, fails: object = True, source: str = "press-7", at: float = NOW, **more) -> Reading:
    return Reading(source, at, str(i), {"fails": fails, **more})


def opened(folder: Path, **over) -> Store:
    made = over.pop("rules", rules())
    limits = {name: over.pop(name) for name in ("quota", "days") if name in over}
    return Store.open(folder, "press", vault(), made, join=join(wait=WAIT, **over), **limits)


@pytest.fixture
def store(tmp_path):
    with opened(tmp_path) as made:
        yield made


def labels(store: Store) -> dict[str, float]:
    return {r.id: r.cells[3] for r in store.readings() if not math.isnan(r.cells[3])}


def test_a_label_meets_its_reading_whichever_comes_first(store, tmp_path) -> None:
    assert store.label([label(2)], NOW) == Counter(labels=1)
    assert store.take([bare(i) for i in range(4)], NOW) == Counter(stored=4)
    assert labels(store) == {"2": 1.0}
    assert store.label([label(0, fails=False), label(2)], NOW) == Counter(labels=1, labels_repeated=1)
    assert labels(store) == {"0": 0.0, "2": 1.0}
    counts = store.counts()
    assert (counts["labelled"], counts["labels_waiting"]) == (2, 0)
    with Store.open(tmp_path, "press", vault(), join=join()) as beside:  # as the process that learns does
        assert labels(beside) == {"0": 0.0, "2": 1.0}
        with pytest.raises(MisuseError, match="opened to read"):
            beside.label([label(1)], NOW)
    with Store.open(tmp_path, "press", vault()) as plainly, pytest.raises(MisuseError, match="no labels"):
        plainly.label([label(1)], NOW)


def test_a_later_label_corrects_and_an_earlier_one_does_not(store) -> None:
    store.take([bare(1), said(5)], NOW)
    assert store.label([label(1, at=NOW + 10)], NOW) == Counter(labels=1)
    assert store.label([label(1, fails=False, at=NOW + 9)], NOW) == Counter(labels_repeated=1)
    assert labels(store) == {"1": 1.0, "5": 1.0}
    assert store.label([label(1, fails=False, at=NOW + 11)], NOW) == Counter(labels_corrected=1)
    assert store.label([label(5, fails=False, at=NOW, sequence="7")], NOW) == Counter(
        labels=1
    )  # its own goes
    assert labels(store) == {"1": 0.0, "5": 0.0}
    assert store.label([label(5, sequence=6)], NOW) == Counter(labels_repeated=1)
    assert store.label([label(5, sequence=8)], NOW) == Counter(labels_corrected=1)
    assert labels(store) == {"1": 0.0, "5": 1.0}


def test_what_is_no_label_here_is_set_aside_with_the_reason_once(tmp_path) -> None:
    with opened(tmp_path, devices=("press-*",), ahead=300.0) as store:
        bad = [
            label(1, fails="perhaps"),
            Reading("press-7", NOW, "2", {"state": "run"}),
            label(3, source="lathe-1"),
            Reading("press-7", NOW, "", {"fails": 1}),
            label(5, at=NOW + 301),
            label(6, sequence="soon"),
            Reading("press-7", NOW, "7", fault="it speaks for another device"),
        ]
        assert store.label([*bad, label(8)], NOW) == Counter(labels_aside=7, labels=1)
        assert store.label(bad, NOW) == Counter(labels_repeated=7)
        assert [(a.kind, a.source, a.reason) for a in store.aside()] == [
            ("label", "press-7", "column 'fails' is no flag: true or false"),
            ("label", "press-7", "column 'fails' is missing"),
            ("label", "lathe-1", "labels of this device are not taken: `devices` does not name it"),
            ("label", "press-7", "it names no id, and labels join by it here"),
            ("label", "press-7", "its clock is ahead by more than 300 s"),
            ("label", "press-7", "column 'sequence' is no number and no time"),
            ("label", "press-7", "it speaks for another device"),
        ]


def test_a_label_without_a_reading_waits_and_is_then_set_aside(store) -> None:
    store.label([label(1), label(2)], NOW)
    assert store.counts()["labels_waiting"] == 2
    store.take([bare(1)], NOW + WAIT - 1)
    assert store.counts()["labels_waiting"] == 1
    store.take([bare(3)], NOW + WAIT + 100)
    counts = store.counts()
    assert (counts["labels_waiting"], counts["labels_aside"], counts["labels"]) == (0, 1, 2)
    (aside,) = store.aside()
    assert (aside.id, aside.reason) == ("2", "no reading came for it in 3600 s")
    assert aside.values == {"fails": True, "sequence": NOW}


def test_what_is_too_old_goes_also_where_nothing_comes(store, monkeypatch) -> None:
    monkeypatch.setattr(intake, "_IDLE", 0.01)
    store.label([label(1)], NOW)

    async def run() -> None:
        feed = Feed(store, clock=lambda: NOW + WAIT + 100, pause=0.0)
        running = asyncio.create_task(feed.run())
        while not await asyncio.to_thread(store.aside):  # noqa: ASYNC110  what another task does
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(run())
    assert store.counts()["labels_waiting"] == 0


def test_labels_come_over_a_table_and_its_cursor_is_their_sequence(tmp_path) -> None:
    pytest.importorskip("sqlalchemy")
    base = tmp_path / "lab.sqlite"
    with sqlite3.connect(base) as sql:
        sql.execute("CREATE TABLE found (n INTEGER PRIMARY KEY, id TEXT, fails TEXT, who TEXT)")
        rows = [(1, "1", "yes"), (2, "2", "yes"), (3, "1", "no"), (4, "3", "perhaps")]
        sql.executemany("INSERT INTO found VALUES (?, ?, ?, 'Ada')", rows)
    query = "SELECT * FROM found WHERE n > :cursor ORDER BY n LIMIT 2"
    settings = Sql(url=f"sqlite:///{base}", query=query, cursor="n", device="laboratory", every=0.01)

    async def run() -> None:
        feed = Feed(store, clock=lambda: NOW, pause=0.0)
        told = Feed(store, clock=lambda: NOW, pause=0.0, of=feed)
        tasks = [asyncio.create_task(told.run()), asyncio.create_task(follow(settings, tmp_path, told))]
        while not await asyncio.to_thread(store.aside):  # noqa: ASYNC110  what another task does
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    with opened(tmp_path, by="sample", sequence="n") as store:
        store.take([bare(1), bare(2), bare(3)], NOW)
        asyncio.run(run())
        assert labels(store) == {"1": 0.0, "2": 1.0}
        (aside,) = store.aside()
        assert (aside.source, aside.id, aside.kind) == ("laboratory", "3", "label")


def test_labels_are_pushed_with_a_token(store) -> None:
    known = push.tokens(f"{'9' * 20}\npress-7 {'7' * 20}\n")
    everyone, seven = ({"Authorization": f"Bearer {c * 20}"} for c in "97")

    async def run() -> list[int]:
        feed = Feed(store, of=Feed(store), clock=lambda: NOW, pause=0.0)
        running = asyncio.create_task(feed.run())
        async with TestClient(TestServer(push.app(Push(token_file=""), known, feed))) as http:
            mine, others = {"id": 1, "fails": True}, {"source": "press-8", "id": 1, "fails": True}
            found = [await http.post("/labels", json=body, headers=seven) for body in (mine, others)]
            found.append(await http.post("/labels", json=[others], headers=everyone))
            found.append(await http.post("/readings", json=mine, headers=everyone))
            counts = await (await http.get("/labels", headers=seven)).json()
        running.cancel()
        assert (counts["labels"], counts["labels_aside"], counts["labels_waiting"]) == (2, 1, 2)
        return [answer.status for answer in found]

    assert asyncio.run(run()) == [200, 200, 200, 404]
    assert [a.reason for a in store.aside()] == ["it speaks for another device"]


def test_windows_leave_the_label_out_until_it_came(store) -> None:
    made = contract()
    form = Form(made.form, made.row, 3)
    store.take([bare(i) for i in range(4)], NOW)
    (window,) = windows(store, Span(size=4), form)
    assert window.labels is None
    store.label([label(1), label(3, fails=False)], NOW)
    (window,) = windows(store, Span(size=4), form)
    assert [math.isnan(y) for y in window.labels] == [True, False, True, False]
    assert window.labels[[1, 3]].tolist() == [1.0, 0.0]


def test_who_watches_hears_each_label_once_and_again_when_it_changes(store) -> None:
    store.take([bare(i) for i in range(3)] + [said(5)], NOW)
    cursor, kept = store.joined()
    assert [(r.id, r.cells[3]) for r in kept] == [("5", 1.0)]
    store.label([label(2), label(0), label(9)], NOW)
    store.take([bare(9)], NOW)
    cursor, kept = store.joined(cursor)
    assert [(r.id, r.cells[3]) for r in kept] == [("2", 1.0), ("0", 1.0), ("9", 1.0)]
    store.label([label(2), label(0, fails=False, sequence=NOW + 1)], NOW)
    cursor, kept = store.joined(cursor)
    assert [(r.id, r.cells[3]) for r in kept] == [("0", 0.0)]
    assert store.joined(cursor) == (cursor, [])


VALUES = {"heat": 20.0, "load": 1.0, "state": "run", "fails": None}

# -- the law: a function of what is stored ---------------------------------------------------------

MOMENTS = st.integers(0, 12).map(lambda n: NOW + n * 0.7)
READINGS = st.lists(st.tuples(st.sampled_from("ab"), MOMENTS, st.integers(0, 5)), max_size=8)
LABELS = st.lists(
    st.tuples(st.sampled_from("ab"), MOMENTS, st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=8
)
RULES = st.one_of(
    st.sampled_from([{"by": "id"}, {"by": "sample"}]),
    st.fixed_dictionaries(
        {
            "by": st.just("time"),
            "tolerance": st.sampled_from([0.0, 0.7, 2.0]),
            "direction": st.sampled_from(["nearest", "forward", "backward"]),
        }
    ),
)


def expected(
    readings: list, marks: list, by: str, tolerance: float = 0.0, direction: str = "nearest"
) -> dict:
    """Whose label is which, looked up one by one."""
    best: dict = {}
    for source, at, id_, sequence, fails in marks:
        place = {"id": (source, id_), "sample": id_, "time": (source, at)}[by]
        best[place] = max(best.get(place, (-1, False)), (sequence, fails))
    found = {}
    for source, at, id_ in readings:
        if by != "time":
            near = [{"id": (source, id_), "sample": id_}[by]]
        else:
            times = [t for s, t in best if s == source and abs(t - at) <= tolerance + 1e-6]
            times = [t for t in times if direction != "forward" or t >= at]
            times = [t for t in times if direction != "backward" or t <= at]
            near = [(source, t) for t in sorted(times, key=lambda t: (round(abs(t - at), 3), t))]
        found[source, at, id_] = next((float(best[p][1]) for p in near if p in best), None)
    return found


@settings(max_examples=40)
@given(READINGS, LABELS, RULES, st.randoms(use_true_random=False))
def test_any_order_and_repetition_of_readings_and_labels_gives_the_same_rows(
    readings, marks, rule, random
) -> None:
    readings = list({(s, i): (s, at, i) for s, at, i in readings}.values())  # an id is a reading's own
    events = [("take", r) for r in readings] + [("label", m) for m in marks]
    events += random.sample(events, len(events) // 2)
    random.shuffle(events)
    with TemporaryDirectory() as folder, opened(Path(folder), **rule) as store:
        store._file.sql.execute("PRAGMA synchronous=OFF")
        while events:
            kind = events[0][0]
            n = next((i for i, (k, _) in enumerate(events) if k != kind), len(events))
            part, events = [values for _, values in events[:n]], events[n:]
            if kind == "take":
                store.take([Reading(s, at, str(i), VALUES) for s, at, i in part], NOW)
            else:
                store.label([label(i, f, s, at, sequence=n) for s, at, i, n, f in part], NOW)
        found = {(r.source, r.at, int(r.id)): r.cells[3] for r in store.readings()}
        assert {k: None if math.isnan(y) else y for k, y in found.items()} == expected(
            readings, marks, **rule
        )
        labelled = [k for k, y in found.items() if not math.isnan(y)]
        assert store.counts()["labelled"] == len(labelled)
        heard = {(r.source, r.at, int(r.id)): r.cells[3] for r in store.joined()[1]}
        assert heard == {k: found[k] for k in labelled}


@pytest.mark.parametrize("direction", ["nearest", "forward", "backward"])
def test_by_time_it_is_what_pandas_joins(direction, tmp_path) -> None:
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(3)
    times, given = ([NOW + int(t) for t in np.sort(rng.choice(400, n, replace=False))] for n in (120, 40))
    left = pd.DataFrame({"at": times, "i": range(120)})
    right = pd.DataFrame({"at": given, "fails": rng.integers(0, 2, 40).astype(float)})
    came = zip(given, right["fails"].tolist(), strict=True)
    with opened(tmp_path, by="time", tolerance=5.0, direction=direction) as store:
        store.label([label(0, y, at=at) for at, y in came], NOW + 400)
        store.take([Reading("press-7", at, str(i), VALUES) for i, at in enumerate(times)], NOW + 400)
        found = [r.cells[3] for r in store.readings()]
    wanted = pd.merge_asof(left, right, on="at", tolerance=5.0, direction=direction)["fails"]
    assert 0 < wanted.isna().sum() < 120
    np.testing.assert_array_equal(found, wanted)


def test_another_rule_finds_the_readings_that_are_there(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:  # it knew of no labels
        store.take([bare(i) for i in range(5)], NOW)
    with opened(tmp_path) as store:
        assert store.label([label(3, at=NOW + 1)], NOW) == Counter(labels=1)
        assert labels(store) == {"3": 1.0}
    with opened(tmp_path, by="time", tolerance=0.2) as store:
        assert labels(store) == {"1": 1.0}
    with opened(tmp_path) as store:
        assert labels(store) == {"3": 1.0}
        assert store.counts()["labelled"] == 1


TABLES = ("marks", "labels", "joined")

# -- the disk --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs POSIX")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", sorted(n for n in failpoint.NAMES if n.startswith("sense.labelled.")))
def test_killed_at_a_commit_each_label_is_there_once(name, count, tmp_path) -> None:
    assert life(tmp_path, "label", f"{name}:{count}:kill") == -9
    done = count if name.endswith("after") else count - 1
    with opened(tmp_path) as store:
        assert len(labels(store)) == SIZE * done
    assert life(tmp_path, "label") == 0
    with opened(tmp_path) as store:
        assert labels(store) == {str(i): float(i % 3 == 0) for i in range(BATCHES * SIZE)}
        counts = store.counts()
        assert counts["labels"] == counts["labelled"] == BATCHES * SIZE
        assert counts["labels_aside"] == 1
        assert len(store.joined(0, 10_000)[1]) == BATCHES * SIZE


def test_labels_go_with_their_readings_by_retention(tmp_path) -> None:
    with opened(tmp_path, days=1, rules=rules(late=5.0)) as store:
        store.take([bare(i) for i in range(100)], NOW)
        store.label([label(i) for i in range(100)], NOW)
        store.take([bare(200)], NOW + 40_000)
        store.label([label(200)], NOW + 40_000)
        store.take([bare(90_000)], NOW + 90_000)
        assert labels(store) == {"200": 1.0}
        sizes = [store._file.sql.execute(f"SELECT * FROM {t}").fetchall() for t in TABLES]  # noqa: S608  ours
        assert [len(rows) for rows in sizes] == [2, 1, 1]


def test_labels_go_with_their_readings_by_quota(tmp_path) -> None:
    with opened(tmp_path, quota=300_000, rules=rules(late=5.0)) as store:
        for batch in range(30):
            some = range(batch * 200, (batch + 1) * 200)
            store.take([bare(i, load=(i * 0.6180339887) % 1) for i in some], NOW + batch)
            store.label([label(i) for i in some], NOW + batch)
            assert store.counts()["bytes"] <= 350_000
        counts, kept = store.counts(), [int(r.id) for r in store.readings()]
        assert 500 < len(kept) < 5500
        assert kept == list(range(counts["dropped"], 6000))
        assert len(labels(store)) == counts["labelled"] == len(kept)


def test_labels_nobody_waits_for_take_a_part_of_the_quota_and_no_reading_goes(tmp_path) -> None:
    with opened(tmp_path, quota=200_000, rules=rules(late=5.0)) as store:
        store.take([bare(i) for i in range(500)], NOW)
        for batch in range(10):
            store.label([label(10_000 + batch * 300 + i) for i in range(300)], NOW + batch)
        counts = store.counts()
        assert counts["labels_dropped"] > 500
        assert counts["labels_waiting"] + counts["labels_dropped"] == 3000
        assert counts["bytes"] <= 250_000
        assert (counts["dropped"], len(list(store.readings()))) == (0, 500)


def test_a_full_disk_refuses_labels_and_heals(store) -> None:
    store.take([bare(1)], NOW)
    failpoint.arm("sense.labelled.before:1:full")
    try:
        with pytest.raises(StateError, match="No space left"):
            store.label([label(1)], NOW)
    finally:
        failpoint.arm("")
    assert labels(store) == {}
    assert store.label([label(1)], NOW) == Counter(labels=1)
    assert labels(store) == {"1": 1.0}


@pytest.mark.parametrize("crypto", usable())
def test_the_disk_shows_no_label_and_no_name(crypto, tmp_path) -> None:
    with Store.open(
        tmp_path, "press", vault(crypto), rules(), join=join(number=lambda v, _: (v, ""))
    ) as store:
        secret = 61.8033988749
        store.take([bare(1, "secret-press")], NOW)
        store.label([label(1, secret, "secret-press"), label(2, secret, "secret-press")], NOW)
        assert [r.cells[3] for r in store.readings()] == [secret]
        needles = [b"secret-press", b"fails", struct.pack("<d", secret), struct.pack(">d", secret)]
        assert plain(tmp_path, needles) == set()
        store._file.sql.execute("UPDATE labels SET box = (SELECT max(box) FROM labels)")
        store._file.sql.commit()
        with pytest.raises(StateError, match="was changed"):
            [*store.readings(), *store.label([label(2, 1.0, "secret-press")], NOW)]
