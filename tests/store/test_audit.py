"""The chain of events: an altered, missing, added or forged row is named."""

# ruff: noqa: S608  statements put together are the faults looked for

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from atoll.control.store import Store
from atoll.control.store.chain import GENESIS, link
from atoll.control.store.database import Tx
from tests.store import script


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    """A store with a run in the middle, so that each table has rows."""
    with Store.open(url, tmp_path) as made:
        run = made.submit({"rounds": 2}, 7, "ann")
        made.move(run, "running", frm=("queued",), reason="", actor="me")
        journal = made.journal(run)
        journal.asked(0, {"a": 1})
        journal.closed(0, [], {})
        journal.checkpoint(b"state", 1, 0)
        journal.asked(1, {"a": 1})
        journal.answered(1, "bank-a", blob=made.blobs.put(b"update"), info={"w": 1.5})
        journal.note(0, {"round": 0, "loss": 0.5})
        made.model_add(run, "m", made.blobs.put(b"model"), b"manifest")
        script.people(made, lambda _: None)
        script.rolled(made, lambda _: None)
        made.revoke("bank-b")
        yield made


def spoil(store: Store, statement: str) -> None:
    with store.engine.connect() as conn, conn.begin():
        assert conn.execute(text(statement)).rowcount


def test_untouched_it_verifies(store: Store) -> None:
    verdict = store.verify(head=store.head(), check=lambda payload, signature: signature == payload[::-1])
    assert verdict.ok, verdict.fault
    assert verdict.events > 1


def last(store: Store) -> int:
    return store.head()[0]


@pytest.mark.parametrize(
    "change",
    ["body = '{}'", "actor = 'bob'", "kind = 'x'", "run = 'x'", "node = 'x'", "at = at + 1", "hash = kind"],
)
def test_an_altered_event_is_named(store: Store, change: str) -> None:
    seq = last(store) - 1
    spoil(store, f"UPDATE events SET {change} WHERE seq = {seq}")
    verdict = store.verify()
    assert (verdict.ok, verdict.seq) == (False, seq)
    assert f"event {seq}" in verdict.fault


def test_a_missing_event_is_named(store: Store) -> None:
    seq = last(store) - 1
    spoil(store, f"DELETE FROM events WHERE seq = {seq}")
    assert store.verify().fault.startswith(f"event {seq} is missing")


def test_a_cut_end_is_named(store: Store) -> None:
    seq, digest = store.head()
    spoil(store, f"DELETE FROM events WHERE seq = {seq}")
    assert store.verify().fault.startswith(f"event {seq} is missing")
    # The head is cut as well: only who kept the end elsewhere can tell.
    before = store.events(seq - 2)[-1]
    spoil(store, f"UPDATE head SET seq = {before['seq']}, hash = '{before['hash']}'")
    assert f"event {seq} is not the one seen before" in store.verify(head=(seq, digest)).fault


def test_a_chain_written_again_is_seen_by_its_seals(store: Store) -> None:
    seq = store.seal(lambda payload: payload[::-1])
    row = store.events(seq - 1)[0]
    row["actor"], row["body"] = "bob", "{}"
    before = store.events(seq - 2)[0]["hash"] if seq > 1 else GENESIS
    forged = link(before, row)
    spoil(store, f"UPDATE events SET actor = 'bob', body = '{{}}', hash = '{forged}' WHERE seq = {seq}")
    spoil(store, f"UPDATE head SET hash = '{forged}'")
    assert f"event {seq} is not the one that was sealed" in store.verify().fault
    spoil(store, f"UPDATE seals SET hash = '{forged}' WHERE seq = {seq}")
    assert f"event {seq} (node.revoked) tells nothing that was written" in store.verify().fault
    fault = store.verify(check=lambda payload, signature: signature == payload[::-1]).fault
    assert f"the seal of event {seq} is not signed" in fault


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ("UPDATE runs SET state = 'done'", "run r0001"),
        ("UPDATE runs SET job = '{}'", "run r0001"),
        ("UPDATE runs SET seed = '8'", "run r0001"),
        ("UPDATE answers SET info = '{}'", "answer r0001"),
        ("UPDATE answers SET peer = 'bank-b'", "answer r0001"),
        ("DELETE FROM answers", "answer r0001"),
        ("UPDATE notes SET record = '{}'", "note r0001"),
        ("UPDATE scopes SET requests = 0", "scope r0001"),
        ("UPDATE models SET manifest = ''", "model m/1"),
        ("UPDATE models SET blob = run", "model m/1"),
        ("UPDATE tokens SET role = 'admin' WHERE name = 'ann'", "token eeee"),
        ("UPDATE tokens SET revoked = NOT revoked WHERE name = 'ann'", "token eeee"),
        ("UPDATE runs SET reason = 'ill'", "run r0001"),
        ("UPDATE runs SET name = 'x'", "run r0001"),
        ("UPDATE runs SET started = started + 1", "run r0001"),
        ("UPDATE runs SET ended = 1", "run r0001"),
        ("UPDATE asks SET detail = '{}'", "ask r0001"),
        ("UPDATE asks SET closed = 1", "ask r0001"),
        ("UPDATE models SET metrics = '{\"loss\": 0}'", "model m/1"),
        ("UPDATE models SET created = created + 1", "model m/1"),
        ("UPDATE tokens SET used = NULL WHERE name = 'b'", "token dddd"),
        ("UPDATE tokens SET used_by = 'mine' WHERE name = 'b'", "token dddd"),
        ("UPDATE tokens SET used = 1 WHERE name = 'ann'", "token eeee"),
        ("UPDATE certificates SET revoked = NOT revoked", "certificate 7"),
        ("UPDATE certificates SET until = until + 1", "certificate 7"),
        ("UPDATE certificates SET name = 'b'", "certificate 7"),
        ("DELETE FROM certificates", "certificate 7"),
        ("UPDATE nodes SET drained = NOT drained", "node a"),
        ("UPDATE nodes SET role = 'edge'", "node a"),
        ("UPDATE nodes SET parent = 'edge-b'", "node a"),
        ("UPDATE nodes SET info = '{\"data\": 1}'", "node a"),
        ("UPDATE nodes SET first_seen = first_seen + 1", "node a"),
        ("DELETE FROM nodes", "node a"),
        ("UPDATE receipts SET text = 'forged'", "receipt a/rows"),
        ("UPDATE receipts SET entries = 0", "receipt a/rows"),
        ("DELETE FROM receipts", "receipt a/rows"),
        ("DELETE FROM bans WHERE name = 'bank-b'", "ban bank-b"),
        ("UPDATE records SET quarantined = NOT quarantined WHERE name = 'b'", "record b"),
        ("UPDATE records SET record = '{}' WHERE name = 'b'", "record b"),
        ("UPDATE records SET quarantined = NOT quarantined WHERE name = 'a'", "record a"),
        ("DELETE FROM records WHERE name = 'a'", "record a"),
        ("UPDATE orders SET plan = '{}' WHERE number = 1", "order m/1"),
        ("UPDATE orders SET manifest = '' WHERE number = 3", "order m/3"),
        ("UPDATE orders SET state = 'open' WHERE number = 3", "order m/3"),
        ("UPDATE orders SET wave = 0 WHERE number = 1", "order m/1"),
        ("DELETE FROM orders WHERE number = 4", "order m/4"),
        ("UPDATE stages SET version = 2", "stage a/m"),
    ],
)
def test_a_row_that_its_events_do_not_tell_of_is_named(store: Store, change: str, row: str) -> None:
    spoil(store, change)
    verdict = store.verify()
    assert not verdict.ok
    assert f"the row of {row}" in verdict.fault


