"""Windows of devices whose labels come by themselves: a data set's rows, each heard once, when final."""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.control.engine.readings import _windowed as dataset
from atoll.sense.boxes import Kept
from atoll.sense.history import Histories
from atoll.sense.intake import Feed
from atoll.sense.judge import Rules
from atoll.sense.reading import Reading
from atoll.sense.source import Span
from atoll.sense.store import Store
from atoll.sense.window import Form, Labelled, labelled
from atoll.wire import failpoint
from tests.sense.life import BATCHES, FINAL, SIZE, join
from tests.sense.plant import NOW, contract, rules, vault
from tests.sense.test_store import life

FORM = Form(contract().form, contract().row, 3)
ALWAYS = 1e6


def opened(folder: Path, late: float | None = 2.0, final: float | None = 2.0, **over) -> Store:
    limits = {name: over.pop(name) for name in ("days", "owner") if name in over}
    made = join(final=final, wait=ALWAYS, **over)
    return Store.open(folder, "press", vault(), rules(late=late), join=made, **limits)


def reading(i: int, at: float, device: str = "a", fails: bool | None = None) -> Reading:
    return Reading(
        device, NOW + at, str(i), {"heat": 20 + i % 90, "load": i / 8, "state": "run", "fails": fails}
    )


def label(i: int, fails: object, sequence: float = 0.0, device: str = "a", at: float = 0.0) -> Reading:
    return Reading(device, NOW + at, str(i), {"fails": fails, "sequence": sequence})


def ids(windows: list[list[Kept]]) -> list[tuple[list[int], float]]:
    return [([int(r.id) for r in w], w[-1].cells[3]) for w in windows]


def pairs(lots: list[Labelled]) -> list[tuple[bytes, float, str]]:
    return [
        (x.tobytes(), y, t) for lot in lots for x, y, t in zip(lot.rows, lot.labels, lot.tickets, strict=True)
    ]


def test_a_label_is_heard_when_its_window_can_change_no_more(tmp_path) -> None:
    with opened(tmp_path) as store:
        store.take([reading(i, i) for i in range(4)], NOW)  # final: 0 and 1
        store.label([label(1, True), label(3, True)], NOW)
        cursor, windows = store.due(2)
        assert ids(windows) == [([0, 1], 1.0)]
        store.label([label(3, False, 1.0)], NOW)  # corrected before it was heard
        store.take([reading(4, 2.5)], NOW)  # late, and in the window that waits
        assert store.due(2, cursor) == (cursor, [])
        store.take([reading(5, 9.0)], NOW)
        cursor, windows = store.due(2, cursor)
        assert ids(windows) == [([4, 3], 0.0)]
        store.label([label(3, False, 2.0), label(9, True)], NOW)  # the same again, and of no reading
        assert store.due(2, cursor) == (cursor, [])
        store.label([label(3, True, 3.0), label(0, True)], NOW)  # corrected; too few before the other
        cursor, windows = store.due(2, cursor)
        assert ids(windows) == [([4, 3], 1.0)]
        assert store.due(2, cursor) == (cursor, [])
        with Store.open(tmp_path, "press", vault(), join=join()) as beside:
            assert ids(beside.due(2)[1]) == [([0, 1], 1.0), ([4, 3], 1.0)]


MOMENTS = st.integers(0, 12).map(lambda n: n * 0.7)
READINGS = st.lists(st.tuples(st.sampled_from("ab"), MOMENTS), max_size=12)
LABEL = st.tuples(st.integers(0, 11), st.integers(0, 3), st.booleans(), MOMENTS, st.sampled_from("ab"))
LABELS = st.lists(LABEL, max_size=8)
RULE = st.sampled_from([{"by": "id"}, {"by": "sample"}, {"by": "time", "tolerance": 1.0}])


