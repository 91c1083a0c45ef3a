"""The store: each reading once, whatever is killed; nothing in plain on the disk; bounded; gone at a word."""

import os
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

from atoll.core.errors import MisuseError, StateError
from atoll.privacy.hazmat.suite import Suite, usable
from atoll.sense.place import wipe
from atoll.sense.reading import Reading, parse
from atoll.sense.store import Store
from atoll.wire import failpoint
from tests.sense.life import BATCHES, SIZE
from tests.sense.plant import NOW, rules, said, vault

PLACES = sorted(name for name in failpoint.NAMES if name.startswith("sense."))


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path, "press", vault(), rules(late=60.0, ahead=300.0, behind=86400.0)) as made:
        yield made


def test_a_device_whose_clock_is_ahead_is_known_when_it_says_the_same_again(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules(late=5.0)) as store:
        store.take([said(i) for i in range(1000, 1010)], NOW)
        assert store.take([said(i) for i in range(1000, 1010)], NOW + 100) == Counter(late=4, repeated=6)


def test_readings_come_back_as_they_were_and_in_their_order(store, tmp_path) -> None:
    assert store.take([said(i) for i in range(10)], NOW) == Counter(stored=10)
    assert store.take([said(i) for i in range(10, 15)], NOW) == Counter(stored=5)
    found = list(store.readings())
    assert [(r.number, r.source, r.at, r.id) for r in found] == [
        (i, "press-7", NOW + i, str(i)) for i in range(15)
    ]
    assert found[3].cells == [23.5, 3 / 8, 1.0, 0.0]
    assert [r.number for r in store.readings(12)] == [12, 13, 14]
    with Store.open(tmp_path, "press", vault()) as beside:  # as the process that learns does
        assert list(beside.readings()) == found
        with pytest.raises(MisuseError, match="opened to read"):
            beside.take([said(1)], NOW)


def test_a_reading_that_comes_again_is_stored_once(store) -> None:
    nameless = Reading("press-8", NOW, "", {"heat": 1, "state": "run"})
    other = Reading("press-8", NOW, "", {"heat": 2, "state": "run"})
    assert store.take([said(1), said(1), nameless, nameless, other], NOW) == Counter(stored=3, repeated=2)
    assert store.take([said(1, heat=5), nameless], NOW) == Counter(repeated=2)  # its id says so
    assert store.take([said(1, "press-9")], NOW) == Counter(stored=1)  # the same id of another device
    assert store.take([said(2, heat=999), said(2, heat=999)], NOW) == Counter(aside=1, repeated=1)


def test_late_readings_are_taken_within_the_lateness_of_their_device(store) -> None:
    assert store.take([said(100), said(40)], NOW) == Counter(stored=2)
    assert store.take([said(39)], NOW) == Counter(late=1)
    assert store.take([said(39, "press-8")], NOW) == Counter(stored=1)
    assert store.counts() | {"bytes": 0} == {
        "stored": 3, "repeated": 0, "late": 1, "aside": 0, "expired": 0, "dropped": 0, "bytes": 0,
    }  # fmt: skip


def test_bad_readings_are_kept_aside_with_the_reason(store) -> None:
    bad = [
        said(1, heat=float("nan")),
        said(2, heat=151),
        said(3, hest=1),
        Reading("press-7", NOW, "4", {"heat": 80, "state": "run"}, {"heat": "K"}),
        said(100_000),
        Reading("press-7", 0.0, "6", {"heat": 80, "state": "run"}),
        Reading("press-8", NOW, "7", fault="a picture that cannot be read"),
    ]
    assert store.take([*bad, said(7)], NOW) == Counter(aside=7, stored=1)
    assert [(a.source, a.reason) for a in store.aside()] == [
        ("press-7", "column 'heat' is not finite"),
        ("press-7", "column 'heat' lies outside -40 to 150"),
        ("press-7", "an unknown column: did you mean 'heat'?"),
        ("press-7", "column 'heat' came in another unit than degC"),
        ("press-7", "its clock is ahead by more than 300 s"),
        ("press-7", "its clock is behind by more than 86400 s"),
        ("press-8", "a picture that cannot be read"),
    ]


