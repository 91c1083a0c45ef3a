"""Several processes, one store: one chain, and each run is taken by one."""

import multiprocessing as mp
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atoll.control.store import Store
from atoll.core.errors import StateError

WORKERS, RUNS = 4, 12


def take(url: str, folder: Path, name: str, gate: Any) -> list[str]:
    """Take queued runs until there are none, as a coordinator does."""
    taken = []
    with Store.open(url, folder) as store:
        gate.wait(60)
        while (run := store.next_queued()) is not None:
            until = store.clock() + 60
            if store.run_lease(run, name, until) and store.move(run, "running", frm=("queued",), actor=name):
                taken.append(run)
                store.journal(run).note(0, {"by": name})
    return taken


def _process(url: str, folder: Path, name: str, gate: Any, out: Any) -> None:
    out.put(take(url, folder, name, gate))


def check(store: Store, taken: list[list[str]]) -> None:
    every = [run for runs in taken for run in runs]
    assert sorted(every) == sorted(run["id"] for run in store.runs())
    for number, runs in enumerate(taken):
        assert all(store.history(run) == [{"by": f"c{number}"}] for run in runs)
        assert all(store.run(run)["holder"] == f"c{number}" for run in runs)
    assert store.verify().ok


def queue(store: Store) -> None:
    for seed in range(RUNS):
        store.submit({}, seed, "ann")


def test_threads_take_each_run_once(url: str, tmp_path: Path) -> None:
    gate = threading.Barrier(WORKERS)
    with Store.open(url, tmp_path) as store, ThreadPoolExecutor(WORKERS) as pool:
        queue(store)
        futures = [pool.submit(take, url, tmp_path, f"c{n}", gate) for n in range(WORKERS)]
        check(store, [future.result() for future in futures])


def test_processes_take_each_run_once(url: str, tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    gate, outs = context.Barrier(2), [context.SimpleQueue() for _ in range(2)]
    with Store.open(url, tmp_path) as store:
        queue(store)
        workers = [
            context.Process(target=_process, args=(url, tmp_path, f"c{n}", gate, outs[n])) for n in range(2)
        ]
        for worker in workers:
            worker.start()
        taken = [out.get() for out in outs]
        for worker in workers:
            worker.join()
        check(store, taken)


def test_two_that_open_a_new_store_at_once_make_one(url: str, tmp_path: Path) -> None:
    def submit(seed: int) -> str:
        with Store.open(url, tmp_path) as store:
            return store.submit({}, seed, "ann")

    with ThreadPoolExecutor(WORKERS) as pool:
        runs = list(pool.map(submit, range(WORKERS)))
    with Store.open(url, tmp_path) as store:
        assert sorted(runs) == [run["id"] for run in store.runs()]
        assert store.verify().ok


def test_several_threads_use_one_store(url: str, tmp_path: Path) -> None:
    with Store.open(url, tmp_path) as store:
        journal = store.journal(store.submit({}, 0, "ann"))
        journal.asked(0, {})

        def work(n: int) -> None:
            with store.batch():
                assert journal.answered(0, f"peer{n}", blob=None, reason="no")
                assert len(journal.resume().answers) >= 1
            assert not journal.answered(0, f"peer{n}")

        each: Callable[[int], None] = work
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(each, range(40)))
        assert len({a.peer for a in journal.resume().answers}) == 40
        assert store.verify().ok


def test_a_lost_database_is_told_and_found_again(tmp_path: Path, request: Any) -> None:
    url = request.getfixturevalue("postgres_database")()
    with Store.open(url, tmp_path) as store, Store.open(url, tmp_path) as other:
        run = store.submit({}, 0, "ann")
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        with other.engine.connect() as conn, conn.begin():
            conn.exec_driver_sql(kill + " AND datname = current_database()")
        with pytest.raises(StateError, match="cannot be reached"):
            store.move(run, "running", frm=("queued",))
        assert store.move(run, "running", frm=("queued",))


def test_a_commit_whose_answer_was_lost_counts_as_done(
    tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    psycopg = pytest.importorskip("psycopg")
    with Store.open(request.getfixturevalue("postgres_database")(), tmp_path) as store:
        run = store.submit({}, 0, "ann")

        def cut(after: bool) -> None:
            def commit(raw: Any) -> None:
                monkeypatch.undo()
                if after:
                    raw.commit()
                raw.dbapi_connection.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")

            monkeypatch.setattr(store.engine.dialect, "do_commit", commit)

        cut(True)
        assert store.move(run, "running", frm=("queued",))
        cut(False)
        with pytest.raises(StateError, match="cannot be reached"):
            store.move(run, "done", frm=("running",))
        assert store.run(run)["state"] == "running"
        assert store.verify().ok


def test_a_lease_holds_whatever_a_coordinators_clock_says(tmp_path: Path, request: Any) -> None:
    url = request.getfixturevalue("postgres_database")()
    late, early = (lambda: time.time() + 86400), (lambda: time.time() - 86400)
    with (
        Store.open(url, tmp_path, clock=early) as first,
        Store.open(url, tmp_path, clock=late) as second,
    ):
        run = first.submit({}, 0, "ann")
        assert first.run_lease(run, "first", first.clock() + 60)
        assert not second.run_lease(run, "second", second.clock() + 60)
        assert first.run_lease(run, "first", first.clock())
        assert second.run_lease(run, "second", second.clock() + 60)
        assert not first.run_lease(run, "first", first.clock() + 60)