def test_an_added_row_is_named(url: str, tmp_path: Path) -> None:
    with Store.open(url, tmp_path) as store:
        store.submit({}, 0, "ann")
        spoil(store, "INSERT INTO bans (name, at, actor) VALUES ('bank-c', 0, '')")
        assert "the row of ban bank-c was altered" in store.verify().fault


def test_news_are_more_than_steps_of_a_run(store: Store) -> None:
    end, more = store.news(0)
    assert (end, more) == (store.head()[0], True)
    journal = store.journal(store.runs()[0]["id"])
    journal.answered(1, "bank-c", reason="it is ill")
    journal.closed(1, ["bank-a"], {"bank-c": "it is ill"})
    assert store.news(end) == (end + 2, False)
    store.submit({"rounds": 1}, 7, "ann")
    assert store.news(end) == (store.head()[0], True)


def test_what_earlier_versions_did_not_tell_is_no_fault(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Tx.event

    def earlier(tx: Tx, kind: str, body: Mapping[str, Any], **more: str) -> int:
        new = {"by", "metrics", "before", *(("text",) if kind == "budget.receipt" else ())}
        new |= {"info"} if kind == "node.seen" else set()
        body = {key: value for key, value in body.items() if key not in new}
        return 0 if kind == "pruned" else tell(tx, kind, body, **more)

    now = [1e9]
    with Store.open(url, tmp_path, clock=lambda: now[0]) as store:
        monkeypatch.setattr(Tx, "event", earlier)
        run = store.submit({}, 7, "ann")
        store.model_add(run, "m", store.blobs.put(b"model"), b"manifest", {"loss": 0.5})
        script.people(store, lambda _: None)
        store.certificate_add(8, "c", "client", 1e9 + 5)
        now[0] += 10
        store.prune(0, 1)  # it told nothing of certificates
        monkeypatch.undo()
        store.submit({}, 7, "ann")
        verdict = store.verify()
        assert verdict.ok, verdict.fault
        spoil(store, "UPDATE tokens SET used = NULL WHERE name = 'b'")
        assert "token dddd" in store.verify().fault


def test_what_was_pruned_or_trimmed_is_no_fault(url: str, tmp_path: Path) -> None:
    now = [1e9]
    with Store.open(url, tmp_path, clock=lambda: now[0]) as store:
        store.node_seen("a", "client", {"version": "1"})
        store.drain("a", True)
        store.certificate_add(7, "a", "client", 2e9)
        store.certificate_add(8, "c", "client", 1e9 + 5)
        now[0] += 10
        store.prune(0, 1)
        assert [c["serial"] for c in store.certificates()] == [7]
        assert store.verify().ok
        store.prune(0, 1, keep_events_days=0)
        store.node_seen("a", "client", {"version": "2"})
        store.revoke("a")
        verdict = store.verify()
        assert verdict.ok, verdict.fault
        spoil(store, "UPDATE nodes SET version = '3'")
        assert "node a" in store.verify().fault
