"""The store's contract, over each database it can stand on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.control.store import Journal, Store
from atoll.testing import check_store
from tests.store.conftest import Urls


def test_the_contract(urls: Urls, tmp_path: Path) -> None:
    check_store(lambda name: Store.open(urls(name), tmp_path / name))


def forgets(store: Store) -> None:
    """Answers are told as taken, and are not kept."""
    Journal.answered = lambda *_, **__: True  # type: ignore[method-assign]


def takes_late(store: Store) -> None:
    Journal.closed = lambda *_, **__: None  # type: ignore[method-assign]


def keeps_all(store: Store) -> None:
    store.blobs.superfluous = lambda names: None  # type: ignore[method-assign]


def throws_away(store: Store) -> None:
    collect = store.blobs.collect
    store.blobs.collect = lambda older=0: collect(0)  # type: ignore[method-assign]


def leases_twice(store: Store) -> None:
    store.run_lease = lambda *_: True  # type: ignore[method-assign]


def lets_in_twice(store: Store) -> None:
    store.token_use = lambda digest, now, by="": ("client", "bank-a")  # type: ignore[method-assign]


def tells_nobody(store: Store) -> None:
    store._tell = lambda seq: None  # type: ignore[method-assign]


def reinstates_twice(store: Store) -> None:
    reinstate = store.reinstate
    store.reinstate = lambda name, actor="": reinstate(name, actor) or True  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "fault",
    [
        forgets,
        takes_late,
        keeps_all,
        throws_away,
        leases_twice,
        lets_in_twice,
        tells_nobody,
        reinstates_twice,
    ],
)
def test_control_a_store_that_breaks_a_law_is_found_out(
    fault: Callable[[Store], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("answered", "closed"):
        monkeypatch.setattr(Journal, name, getattr(Journal, name))  # put back afterwards

    def make(name: str) -> Store:
        store = Store.open("", tmp_path / name)
        fault(store)
        return store

    with pytest.raises(AssertionError, match=r" must |needs"):
        check_store(make)


def test_who_is_revoked_needs_a_new_token(tmp_path) -> None:
    """Readmitted, a name enrols by a new token only: whoever holds the old one may not be it."""
    with Store.open("", tmp_path) as store:
        store.token_add("a" * 64, "client", "bank", 2e9)
        store.token_add("b" * 64, "client", "other", 2e9)
        assert store.token_use("a" * 64, 1.0, "key") == ("client", "bank")
        store.revoke("bank")
        store.readmit("bank")
        assert store.token_use("a" * 64, 1.0, "key") is None
        assert store.token_use("b" * 64, 1.0, "key") == ("client", "other")
        store.token_add("c" * 64, "client", "bank", 2e9)
        assert store.token_use("c" * 64, 1.0, "key") == ("client", "bank")


def test_what_runs_have_shown_of_a_member_is_kept_and_an_admin_has_the_last_word(tmp_path) -> None:
    with Store.open("", tmp_path) as store:
        store.node_seen("bank", "client", {})
        assert store.nodes()[0]["score"] is None and not store.nodes()[0]["quarantined"]
        assert store.judged("r1", {"bank": ({"rounds": 3}, 0.9, 0)}) == ()  # named, no more
        assert (store.nodes()[0]["score"], store.nodes()[0]["quarantined"]) == (0.9, False)
        assert store.judged(
            "r2", {"bank": ({"rounds": 6}, 0.95, 0), "shop": ({"rounds": 6}, 0.1, 0)}, ["bank"]
        ) == ("bank",)
        assert store.judged("r3", {"bank": ({"rounds": 9}, 0.1, 0)}) == ()
        assert store.nodes()[0]["quarantined"], "it stays so, whatever it does, until an admin says otherwise"
        end = store.head()[0]
        assert store.judged("r3", {"bank": ({"rounds": 9}, 0.1, 0)}) == ()
        assert store.head()[0] == end, "the same again is no event"
        assert store.reinstate("bank", "ann") and not store.reinstate("nobody", "ann")
        assert store.records()["bank"] == {
            **store.records()["bank"],
            "record": {},
            "score": 0.0,
            "cleared": 1,
        }
        assert store.judged("r3", {"bank": ({"rounds": 12}, 1.0, 0)}, ["bank"]) == ()
        assert store.judged("r4", {"bank": ({"rounds": 3}, 1.0, 1)}, ["bank"]) == ("bank",)
        kinds = [(e["kind"], e["node"], e["actor"]) for e in store.events() if "node." in e["kind"]]
        assert ("node.quarantined", "bank", "") in kinds and ("node.reinstated", "bank", "ann") in kinds
        assert store.verify().ok


def test_a_store_of_before_records_is_brought_to_them(tmp_path) -> None:
    from atoll.control.store.engine import connect
    from atoll.control.store.migrate import migrate

    (tmp_path / "blobs").mkdir()
    engine = connect("", tmp_path)
    migrate(engine, to="0001")
    engine.dispose()
    with Store.open("", tmp_path) as store:
        assert store.records() == {} and store.verify().ok
        assert store.judged("r1", {"bank": ({"rounds": 3}, 0.9, 0)}, ["bank"]) == ("bank",)
