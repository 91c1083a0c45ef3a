"""What was set aside comes back once its contract is mended; a store is wiped under a client that runs."""

import asyncio
import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from atoll.core.errors import StateError
from atoll.data.contract import Contract
from atoll.sense.intake import Feed
from atoll.sense.judge import Rules
from atoll.sense.place import wipe
from atoll.sense.reading import Reading
from atoll.sense.source import Span
from atoll.sense.store import Store
from atoll.sense.window import Form
from atoll.wire import failpoint
from tests.sense.life import join
from tests.sense.plant import NOW, TABLE, contract, rules, said, vault
from tests.sense.test_store import life


def mended(**columns) -> Rules:
    made = Contract.of({**TABLE, "columns": {**TABLE["columns"], **columns}})
    stuck = {name: c.stuck for name, c in made.columns.items() if c.stuck is not None}
    return Rules(made.taken, tuple(made.columns), made.form, stuck, late=60.0, ahead=300.0)


def ids(store: Store) -> list[str]:
    return [r.id for r in store.readings()]


HOT = {"low": -40, "high": 500, "unit": "degC"}


def test_what_a_mended_contract_takes_is_stored_and_the_rest_stays(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules(late=60.0, ahead=300.0)) as store:
        bad = [said(1, heat=200), said(2, heat=900), said(3, "press-8", heat=210)]
        bad += [Reading("press-7", NOW, "4", {"heat": 300, "state": "run"}, {"heat": "K"})]
        bad += [Reading("press-7", NOW, "5", fault="it speaks for another device"), said(900)]
        assert store.take([*bad, said(100)], NOW) == Counter(aside=6, stored=1)
    heat = {**HOT, "from": {"K": [1, -273.15]}}
    with Store.open(tmp_path, "press", vault(), mended(heat=heat)) as store:
        chosen = store.replay(NOW + 9999, lambda aside: "lies outside" in aside.reason)
        assert chosen == Counter(stored=2, aside=1)
        assert ids(store) == ["100", "1", "3"], "they are late by now, and were not when they came"
        assert store.replay(NOW + 9999) == Counter(stored=1, aside=3)
        assert store.take(bad[:4], NOW)["stored"] == 0, "who sends them again finds them known"
        assert [(a.id, a.reason) for a in store.aside()] == [
            ("2", "column 'heat' lies outside -40 to 500"),
            ("5", "it speaks for another device"),
            ("900", "its clock is ahead by more than 300 s"),
        ]
        counts = store.counts()
        assert (counts["stored"], counts["aside"]) == (4, 3)
        assert store.replay(NOW) == Counter(aside=3)
        assert next(r for r in store.readings() if r.id == "4").cells[0] == pytest.approx(26.85)


