"""An update is in one sum, or in several of the same members: through restarts, cuts and many sums."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from atoll.control.engine import repeats
from atoll.control.engine.repeats import Repeats
from atoll.core.errors import PrivacyError


def test_the_same_update_with_others_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    made = Repeats(tmp_path)
    made.vouch(b"u", ["a", "b", "c"])
    made.vouch(b"u", ["a", "b", "c"])
    made.vouch(b"v", ["a", "b"])
    for who in (made, Repeats(tmp_path)):
        with pytest.raises(PrivacyError, match="another seed"):
            who.vouch(b"u", ["a", "b"])
        who.vouch(b"u", ["a", "b", "c"])
    assert stat.S_IMODE((tmp_path / "sums").stat().st_mode) == 0o600


def test_names_are_not_run_together(tmp_path: Path) -> None:
    made = Repeats(tmp_path)
    made.vouch(b"u", ["ab", "c"])
    with pytest.raises(PrivacyError):
        made.vouch(b"u", ["a", "bc"])


@pytest.mark.parametrize("cut", range(1, 33))
def test_a_record_that_was_cut_off_is_written_again(tmp_path: Path, cut: int) -> None:
    Repeats(tmp_path).vouch(b"u", ["a", "b"])
    path = tmp_path / "sums"
    path.write_bytes(path.read_bytes()[:-cut])
    made = Repeats(tmp_path)
    made.vouch(b"w", ["a", "b"])
    again = Repeats(tmp_path)
    with pytest.raises(PrivacyError):
        again.vouch(b"w", ["a"])
    assert path.stat().st_size == 32 + 32


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MANY", 10)
    made = Repeats(tmp_path)
    for k in range(11):
        made.vouch(bytes([k]), ["a", "b"])
    made.vouch(b"new", ["a"])
    again = Repeats(tmp_path)
    again.vouch(bytes([0]), ["b"])  # forgotten
    for name in (bytes([10]), b"new"):
        with pytest.raises(PrivacyError):
            again.vouch(name, ["c"])


def test_what_stands_in_the_file_says_nothing_without_its_key(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Repeats(tmp_path / folder).vouch(b"u", ["a", "b"])
    one, two = ((tmp_path / f / "sums").read_bytes()[32:] for f in ("a", "b"))
    assert len(one) == len(two) == 32 and one != two
