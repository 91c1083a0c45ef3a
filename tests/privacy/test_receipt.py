"""Receipts of budgets: an older copy of a ledger is found out, and what it lacks counts as spent."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.cli import main
from atoll.control.engine import spent
from atoll.core.errors import PrivacyError, ProtocolError
from atoll.privacy.accountant import Release
from atoll.privacy.keys import Authority, Identity
from atoll.privacy.ledger import Ledger
from atoll.privacy.receipt import check, opened, signed
from atoll.privacy.signed import sign_values
from atoll.privacy.vault import Vault
from tests.wire.pki import NOW, member

OURS, THEIRS = Authority.new("reef", now=NOW), Authority.new("reef", now=NOW)
ID = "heart-2026"
VAULT = Vault(bytes(range(32)))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    member(OURS, "client", "bank-a").save(tmp_path / "identity")
    key = {"crypto": None, "salt": "", "key": VAULT.key.hex()}
    (tmp_path / "store.key").write_text(json.dumps(key))
    Ledger.create(tmp_path, VAULT, ID, epsilon=8.0, delta=1e-4)
    return tmp_path


def spend(site: Path, run: str, epsilon: float, known: list[str] | None = None) -> list[str]:
    spent.spend(site, VAULT, ID, run, (epsilon, 1e-5), known or [], now=NOW)
    return spent.told(site, VAULT)


@pytest.fixture
def restored(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A site whose budgets are those of a backup made after one run of three, and what others kept."""
    backup = tmp_path_factory.mktemp("backup") / "budgets"
    spend(site, "r1", 1.0)
    shutil.copytree(site / "budgets", backup)
    spend(site, "r2", 2.0)
    kept = spend(site, "r3", 3.0)
    shutil.rmtree(site / "budgets")
    shutil.copytree(backup, site / "budgets")
    return site, kept


def test_an_older_copy_is_found_out(restored: tuple[Path, list[str]]) -> None:
    site, kept = restored
    with pytest.raises(PrivacyError, match=r"signed for 3 entries of 6 in all, and it has 1 of 1"):
        spend(site, "r4", 1.0, kept)
    with pytest.raises(PrivacyError, match="older copy"):  # also when nobody says so any more
        spend(site, "r4", 1.0)
    assert [s.run for s in Ledger.open(site, VAULT, ID).spent] == ["r1"]


def test_without_receipts_nobody_would_know(restored: tuple[Path, list[str]]) -> None:
    """The control: who keeps no receipt lets a site spend twice."""
    site, _ = restored
    spend(site, "r4", 7.0)
    assert Ledger.open(site, VAULT, ID).total.promised[0] == 8.0