@settings(max_examples=25)
@given(READINGS, LABELS, RULE, st.integers(1, 3), st.sampled_from([0.0, 2.0]), st.data())
def test_every_labelled_final_row_of_the_data_set_is_heard_once_and_again_when_its_label_changes(
    devices, marks, rule, size: int, late: float, data
) -> None:
    said = [reading(i, at, device) for i, (device, at) in enumerate(devices)]
    told = [
        label(i, fails, n, devices[i][0] if i < len(devices) and rule["by"] != "time" else device, at)
        for i, n, fails, at, device in marks
    ]
    events: list[tuple[str, list[Reading]]] = [("take", [r]) for r in said] + [("label", [r]) for r in told]
    events = data.draw(st.permutations(events))
    events += events[: len(events) // 2]
    heard: list[tuple[bytes, float, str]] = []
    corrected = 0
    made, began = Histories(size, FORM, late=late, newest=1000), list[bytes]()
    with TemporaryDirectory() as folder, opened(Path(folder), late, late, **rule) as store:
        store._file.sql.execute("PRAGMA synchronous=OFF")
        cursor = 0
        for what, batch in events:
            done = (store.take if what == "take" else store.label)(batch, NOW)
            changed = done["labels_corrected"] + (rule["by"] == "time") * (done["labels"] + done["stored"])
            corrected += changed  # by time, one that is nearer takes a label's place
            if data.draw(st.booleans()):
                cursor, windows = store.due(size, cursor)
                lot = labelled(windows, FORM, cursor) if windows else None
                heard += pairs([] if lot is None else [lot])
        cursor, windows = store.due(size, cursor)
        lot = labelled(windows, FORM, cursor) if windows else None
        heard += pairs([] if lot is None else [lot])
        kept = [*store.readings()]
        for _, box in store.boxes():
            for w in made.add(box):
                began += [x.tobytes() for x in w.rows]
    newest = {r.source: max(o.at for o in kept if o.source == r.source) for r in kept}
    final = sorted((r for r in kept if r.at <= newest[r.source] - late), key=lambda r: r.at)
    x, y = dataset(final, FORM, size)
    rows = Counter((row.tobytes(), label) for row, label in zip(x, [] if y is None else y, strict=False))
    rows = Counter({row: n for row, n in rows.items() if not math.isnan(row[1])})
    last = {ticket: (row, y) for row, y, ticket in heard}
    assert Counter(last.values()) == rows
    assert {row for row, _ in last.values()} <= set(began), "and they are the windows that were looked at"
    for ticket in last:
        assert len({row for row, _, t in heard if t == ticket}) == 1, "no row changes once it was heard"
    assert len(heard) <= len(last) + corrected


def test_who_begins_to_watch_or_changes_how_hears_what_is_there(tmp_path) -> None:
    with opened(tmp_path, final=None) as store:
        store.take([reading(i, i) for i in range(6)], NOW)
        store.label([label(2, True), label(4, False)], NOW)
        assert store.due(2) == (0, [])
    with opened(tmp_path) as store:  # readings up to 3 are final
        cursor, windows = store.due(2)
        assert ids(windows) == [([1, 2], 1.0)]
    with opened(tmp_path) as store:
        assert store.due(2, cursor) == (cursor, [])
    with opened(tmp_path, final=1.0) as store:
        cursor, windows = store.due(3, cursor)
        assert ids(windows) == [([2, 3, 4], 0.0)]
    with opened(tmp_path, final=None) as store:
        store.label([label(3, True)], NOW)
    with opened(tmp_path) as store:
        cursor, windows = store.due(3, cursor)
        assert ids(windows) == [([1, 2, 3], 1.0)], "what was heard is not heard again"
    with opened(tmp_path, by="time", tolerance=0.1) as store:
        assert store.due(2, cursor)[1] == [], "no label is of a reading's time"
        store.label([label(0, True, at=3.0)], NOW)
        assert ids(store.due(2, cursor)[1]) == [([2, 3], 1.0)]


def test_windows_hold_readings_of_one_contract(tmp_path) -> None:
    with opened(tmp_path) as store:
        store.take([reading(i, i) for i in range(4)], NOW)
    new = Rules(contract().taken, tuple(contract().columns), "another", late=2.0)
    how = {"form": "another", "wait": ALWAYS}
    with Store.open(tmp_path, "press", vault(), new, join=join(**how), owner=False) as beside:
        beside.take([reading(4, 4.0)], NOW)  # by who knows the new one, while the client does not yet
    with opened(tmp_path) as store:
        store.take([reading(i, i) for i in (5, 6, 7)], NOW)
        store.label([label(4, True), label(5, True)], NOW)
        assert ids(store.due(2)[1]) == [([3, 5], 1.0)], "as the old one has its rows"
    with Store.open(tmp_path, "press", vault(), new, join=join(final=2.0, **how)) as store:
        cursor, windows = store.due(2)
        store.take([reading(8, 8.0), reading(9, 10.0)], NOW)
        store.label([label(8, True)], NOW)
        assert windows == []
        assert ids(store.due(2, cursor)[1]) == [([4, 8], 1.0)]


def test_a_reading_and_its_label_that_are_judged_again_are_heard_once(tmp_path) -> None:
    with opened(tmp_path, late=20.0) as store:
        store.take(
            [reading(0, 0), Reading("a", NOW + 2, "1", {"heat": 300.0, "load": 1.0, "state": "run"})], NOW
        )
        store.take([reading(2, 9)], NOW)
        store.label([label(1, "perhaps")], NOW)
        assert store.status()["aside"] != {}
    made = contract()
    columns = {
        **made.columns,
        "heat": msgspec.structs.replace(made.columns["heat"], high=500.0),
    }
    made = msgspec.structs.replace(made, columns=columns)
    new = Rules(made.taken, tuple(made.columns), made.form, late=20.0)
    how = join(form=made.form, wait=ALWAYS, final=2.0, number=lambda v, _: (float(v == "perhaps"), ""))
    with Store.open(tmp_path, "press", vault(), new, join=how) as store:
        assert store.replay(NOW) == Counter(stored=1, labels=1)
        assert ids(store.due(1)[1]) == [([1], 1.0)]


def test_windows_go_with_their_readings(tmp_path) -> None:
    with opened(tmp_path, days=1) as store:
        store.take([reading(i, i) for i in range(100)], NOW)
        store.label([label(i, True) for i in range(90)], NOW)
        store.take([reading(i, i) for i in range(100, 110)], NOW + 40_000)
        store.label([label(i, True) for i in range(90, 105)], NOW + 40_000)
        assert len(store.due(4, most=1000)[1]) == 102
        store.take([reading(110, 110)], NOW + 90_000)
        assert ids(store.due(4)[1]) == [([100, 101, 102, 103], 1.0), ([101, 102, 103, 104], 1.0)]
        (n,) = store._file.sql.execute("SELECT count(*) FROM series").fetchone()
        assert n == 11


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs POSIX")
@pytest.mark.parametrize("name", sorted(n for n in failpoint.NAMES if n.startswith("sense.labelled.")))
def test_killed_at_a_commit_each_window_is_due_once(name, tmp_path) -> None:
    assert life(tmp_path, "label", f"{name}:3:kill") == -9
    assert life(tmp_path, "label") == 0
    with opened(tmp_path, FINAL, FINAL) as store:
        windows = ids(store.due(3, most=1000)[1])
    final = range(2, BATCHES * SIZE - int(FINAL))
    assert windows == [([i - 2, i - 1, i], float(i % 3 == 0)) for i in final]


def test_a_feed_gives_labelled_windows_as_they_become_final_and_begins_anew_after_a_wipe(tmp_path) -> None:
    from atoll.sense.place import wipe

    async def run() -> list[Labelled]:
        feed = Feed(store, span=Span(size=2), form=lambda: FORM, late=2.0, clock=lambda: NOW, pause=0.0)
        told = Feed(store, of=feed, clock=lambda: NOW, pause=0.0)
        tasks = [asyncio.create_task(feed.run()), asyncio.create_task(told.run())]
        lots = feed.labelled(0, histories=100)
        found = []
        for _ in range(2):
            await told.put([label(1, True)])
            await feed.put([reading(i, i) for i in range(3)])
            coming = asyncio.create_task(anext(lots))
            await feed.put([reading(3, 3)])
            found.append(await coming)
            await asyncio.to_thread(wipe, tmp_path, "press")
        for task in tasks:
            task.cancel()
        return found

    with opened(tmp_path) as store:
        one, two = asyncio.run(run())
    assert one.rows.shape == (1, 2, 3)
    assert one.tickets == ("a/1",)
    assert pairs([one]) == pairs([two])
    np.testing.assert_array_equal(one.rows[0, :, 0], [20, 21])
