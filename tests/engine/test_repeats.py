"""An update is in one sum, or in several of the same members: through restarts, cuts and many sums."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from atoll.control.engine import repeats
from atoll.control.engine.repeats import Repeats
from atoll.core.errors import PrivacyError, StateError
from atoll.privacy.vault import MAGIC, Vault

VAULT = Vault(b"k" * 32)


def test_the_same_update_with_others_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    made = Repeats(tmp_path, VAULT)
    made.vouch(b"u", ["a", "b", "c"])
    made.vouch(b"u", ["a", "b", "c"])
    made.vouch(b"v", ["a", "b"])
    for who in (made, Repeats(tmp_path, VAULT)):
        with pytest.raises(PrivacyError, match="another seed"):
            who.vouch(b"u", ["a", "b"])
        who.vouch(b"u", ["a", "b", "c"])
    assert stat.S_IMODE((tmp_path / "runs" / "sums").stat().st_mode) == 0o600


def test_names_are_not_run_together(tmp_path: Path) -> None:
    made = Repeats(tmp_path, VAULT)
    made.vouch(b"u", ["ab", "c"])
    with pytest.raises(PrivacyError):
        made.vouch(b"u", ["a", "bc"])


def earlier(path: Path, *sums: tuple[bytes, bytes]) -> bytes:
    """A list of an earlier version, in plain: its key."""
    made = Repeats(path / "made", VAULT)
    for update, member in sums:
        made.vouch(update, [member.decode()])
    data = VAULT.read(path / "made" / "runs" / "sums")
    (path / "sums").write_bytes(data)
    return data


@pytest.mark.parametrize("cut", [0, 1, 31, 32])
def test_a_list_of_an_earlier_version_is_read_once_and_sealed(tmp_path: Path, cut: int) -> None:
    data = earlier(tmp_path, (b"u", b"a"), (b"v", b"a"))
    (tmp_path / "sums").write_bytes(data[: len(data) - cut])
    again = Repeats(tmp_path, VAULT)
    assert not (tmp_path / "sums").exists()
    with pytest.raises(PrivacyError):
        again.vouch(b"u", ["b"])
    if not cut:
        with pytest.raises(PrivacyError):
            Repeats(tmp_path, VAULT).vouch(b"v", ["b"])
    again.vouch(b"w", ["a"])
    assert len(VAULT.read(tmp_path / "runs" / "sums")) == 32 + 32 * (2 if cut else 3)


def test_one_that_was_killed_before_the_plain_list_went_goes_on(tmp_path: Path) -> None:
    earlier(tmp_path, (b"u", b"a"))
    Repeats(tmp_path, VAULT).vouch(b"v", ["a"])
    earlier(tmp_path, (b"u", b"a"))
    with pytest.raises(PrivacyError):
        Repeats(tmp_path, VAULT).vouch(b"v", ["b"])
    assert not (tmp_path / "sums").exists()


def test_a_list_that_was_changed_or_is_another_clients_is_refused(tmp_path: Path) -> None:
    Repeats(tmp_path, VAULT).vouch(b"u", ["a"])
    with pytest.raises(StateError, match="another key"):
        Repeats(tmp_path, Vault(b"o" * 32))
    path = tmp_path / "runs" / "sums"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="was changed"):
        Repeats(tmp_path, VAULT)


def test_it_opens_wherever_the_folder_is_moved(tmp_path: Path) -> None:
    Repeats(tmp_path / "a", VAULT).vouch(b"u", ["a"])
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(PrivacyError):
        Repeats(tmp_path / "b", VAULT).vouch(b"u", ["b"])


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MANY", 10)
    made = Repeats(tmp_path, VAULT)
    for k in range(11):
        made.vouch(bytes([k]), ["a", "b"])
    made.vouch(b"new", ["a"])
    again = Repeats(tmp_path, VAULT)
    again.vouch(bytes([0]), ["b"])  # forgotten
    for name in (bytes([10]), b"new"):
        with pytest.raises(PrivacyError):
            again.vouch(name, ["c"])


def test_neither_key_nor_names_stand_in_plain_on_the_disk(tmp_path: Path) -> None:
    made = Repeats(tmp_path, VAULT)
    for k in range(20):
        made.vouch(bytes([k]), ["a", "b"])
    text = VAULT.read(tmp_path / "runs" / "sums")
    assert len(text) == 32 + 20 * 32
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["sums"]
    kept = files[0].read_bytes()
    assert kept.startswith(MAGIC)
    assert not any(text[i : i + 16] in kept for i in range(0, len(text), 16))
