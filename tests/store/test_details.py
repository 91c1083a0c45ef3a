"""What the contract does not say aloud: retention, temps, text, URLs, names."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.control.store import Store
from atoll.core.errors import ConfigError, MisuseError, StateError

DAY = 86400.0


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def ended(store: Store, blob: str) -> str:
    run = store.submit({}, 0, "ann")
    store.move(run, "running", frm=("queued",))
    journal = store.journal(run)
    journal.asked(0, {})
    journal.answered(0, "a", blob=blob)
    journal.note(0, {})
    store.log_add(run, "a", "info", "hello")
    store.move(run, "done", frm=("running",))
    return run


def test_old_runs_go_with_their_blobs_and_models_stay(url: str, tmp_path: Path) -> None:
    clock = Clock()
    with Store.open(url, tmp_path, clock=clock) as store:
        blobs = [store.blobs.put(bytes([n])) for n in range(4)]
        old = [ended(store, blob) for blob in blobs[:2]]
        store.model_add(old[0], "m", blobs[3], b"manifest")
        store.token_add("a" * 64, "client", "a", clock.now + DAY)
        clock.now += 10 * DAY
        young = ended(store, blobs[2])
        going = store.submit({}, 0, "ann")
        with pytest.raises(MisuseError, match="at least 0"):
            store.prune(-1, 0)
        assert store.prune(20, 0, older=0) == {"runs": 0, "events": 0, "blobs": 0}
        assert store.prune(5, 2, older=0) == {"runs": 1, "events": 0, "blobs": 1}
        assert store.prune(5, 0, older=0) == {"runs": 1, "events": 0, "blobs": 1}
        assert [run["id"] for run in store.runs()] == [young, going]
        assert sorted(store.blobs.names()) == sorted(blobs[2:])
        assert not store.history(old[0])
        assert not store.logs(old[0])
        assert store.logs(young)
        assert not store.tokens()
        assert store.model("m")["blob"] == blobs[3]
        assert store.verify().ok
        head = store.head()
        assert store.prune(5, 0, keep_events_days=5)["events"] > 5
        assert store.events()[0]["at"] >= clock.now - 5 * DAY
        assert store.verify(head=head).ok
        assert store.submit({}, 0, "ann") > going


def test_temps_of_dead_writers_are_swept(tmp_path: Path) -> None:
    with Store.open("", tmp_path) as store:
        temps = store.blobs.folder / "tmp"
        store.blobs.put(b"x")
        ours, _, _ = store.blobs._new().name.split(".")
        dead, elsewhere, alive = (temps / n for n in (f"{ours}.999999999.a", "host.1.a", f"{ours}.1.a"))
        for path in (dead, elsewhere, alive):
            path.write_bytes(b"half")
    with Store.open("", tmp_path):
        assert sorted(temps.iterdir()) == sorted([elsewhere, alive])
        os.utime(elsewhere, (1, 1))
    with Store.open("", tmp_path):
        assert sorted(temps.iterdir()) == [alive]


def test_a_blob_cannot_go_between_its_upload_and_its_answer(tmp_path: Path) -> None:
    with Store.open("", tmp_path) as store:
        name = store.blobs.put(b"x")
        os.utime(store.blobs.path(name), (1, 1))
        assert store.blobs.put(b"x") == name  # it counts as young again
        assert store.blobs.collect() == 0
        os.utime(store.blobs.path(name), (1, 1))
        assert store.blobs.collect() == 1
        journal = store.journal(store.submit({}, 0, "ann"))
        journal.asked(0, {})
        with pytest.raises(StateError, match="is missing"):
            journal.answered(0, "a", blob=name)


def test_an_upload_is_adopted_once(tmp_path: Path) -> None:
    with Store.open("", tmp_path) as store:
        name = "ab" * 32
        for content in (b"first", b"second"):
            (store.spool / "up").write_bytes(content)
            (store.spool / "up.head").write_bytes(content)
            assert store.blobs.adopt(store.spool / "up", name).read_bytes() == b"first"
            assert store.blobs.head(name).read_bytes() == b"first"
            assert not list(store.spool.iterdir())
        with pytest.raises(StateError, match="up is missing"):
            store.blobs.adopt(store.spool / "up", "cd" * 32)


@pytest.mark.parametrize(
    "url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense", "mongodb://secret@host/x"]
)
def test_other_databases_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sqlite:///FILE") as caught:
        Store.open(url, tmp_path)
    assert "secret" not in str(caught.value)


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "atoll.db").write_bytes(b"not a database, but long enough to look like one" * 99)
    with pytest.raises(StateError, match=r"damaged .* restore a backup"):
        Store.open("", tmp_path)


def test_an_unreachable_server_is_told_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StateError, match="cannot be reached") as caught:
        Store.open("postgresql://ann:s3cret@127.0.0.1:1/x", tmp_path)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.submit({"x": object()}, 0, "ann"),
        lambda store: store.submit({"x": b"bytes"}, 0, "ann"),
        lambda store: store.move("r", "heaven", frm=("running",)),
        lambda store: store.token_add("a" * 64, "king", "a", 1.0),
    ],
)
def test_misuse_is_told(call: Callable[[Store], object], tmp_path: Path) -> None:
    with Store.open("", tmp_path) as store:
        with pytest.raises(MisuseError):
            call(store)
        assert store.head()[0] == 0


def test_the_oldest_logs_of_a_run_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.control.store.logs.MOST", 100)
    with Store.open("", tmp_path) as store, store.batch():
        store.log_add("other", "a", "info", "kept")
        for n in range(600):
            store.log_add("r", "a", "info", f"line {n}")
        assert 100 <= len(store.logs("r", limit=10**6)) < 400
        assert store.logs("r", limit=10**6)[-1]["text"] == "line 599"
        assert len(store.logs("other")) == 1


def test_a_client_loads_no_database() -> None:
    code = (
        "import sys, atoll, atoll.wire.files, atoll.wire.failpoint;"
        " print({'sqlalchemy', 'alembic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_a_store_that_is_up_to_date_loads_no_migrations(tmp_path: Path) -> None:
    Store.open("", tmp_path).close()
    code = (
        "import sys, pathlib; from atoll.control.store import Store;"
        f" Store.open('', pathlib.Path({str(tmp_path)!r})).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
