"""The store's contract, over each database it can stand on."""

from pathlib import Path

import pytest

from atoll.control.store import Answered, Closed, Store
from atoll.core.errors import StateError


def test_a_journal_gives_back_what_was_acknowledged(url: str, tmp_path: Path) -> None:
    with Store.open(url, tmp_path) as store:
        run = store.submit({"rounds": 2}, 7, "ann")
        journal = store.journal(run)
        journal.asked(0, {"to": ["b", "a"]})
        blob = store.blobs.put(b"update")
        assert journal.answered(0, "b", blob=blob, info={"weight": 0.1})
        assert not journal.answered(0, "b", reason="twice")
        journal.closed(0, ["b"], {"a": "late"})
        with pytest.raises(StateError, match="is closed"):
            journal.answered(0, "a", blob=blob)
        assert journal.note(0, {"round": 1})
    with Store.open(url, tmp_path) as store:
        found = store.journal(run).resume()
        assert found.asked == {0: {"to": ["b", "a"]}}
        assert found.answers == [Answered(0, "b", blob, "", {"weight": 0.1})]
        assert found.closed == {0: Closed(("b",), {"a": "late"})}
        assert store.history(run) == [{"round": 1}]
        assert store.verify().ok