def test_what_is_missing_counts_as_spent(
    restored: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    site, kept = restored
    with pytest.raises(PrivacyError):
        spend(site, "r4", 1.0, kept)
    assert main(["privacy", "recover", ID, "--folder", str(site), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 2.0
    assert main(["privacy", "recover", ID, "--folder", str(site)]) == 0  # again changes nothing
    assert "epsilon 2" in capsys.readouterr().out
    (now,) = spend(site, "r4", 1.0, kept)
    ledger = Ledger.open(site, VAULT, ID)
    assert ledger.total.promised[0] == 7.0
    assert opened(now, OURS.root).entries == ledger.entries == 5  # more than 3: others take it for newer
    assert spend(site, "r5", 1.0, [*kept, now])
    with pytest.raises(PrivacyError, match="epsilon 0"):
        spend(site, "r6", 0.5, kept)


def test_a_ledger_that_was_deleted_and_opened_anew_is_found_out(site: Path) -> None:
    kept = spend(site, "r1", 8.0)
    shutil.rmtree(site / "budgets")
    Ledger.create(site, VAULT, ID, epsilon=80.0, delta=1e-4)
    with pytest.raises(PrivacyError, match=r"signed for 1 entries of 8 in all, and it has 0 of 0"):
        spend(site, "r2", 8.0, kept)
    assert spent.recover(site, VAULT, ID).total.promised == (8.0, 1e-5)


def test_another_ending_of_the_same_length_is_found_out(restored: tuple[Path, list[str]]) -> None:
    site, kept = restored
    for run in ("x2", "x3"):
        spend(site, run, 1.0)
    with pytest.raises(PrivacyError, match="older copy"):
        spend(site, "x4", 1.0, kept)


def test_what_others_signed_says_nothing(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    ledger = Ledger.create(other, VAULT, ID, epsilon=8.0, delta=1e-4)
    ledger.spend("r", 8.0, 1e-5)
    strange = [
        signed(ledger, member(OURS, "client", "bank-b"), now=NOW),
        signed(ledger, member(THEIRS, "client", "bank-a"), now=NOW),
        "{}",
        "no receipt",
    ]
    assert spend(site, "r1", 1.0, [*strange, 7])  # type: ignore[list-item]


@pytest.mark.parametrize("role", ["edge", "coordinator"])
def test_only_the_client_itself_signs(site: Path, role: str) -> None:
    with pytest.raises(ProtocolError, match="only that client does"):
        opened(signed(Ledger.open(site, VAULT, ID), member(OURS, role, "bank-a"), now=NOW), OURS.root)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_changed_receipt_is_none(tmp_path_factory: pytest.TempPathFactory, at: int, by: int) -> None:
    ledger = Ledger.create(tmp_path_factory.mktemp("site"), VAULT, ID, epsilon=8.0, delta=1e-4)
    text = signed(ledger, member(OURS, "client", "bank-a"), now=NOW)
    made, at = opened(text, OURS.root), at % len(text)
    changed = text[:at] + chr((ord(text[at]) ^ by) or 1) + text[at + 1 :]
    with suppress(ProtocolError):
        assert opened(changed, OURS.root) == made  # white space between certificates


@given(st.lists(st.floats(0.01, 3), max_size=6), st.data())
def test_a_ledger_follows_each_receipt_it_gave_and_no_later_one(
    tmp_path_factory: pytest.TempPathFactory, runs: list[float], data: st.DataObject
) -> None:
    folder, identity = tmp_path_factory.mktemp("site"), member(OURS, "client", "bank-a")
    ledger = Ledger.create(folder, VAULT, ID, epsilon=100.0, delta=0.5)
    given_ = [signed(ledger, identity, now=NOW)]
    copies = [ledger.path.read_bytes()]
    for k, epsilon in enumerate(runs):
        ledger.spend(f"r{k}", epsilon, 1e-5)
        given_.append(signed(ledger, identity, now=NOW))
        copies.append(ledger.path.read_bytes())
    at = data.draw(st.integers(0, len(runs)))
    ledger.path.write_bytes(copies[at])
    older = Ledger.open(folder, VAULT, ID)
    for k, text in enumerate(given_):
        receipt = opened(text, OURS.root)
        if k <= at:
            check(older, receipt)
        else:
            with pytest.raises(PrivacyError):
                check(older, receipt)
            older.recover(receipt.entries, receipt.head, receipt.total)
            check(older, receipt)
            assert older.total.promised[0] >= receipt.epsilon - 1e-9


SMALL = Release(18.89, 1.0, 20, "all")  # epsilon 1 at 1e-6


def spend_curve(site: Path, run: str, known: list[str] | None = None) -> list[str]:
    spent.spend(site, VAULT, ID, run, (1.0, 1e-6), known or [], now=NOW, release=SMALL, of="client")
    return spent.told(site, VAULT)


def test_curves_that_are_missing_count_as_spent(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    backup = tmp_path_factory.mktemp("backup") / "budgets"
    spend(site, "r0", 0.5)
    spend_curve(site, "r1")
    shutil.copytree(site / "budgets", backup)
    for run in ("r2", "r3"):
        kept = spend_curve(site, run)
    kept = spend(site, "r4", 0.25)
    newest = Ledger.open(site, VAULT, ID)
    shutil.rmtree(site / "budgets")
    shutil.copytree(backup, site / "budgets")
    with pytest.raises(PrivacyError, match=r"signed for 5 entries of 3\.75 in all, and it has 2 of 1\.5"):
        spend_curve(site, "r5", kept)
    found = spent.recover(site, VAULT, ID)
    assert found.total.epsilon == newest.total.epsilon
    assert found.total.curve == pytest.approx(newest.total.curve)
    assert found.total.promised == pytest.approx(newest.total.promised)
    assert found.left[0] == pytest.approx(newest.left[0])
    assert found.entries > newest.entries
    spend_curve(site, "r5", kept)


def test_curves_of_a_ledger_that_was_opened_anew_count_as_promised(site: Path) -> None:
    for run in ("r1", "r2", "r3"):
        kept = spend_curve(site, run)
    shutil.rmtree(site / "budgets")
    Ledger.create(site, VAULT, ID, epsilon=80.0, delta=1e-3)  # of other orders
    with pytest.raises(PrivacyError, match=r"signed for 3 entries of 3 in all, and it has 0 of 0"):
        spend_curve(site, "r4", kept)
    assert spent.recover(site, VAULT, ID).total.epsilon == 3.0


def test_receipts_without_curves_hold(site: Path) -> None:
    """As sites signed them before budgets counted by curves: all they say is what was promised."""
    kept = spend(site, "r1", 1.0)
    values = json.loads(json.loads(kept[0])["values"])
    old = {k: v for k, v in values.items() if k not in ("plain", "curve", "orders", "of")}
    identity = Identity.open(site / "identity")
    text = sign_values(identity.key, identity.chain, old, "atoll budget receipt")
    assert opened(text, OURS.root).total == Ledger.open(site, VAULT, ID).total
    assert len(spend(site, "r2", 1.0, [text])) == 1
    assert Ledger.open(site, VAULT, ID).total.promised[0] == 2.0


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_kill_between_spending_and_the_answer_leaves_it_spent(site: Path, point: str) -> None:
    """SIGKILL as the ledger is renamed into place, and after: never less than what was answered for."""
    words = f"""
import os, pathlib, signal, sys
from atoll.privacy import private, vault
from atoll.privacy.accountant import Release
from atoll.privacy.ledger import Ledger
from atoll.privacy.signed import sign_values
from atoll.privacy.vault import Vault
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
real = pathlib.Path.replace
def replace(self, to):
    if {point == "before"}: kill()
    real(self, to); kill()
made = Ledger.open(pathlib.Path(sys.argv[1]), Vault(bytes(range(32))), "{ID}")
pathlib.Path.replace = replace
made.spend("r1", 1.0, 1e-6, Release(18.89, 1.0, 20, "all"), "client")
print("answered")
"""
    done = subprocess.run([sys.executable, "-c", words, str(site)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL and done.stdout == b"", done.stderr
    found = Ledger.open(site, VAULT, ID)
    assert [s.run for s in found.spent] == (["r1"] if point == "after" else [])
    spend_curve(site, "r1")  # the same run once more, whatever became of it
    assert [s.run for s in Ledger.open(site, VAULT, ID).spent] == ["r1"]
