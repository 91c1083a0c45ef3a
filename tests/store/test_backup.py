"""Backup, wipe, restore: the run goes on, in either database; a damaged backup restores nothing."""

import shutil
import tarfile
import threading
from pathlib import Path

import pytest

from atoll.control.store import Store
from atoll.core.errors import StateError
from tests.store import script
from tests.store.conftest import Urls


def half(store: Store) -> tuple[str, str]:
    """A run in the middle of its second round; its id and a blob it holds."""
    run = store.submit({"rounds": 3}, 1, "ann")
    store.move(run, "running", frm=("queued",))
    assert store.run_lease(run, "me", store.clock() + 1e6)
    store.node_seen("a", "client", {})
    journal = store.journal(run)
    journal.asked(0, {"round": 0})
    journal.closed(0, [], {})
    journal.note(0, {"round": 0})
    journal.checkpoint(b"state", 1, 1)
    journal.asked(1, {"round": 1})
    upload = store.spool / "upload"
    upload.write_bytes(b"update")
    upload.with_name("upload.head").write_bytes(b"head")
    store.blobs.adopt(upload, "ab" * 32)
    assert journal.answered(1, "a", blob="ab" * 32, info={"w": 0.1})
    store.log_add(run, "a", "info", "hello")
    pki = store.folder / "pki" / "members"
    pki.mkdir(parents=True)
    (pki / "root.pem").write_bytes(b"root")
    return run, "ab" * 32


def seen(store: Store, run: str) -> object:
    kept = store.journal(run).resume()
    record = {k: v for k, v in store.run(run).items() if k not in {"holder", "lease"}}
    return record, kept, store.history(run), store.events(), store.tokens(), store.head()


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
def test_backup_wipe_restore(into: str, urls: Urls, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with Store.open(urls("first"), tmp_path / "store") as store:
        run, blob = half(store)
        before = seen(store, run)
        manifest = store.backup(tmp_path / "backup.tar")
        assert manifest["head"] == list(store.head())
    assert (tmp_path / "backup.tar").stat().st_mode & 0o077 == 0
    shutil.rmtree(tmp_path / "store")
    url = "" if into == "sqlite" else request.getfixturevalue("postgres_database")()
    with Store.restore(tmp_path / "backup.tar", url, tmp_path / "again") as store:
        assert seen(store, run) == before
        assert store.blobs.read(blob) == b"update"
        assert store.blobs.head(blob).read_bytes() == b"head"
        assert (tmp_path / "again" / "pki" / "members" / "root.pem").read_bytes() == b"root"
        assert [node["online"] for node in store.nodes()] == [False]
        assert store.logs(run)[0]["text"] == "hello"
        # and it goes on
        assert store.run_lease(run, "another", store.clock() + 60)
        store.log_add(run, "a", "info", "again")
        journal = store.journal(run)
        assert not journal.answered(1, "a", blob=blob)
        journal.closed(1, ["a"], {})
        journal.checkpoint(b"next", 2, 1)
        assert store.move(run, "done", frm=("running",))
        assert store.verify().ok


def test_where_a_store_is_nothing_is_restored(urls: Urls, tmp_path: Path) -> None:
    with Store.open(urls("first"), tmp_path / "store") as store:
        half(store)
        store.backup(tmp_path / "backup.tar")
    with Store.open(urls("second"), tmp_path / "other") as store:
        store.submit({}, 0, "bob")
        before = store.head()
    with pytest.raises(StateError, match="holds a store already"):
        Store.restore(tmp_path / "backup.tar", urls("second"), tmp_path / "other")
    with Store.open(urls("second"), tmp_path / "other") as store:
        assert store.head() == before


def test_a_damaged_backup_restores_nothing(tmp_path: Path) -> None:
    with Store.open("", tmp_path / "store") as store:
        half(store)
        store.backup(tmp_path / "backup.tar")
    whole = (tmp_path / "backup.tar").read_bytes()
    bad = tmp_path / "bad.tar"
    places = [whole.index(what) + 2 for what in (b'"rounds\\":3', b"update", b"root.pem", b'"schema"')]
    end = whole.rindex(b"}")  # zeros follow
    cut = [whole[:n] for n in range(0, end, end // 13)]
    for data in [*cut, *(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places)]:
        bad.write_bytes(data)
        with pytest.raises(StateError, match=r"bad\.tar"):
            Store.restore(bad, "", tmp_path / "again")
        assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "beside/../../x", "beside/pki/../x", "blobs/x", "beside/x"]
)
def test_a_backup_names_nothing_outside(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(StateError, match="does not belong in a backup"):
        Store.restore(tmp_path / "bad.tar", "", tmp_path / "again")


def test_a_backup_is_of_one_moment_while_others_write(url: str, tmp_path: Path) -> None:
    with Store.open(url, tmp_path / "store") as store:
        journal = store.journal(store.submit({}, 0, "ann"))
        halt = threading.Event()

        def work() -> None:
            request = 0
            while not halt.is_set():
                journal.asked(request, {})
                journal.answered(request, "a", blob=store.blobs.put(request.to_bytes(4, "little")))
                journal.closed(request, ["a"], {})
                journal.checkpoint(b"state", request + 1, 0)
                store.blobs.collect(older=3600)
                request += 1

        future = store.thread.submit(work)
        try:
            for n in range(3):
                store.backup(tmp_path / f"{n}.tar")
        finally:
            halt.set()
        future.result()
    for n in range(3):
        with Store.restore(tmp_path / f"{n}.tar", "", tmp_path / str(n)) as copy:
            assert copy.verify().ok
            assert all(copy.blobs.exists(name) for name in copy.blobs.named())


def test_what_a_backup_names_stays_until_it_is_copied(url: str, tmp_path: Path) -> None:
    with Store.open(url, tmp_path / "store") as store:
        journal = store.journal(store.submit({}, 0, "ann"))
        journal.checkpoint(b"first", 1, 0)
        (first,) = store.blobs.named()
        with store.blobs.lasting():
            with store.blobs.lasting():
                journal.checkpoint(b"second", 2, 0)
            assert store.blobs.collect(older=0) == 0
            assert store.blobs.exists(first)
        assert not store.blobs.exists(first)
        assert len(list(store.blobs.names())) == 1


def test_a_lost_blob_is_told_not_left_out(tmp_path: Path) -> None:
    with Store.open("", tmp_path / "store") as store:
        _, blob = half(store)
        store.blobs.path(blob).unlink()
        with pytest.raises(StateError, match="a blob that a row names is missing"):
            store.backup(tmp_path / "backup.tar")
        assert not (tmp_path / "backup.tar").exists()


def test_a_restored_life_goes_on_to_the_same_end(tmp_path: Path) -> None:
    with Store.open("", tmp_path / "calm") as store:
        script.live(store, 1, lambda _: None)
        calm = script.sight(store)
    with Store.open("", tmp_path / "store") as store:
        journal = store.journal(store.submit({"rounds": script.ROUNDS}, 1, "ann"))
        journal.asked(0, {"round": 0})
        journal.answered(0, "a", blob=store.blobs.put(script.update(0, "a")), info={"r": 0})
        store.backup(tmp_path / "backup.tar")
    with Store.restore(tmp_path / "backup.tar", "", tmp_path / "again") as store:
        script.live(store, 1, lambda _: None)
        assert script.sight(store) == calm