def test_a_stuck_sensor_comes_back_only_by_another_rule(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        store.take([said(i, heat=50) for i in range(0, 1300, 100)], NOW + 2000)
        assert store.replay(NOW + 2000) == Counter(aside=6)
    cold = {**HOT, "high": 40, "stuck": 600}
    with Store.open(tmp_path, "press", vault(), mended(heat=cold)) as store:
        assert store.replay(NOW + 2000) == Counter(aside=6)
        assert all("is the sensor stuck?" in one.reason for one in store.aside()), "it is not forgotten"
    with Store.open(tmp_path, "press", vault(), mended(heat={**HOT, "stuck": 7200})) as store:
        assert store.replay(NOW + 2000) == Counter(stored=6)


def test_labels_come_back_too(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules(), join=join(devices=("lathe-*",))) as store:
        store.take([said(1, fails=None), said(2, fails=None)], NOW)
        one, two = (Reading("press-7", NOW, str(i), {"fails": True}) for i in (1, 2))
        assert store.label([one, two], NOW) == Counter(labels_aside=2)
    with Store.open(tmp_path, "press", vault(), rules(), join=join()) as store:
        assert store.replay(NOW, lambda aside: aside.id == "1") == Counter(labels=1)
        assert next(r.cells[3] for r in store.readings()) == 1.0
        counts = store.counts()
        assert (counts["labels"], counts["labels_aside"], counts["labelled"]) == (1, 1, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs POSIX")
@pytest.mark.parametrize("name", sorted(n for n in failpoint.NAMES if n.startswith("sense.replayed.")))
def test_killed_at_a_replay_each_is_there_once(name, tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        store.take([said(i, heat=200) for i in range(50)], NOW)
    assert life(tmp_path, "replay", f"{name}:1:kill") == -9
    with Store.open(tmp_path, "press", vault(), mended(heat=HOT)) as store:
        assert len(ids(store)) == (50 if name.endswith("after") else 0)
        store.replay(NOW)
        assert ids(store) == [str(i) for i in range(50)]
        assert store.aside() == []


def test_two_processes_write_in_turns(tmp_path) -> None:
    one = Store.open(tmp_path, "press", vault(), mended(heat=HOT))
    two = Store.open(tmp_path, "press", vault(), mended(heat=HOT))  # as a command does
    with one, two:
        for i in range(0, 40, 2):
            assert one.take([said(i), said(i + 1, heat=600)], NOW) == Counter(stored=1, aside=1)
            assert two.take([said(i)], NOW) == Counter(repeated=1)
            assert two.replay(NOW, lambda a: False) == Counter()
        assert [r.number for r in one.readings()] == list(range(20))


def test_a_store_that_is_wiped_under_a_client_begins_anew(tmp_path: Path) -> None:
    made = contract()

    async def run() -> list:
        with Store.open(tmp_path, "press", vault(), rules(), join=join()) as store:
            feed = Feed(store, span=Span(size=2), form=lambda: Form(made.form, made.row, 3), pause=0.0)
            running = asyncio.create_task(feed.run())
            windows, labels = feed.windows(), feed.labelled()
            await feed.put([said(i) for i in range(6)])
            found = [(await anext(windows)).rows[0, 0] for _ in range(3)]
            assert len(await anext(labels)) == 6
            key = (tmp_path / "sense" / "press.key").read_bytes()
            await asyncio.to_thread(wipe, tmp_path, "press")
            await feed.put([said(i) for i in (10, 11)])
            found += [(await anext(windows)).rows[0, 0], len(await anext(labels))]
            assert ids(store) == ["10", "11"]
            assert (tmp_path / "sense" / "press.key").read_bytes() != key
            running.cancel()
            return found

    assert asyncio.run(run()) == [20.5, 22.5, 24.5, 30.5, 2]
    with Store.open(tmp_path, "press", vault()) as store:
        assert ids(store) == ["10", "11"]


def test_a_wipe_that_was_cut_off_is_ended_by_the_client_that_runs(tmp_path: Path) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        store.take([said(1)], NOW)
        assert life(tmp_path, "wipe", "sense.wipe.before:1:kill") == -9
        assert store.take([said(1)], NOW) == Counter(stored=1)
        assert store.life == 2
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        assert ids(store) == ["1"]


def test_a_command_changes_no_rule_of_the_clients(tmp_path: Path) -> None:
    with Store.open(tmp_path, "press", vault(), rules(), join=join()) as store:
        store.take([said(1)], NOW)
        other = join(by="time")
        with pytest.raises(StateError, match="start the client"):
            Store.open(tmp_path, "press", vault(), rules(), join=other, owner=False)
        Store.open(tmp_path, "press", vault(), rules(), join=join(), owner=False).close()


def test_who_comes_back_with_a_cursor_of_a_wiped_store_begins_anew(tmp_path: Path) -> None:
    made = contract()

    async def run() -> tuple:
        with Store.open(tmp_path, "press", vault(), rules(), join=join()) as store:
            store.take([said(1), said(2)], NOW)
            feed = Feed(store, span=Span(size=2), form=lambda: Form(made.form, made.row, 3))
            return (await anext(feed.windows(5000))).cursor, (await anext(feed.labelled(5000))).cursor

    assert asyncio.run(run()) == (2, 2)


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        monkeypatch.setattr("fcntl.flock", refused)
        with pytest.raises(StateError, match="No locks available"):
            store.take([said(1)], NOW)
        monkeypatch.undo()
        assert store.take([said(1)], NOW) == Counter(stored=1)


def refused(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