def test_one_bad_reading_stops_nobody_elses(store) -> None:
    large = b"1" + b"0" * 30
    texts = (
        b'{"at": 1800000000, "id": 1, "heat": %s, "state": "run"}' % large,
        b'{"at": 1800000000, "id": 2, "heat": 20, "state": "run", "fails": %s}' % large,
        b'{"at": 1800000000, "id": 3, "heat": {"a": [[[1]]]}, "state": [1]}',
        b'{"at": 1800000000, "id": 4, "heat": 20, "state": "\\ud800"}',
    )
    odd = [
        *(reading for text in texts for reading in parse(text, NOW, "press-7")),
        Reading("press-7", NOW, "6", {"heat": 10**5000, "state": "run"}),
        Reading("press-7", NOW, "7", {"heat": 20, "state": "run", "fails": 10**5000}),
        Reading("press-7", NOW, "8", {"heat": object(), "state": b"\xff"}),
    ]
    assert store.take([*odd, said(9)], NOW) == Counter(aside=len(odd), stored=1)


def test_a_stuck_sensor_is_seen_once_its_value_has_lasted(store) -> None:
    same = [said(i, heat=50) for i in range(0, 1300, 100)]
    assert store.take(same, NOW + 2000) == Counter(stored=7, aside=6)  # 600 seconds are allowed
    assert "'heat' has had one value for more than 600 s" in store.aside()[0].reason
    assert store.take([said(1300, heat=50.5), said(1400, heat=50.5)], NOW + 2000) == Counter(stored=2)
    assert store.take([said(1400, "press-8", heat=50.5)], NOW + 2000) == Counter(stored=1)


def life(folder: Path, what: str = "take", failpoints: str = "") -> int:
    env = os.environ | {failpoint.VARIABLE: failpoints}
    command = [sys.executable, "-m", "tests.sense.life", str(folder), what]
    return subprocess.run(command, env=env, check=False, timeout=60).returncode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs POSIX")
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in PLACES if ".stored." in name])
def test_killed_at_a_commit_each_acknowledged_reading_is_there_once(name, count, tmp_path) -> None:
    assert life(tmp_path, "take", f"{name}:{count}:kill") == -9
    told = tmp_path / "told.txt"
    acknowledged = len(told.read_text().splitlines()) if told.exists() else 0
    assert acknowledged == count - 1
    with Store.open(tmp_path, "press", vault()) as store:
        ids = [int(r.id) for r in store.readings()]
        assert ids == list(range(SIZE * (count if name.endswith("after") else count - 1)))
    assert life(tmp_path) == 0
    with Store.open(tmp_path, "press", vault()) as store:
        assert [int(r.id) for r in store.readings()] == list(range(BATCHES * SIZE))
        assert store.counts()["aside"] == 0  # said(batch) is a repeat by then
        assert store.place("file") == BATCHES - 1
        assert store.place("another file") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs POSIX")
@pytest.mark.parametrize("name", [name for name in PLACES if ".wipe." in name])
def test_killed_at_a_wipe_the_store_is_gone_at_the_next_start(name, tmp_path) -> None:
    assert life(tmp_path) == 0
    key = (tmp_path / "sense" / "press.key").read_bytes()
    assert life(tmp_path, "wipe", f"{name}:1:kill") == -9
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        assert store.counts()["stored"] == 0
        assert store.take([said(1)], NOW) == Counter(stored=1)
    assert (tmp_path / "sense" / "press.key").read_bytes() != key


def test_a_wiped_store_leaves_nothing(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        store.take([said(1)], NOW)
    wipe(tmp_path, "press")
    assert list((tmp_path / "sense").iterdir()) == []
    with pytest.raises(StateError, match="no readings of 'press' here yet"):
        Store.open(tmp_path, "press", vault())


def test_a_lost_or_foreign_key_is_told_and_nothing_is_made_anew(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        store.take([said(1)], NOW)
    key = tmp_path / "sense" / "press.key"
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(StateError, match="restore it, or wipe"):
        Store.open(tmp_path, "press", vault(), rules())
    key.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(StateError, match="changed"):
        Store.open(tmp_path, "press", vault(), rules())
    key.write_bytes(kept)
    with Store.open(tmp_path, "press", vault(), rules()) as store:
        assert len(list(store.readings())) == 1


def test_a_full_disk_refuses_and_heals(store) -> None:
    assert store.take([said(i) for i in range(5)], NOW) == Counter(stored=5)
    failpoint.arm("sense.stored.before:1:full")
    try:
        with pytest.raises(StateError, match="No space left"):
            store.take([said(5)], NOW)
    finally:
        failpoint.arm("")
    (pages,) = store._file.sql.execute("PRAGMA page_count").fetchone()
    store._file.sql.execute(f"PRAGMA max_page_count={pages}")
    big = [said(i, state="run", load=i * 0.37) for i in range(5, 4000)]
    for _ in range(2):
        with pytest.raises(StateError, match=r"database or disk is full"):
            store.take(big, NOW + 4000)
        assert store.counts()["stored"] == 5
    store._file.sql.execute("PRAGMA max_page_count=1000000")
    assert store.take(big, NOW + 4000) == Counter(stored=3995)
    assert [int(r.id) for r in store.readings()] == list(range(4000))


def test_quota_and_retention_let_the_oldest_go_and_count_them(tmp_path) -> None:
    with Store.open(tmp_path, "press", vault(), rules(late=5.0), quota=200_000, days=1) as store:
        for batch in range(40):
            readings = [said(i, load=(i * 0.6180339887) % 1) for i in range(batch * 300, (batch + 1) * 300)]
            assert store.take(readings, NOW + batch) == Counter(stored=300)
            assert store.counts()["bytes"] <= 250_000
        counts = store.counts()
        kept = [int(r.id) for r in store.readings()]
        assert counts["dropped"] > 1000
        assert kept == list(range(counts["dropped"], 12_000))
        before = len(kept)
        assert store.take([said(12_000)], NOW + 86_500) == Counter(stored=1)
        assert [r.number for r in store.readings()] == [12_000]  # numbers go on
        assert store.counts()["expired"] == before


def test_ids_within_the_lateness_alone_are_kept(store) -> None:
    for second in range(0, 3000, 100):
        store.take([said(second + i) for i in range(100)], NOW + second)
    (n,) = store._file.sql.execute("SELECT count(*) FROM ids").fetchone()
    assert n <= 300


def plain(folder: Path, needles: list[bytes]) -> set[bytes]:
    """The needles that lie in some file, in the open or in what zstandard packed."""
    found = set()
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        texts = [data]
        at = data.find(zstandard.FRAME_HEADER)
        while at >= 0:
            with suppress(zstandard.ZstdError):
                texts.append(zstandard.ZstdDecompressor().decompressobj().decompress(data[at:]))
            at = data.find(zstandard.FRAME_HEADER, at + 1)
        found |= {needle for needle in needles if any(needle in text for text in texts)}
    return found


@pytest.mark.parametrize("crypto", usable())
def test_the_disk_shows_no_reading_no_name_and_no_key(crypto, tmp_path, monkeypatch) -> None:
    value, bad = 61.8033988749, 777.12345
    readings = [said(i, "secret-press", heat=value) for i in range(3)] + [said(9, "secret-press", heat=bad)]

    def image(folder: Path) -> set[bytes]:
        with Store.open(folder, "press", vault(crypto), rules()) as store:
            place = {"secret-file": {"at": "secret-place"}}
            assert store.take(readings, NOW, place) == Counter(stored=3, aside=1)
            needles = [
                *(struct.pack(form, v) for form in ("<d", ">d", "<f", ">f") for v in (value, bad)),
                *(str(v).encode() for v in (value, bad)),
                *(
                    b"secret-press",
                    b"heat",
                    b"secret-file",
                    b"secret-place",
                    store._file.seal.key,
                    store._file.seal.names,
                ),
                vault().key,
            ]
            needles += [needle.hex().encode() for needle in needles[-3:]]
            return plain(folder, needles)

    assert image(tmp_path / "sealed") == set()
    monkeypatch.setattr(Suite, "encrypted", lambda self, key, nonce, text, bound=b"": bytes(text) + bytes(16))
    monkeypatch.setattr(Suite, "decrypted", lambda self, key, nonce, text, bound=b"": bytes(text)[:-16])
    found = image(tmp_path / "control")  # without the cipher it would all be found
    texts = {b"secret-press", b"heat", b"secret-place"}
    assert texts | {struct.pack(">d", value), struct.pack(">d", bad)} <= found
    assert any(len(needle) == 32 for needle in found)  # the store's key, in its file


def test_a_changed_box_is_told(store, tmp_path) -> None:
    store.take([said(1)], NOW)
    store.take([said(2)], NOW)
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE boxes SET box = (SELECT box FROM boxes WHERE first = 1) WHERE first = 0")
    with pytest.raises(StateError, match="was changed"):
        list(store.readings())
