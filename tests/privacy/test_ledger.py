"""A budget of a data set: spent once for each run, never less than was spent, and no without its ledger."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.control.cli import main
from atoll.control.engine.safe import opened as vault_of
from atoll.control.settings import Client
from atoll.core.errors import ConfigError, PrivacyError, StateError
from atoll.privacy.accountant import Release
from atoll.privacy.hazmat.suite import GM, INTL
from atoll.privacy.ledger import Ledger, Spent, _hash, ledgers
from atoll.privacy.vault import Vault

VAULT = Vault(bytes(range(32)))
ID = "heart-2026"


def opened(folder: Path, epsilon: float = 8.0, delta: float = 1e-4) -> Ledger:
    return Ledger.create(folder, VAULT, ID, epsilon=epsilon, delta=delta)


def again(folder: Path, vault: Vault = VAULT) -> Ledger:
    return Ledger.open(folder, vault, ID)


def test_what_is_spent_stays_spent(tmp_path: Path) -> None:
    opened(tmp_path).spend("hub/r1", 3.0, 1e-5)
    made = again(tmp_path)
    made.spend("hub/r1", 3.0, 1e-5)  # the same run, after a restart
    assert made.spent == (Spent("hub/r1", 3.0, 1e-5),)
    assert made.left == (5.0, pytest.approx(9e-5))
    made.spend("hub/r2", 5.0, 1e-5)  # the same job once more is another run
    with pytest.raises(PrivacyError, match=r"epsilon 0 and delta 8e-05 left, the job needs 0\.1"):
        made.spend("hub/r3", 0.1, 1e-6)
    assert len(again(tmp_path).spent) == 2
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600


def test_delta_is_a_budget_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="left"):
        opened(tmp_path, delta=1e-5).spend("r", 1.0, 2e-5)


def test_a_run_cannot_promise_anew(tmp_path: Path) -> None:
    made = opened(tmp_path)
    made.spend("r", 3.0, 1e-5)
    with pytest.raises(PrivacyError, match="promised epsilon 3 before, and 4 now"):
        made.spend("r", 4.0, 1e-5)


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(1e-7, 1e-5)), max_size=8))
def test_never_more_than_there_is(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[float, float]]
) -> None:
    made = opened(tmp_path_factory.mktemp("site"), epsilon=5.0, delta=2e-5)
    for k, (epsilon, delta) in enumerate(asked):
        before = made.left
        try:
            made.spend(f"r{k}", epsilon, delta)
        except PrivacyError:
            assert epsilon > before[0] or delta > before[1]
            assert made.left == before
    assert sum(s.epsilon for s in made.spent) <= 5.0 * (1 + 1e-8)
    assert sum(s.delta for s in made.spent) <= 2e-5 * (1 + 1e-8)
    assert again(made.path.parents[1]).spent == made.spent


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found["spent"].pop(),
        lambda found: found["spent"][0].update(epsilon=0.1),
        lambda found: found.update(epsilon=80.0),
        lambda found: found["spent"].reverse(),
        lambda found: found.update(id="other"),
        lambda found: found.pop("hash"),
    ],
)
def test_a_ledger_that_was_changed_says_no(tmp_path: Path, damage) -> None:
    made = opened(tmp_path)
    made.spend("r1", 1.0, 1e-6)
    made.spend("r2", 2.0, 1e-6)
    found = json.loads(VAULT.read(made.path))
    damage(found)
    VAULT.write(made.path, json.dumps(found).encode())
    with pytest.raises(PrivacyError, match="damaged"):
        again(tmp_path)
    with pytest.raises(PrivacyError, match="damaged"):
        ledgers(tmp_path, VAULT)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense", '{"epsilon": "x"}'])
def test_a_ledger_that_is_none_says_no(tmp_path: Path, text: str) -> None:
    path = opened(tmp_path).path
    VAULT.write(path, text.encode())
    with pytest.raises(PrivacyError, match="damaged"):
        again(tmp_path)
    path.write_text(text)  # nor one that nobody sealed
    with pytest.raises(PrivacyError, match="damaged"):
        again(tmp_path)


def test_without_a_ledger_and_with_one_already(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="atoll privacy open heart-2026"):
        again(tmp_path)
    opened(tmp_path)
    with pytest.raises(StateError, match="spent stays spent"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("id", "epsilon", "delta", "words"),
    [
        ("../x", 1.0, 1e-5, "id"),
        ("x", 0.0, 1e-5, "epsilon"),
        ("x", float("inf"), 1e-5, "epsilon"),
        ("x", 1.0, 1.0, "delta"),
    ],
)
def test_values_that_mean_nothing(tmp_path: Path, id: str, epsilon: float, delta: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Ledger.create(tmp_path, VAULT, id, epsilon=epsilon, delta=delta)
    assert ledgers(tmp_path, VAULT) == []


def test_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--folder", str(tmp_path)]
    assert main(["privacy", "status", *there]) == 0
    assert "no budgets here" in capsys.readouterr().out
    assert main(["privacy", "open", "heart-2026", "--epsilon", "8", "--delta", "1e-5", *there]) == 0
    again(tmp_path, vault_of(Client(folder=str(tmp_path)))).spend("hub/r1", 2.5, 1e-6)
    capsys.readouterr()
    assert main(["privacy", "status", *there]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["budget", "epsilon", "left", "delta", "delta", "left", "runs"]
    assert shown[1].split() == ["heart-2026", "8", "5.5", "1e-05", "9e-06", "1"]
    assert main(["privacy", "status", "--json", *there]) == 0
    assert json.loads(capsys.readouterr().out)["budgets"][0]["left"] == 5.5
    assert main(["privacy", "open", "heart-2026", "--epsilon", "8", "--delta", "1e-5", *there]) == 1
    assert "spent stays spent" in capsys.readouterr().err


# -- by curves -------------------------------------------------------------------------------


def many(made: Ledger, epsilon: float, delta: float, release: Release | None, of: str = "client") -> int:
    for k in range(10_000):
        try:
            made.spend(f"m{k}", epsilon, delta, release, of)
        except PrivacyError:
            return k
    raise AssertionError("no end")


def test_more_jobs_fit_by_their_curves_than_as_promised(tmp_path: Path) -> None:
    job = Release(18.89, 1.0, 20, "all")  # epsilon 1 at 1e-6
    assert many(opened(tmp_path / "promised"), 1.0, 1e-6, None) == 8
    assert many(opened(tmp_path / "curves"), 1.0, 1e-6, job) == 50


def test_one_job_that_takes_all_counts_as_promised(tmp_path: Path) -> None:
    made = opened(tmp_path)
    made.spend("r", 8.0, 1e-4, Release(0.5, 1.0, 1, "all"), "client")  # a curve has no room for it
    assert made.spent == (Spent("r", 8.0, 1e-4),)
    assert made.left == (0.0, 0.0)


def test_other_neighbours_count_as_promised(tmp_path: Path) -> None:
    """A client more and a row more are two kinds of worlds: their divergences do not add up."""
    made, small = opened(tmp_path), Release(50.0, 1.0, 1, "all")
    made.spend("r1", 1.0, 1e-6, small, "client")
    made.spend("r2", 1.0, 1e-6, small, "example")
    assert [(s.of, bool(s.curve)) for s in made.spent] == [("client", True), ("", False)]
    assert made.total.epsilon == 1.0
    assert again(tmp_path).spent == made.spent


def test_beside_curves_promises_have_an_eighth_of_delta(tmp_path: Path) -> None:
    made = opened(tmp_path, epsilon=80.0)
    made.spend("r1", 1.0, 2e-5)
    made.spend("r2", 1.0, 1e-6, Release(50.0, 1.0, 1, "all"), "client")
    assert made.left[1] == pytest.approx(1e-5)
    made.spend("r3", 1.0, 9e-6)
    with pytest.raises(PrivacyError, match="delta 1e-06 left"):
        made.spend("r4", 1.0, 2e-6)
    before = made.left[0]
    made.spend("r5", 1.0, 0.0)
    assert made.left[0] == pytest.approx(before - 1.0)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(0.3, 30), st.sampled_from([1, 5, 50]), st.floats(0.1, 5), st.booleans()),
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_never_beyond_whatever_the_next_job_learns_from_the_last(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[tuple[float, int, float, bool]], outcome: int
) -> None:
    """The next sigma follows from whether the last was let in and from a coin; whatever comes, what counts as
    promised and the divergences at one order, at its share of delta, come to no more than the budget.
    """
    made = opened(tmp_path_factory.mktemp("site"), epsilon=4.0, delta=1e-4)
    louder = 1.0
    for k, (sigma, times, epsilon, curved) in enumerate(jobs):
        release = Release(sigma * louder, 1.0, times, "all") if curved else None
        before = made.spent
        try:
            made.spend(f"r{k}", epsilon, 1e-6, release, "client")
            louder *= 0.5 if outcome >> k & 1 else 1.0
        except PrivacyError:
            assert made.spent == before
            louder *= 3.0
    plain = [s for s in made.spent if not s.curve]
    curved_ = [s for s in made.spent if s.curve]
    first = made.spent.index(curved_[0]) if curved_ else len(made.spent)
    d0 = sum(s.delta for s in made.spent[:first])
    promised = sum(s.epsilon for s in plain)
    assert promised <= 4.0 * (1 + 1e-8)
    assert sum(s.delta for s in plain) - d0 <= ((1e-4 - d0) / 8) * (1 + 1e-8)
    if curved_:
        shares = [3 / 4, 1 / 6, 1 / 12]
        costs = []
        for a, share, *curve in zip(made.orders, shares, *(s.curve for s in curved_), strict=True):
            d = (1e-4 - d0) * 7 / 8 * share  # Mironov's conversion is never below the one that counts
            costs.append(sum(curve) + math.log1p(-1 / a) - math.log(d * a) / (a - 1))
        assert min(costs) + promised <= 4.0 * (1 + 1e-8)


# -- on the disk -----------------------------------------------------------------------------


def test_a_ledger_in_plain_is_nobodys(tmp_path: Path) -> None:
    """Whoever can write into the folder could have made it, with nothing spent."""
    made = opened(tmp_path)
    made.spend("r1", 7.0, 1e-5)
    values = {"id": ID, "epsilon": 8.0, "delta": 1e-4, "spent": [], "hash": _hash(ID, 8.0, 1e-4)}
    plain = tmp_path / "budgets" / f"{ID}.json"
    plain.write_text(json.dumps(values))
    assert again(tmp_path).left[0] == 1.0
    made.path.unlink()
    with pytest.raises(PrivacyError, match="has no ledger"):
        again(tmp_path)
    plain.rename(made.path)
    for call in (lambda: again(tmp_path), lambda: ledgers(tmp_path, VAULT)):
        with pytest.raises(PrivacyError, match="damaged"):
            call()


@pytest.mark.parametrize("suite", [INTL, GM])
def test_the_disk_shows_no_figure_and_no_name(tmp_path: Path, suite) -> None:
    vault = Vault(os.urandom(32), suite)
    made = Ledger.create(tmp_path, vault, ID, epsilon=8.0, delta=1.25e-4)
    made.spend("hub/winter-run", 2.7182818, 1.5e-5)

    def image(folder: Path) -> bytes:
        return b"".join(str(p).encode() + p.read_bytes() for p in folder.rglob("*") if p.is_file())

    marks = (ID.encode(), b"winter-run", b"2.7182818", b"0.000125", b"epsilon", bytes.fromhex(made.head))
    found = image(tmp_path)
    assert not [mark for mark in marks if mark in found]
    plain = tmp_path / "control"
    plain.mkdir()
    (plain / "ledger").write_bytes(vault.read(made.path) + bytes.fromhex(made.head))
    assert all(mark in image(plain) for mark in marks)  # the control: without the cipher all are found
    other = Vault(vault.key, GM if suite is INTL else INTL)  # after [store] crypto was changed
    other_made = again(tmp_path, other)
    other_made.spend("r2", 0.1, 1e-6)
    assert again(tmp_path, vault).spent == other_made.spent


@pytest.fixture(scope="module")
def sealed_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    made = opened(tmp_path_factory.mktemp("site"))
    return made.path, made.path.read_bytes()


@given(at=st.integers(0, 10_000), by=st.integers(1, 255))
def test_a_byte_that_was_changed_is_a_no(sealed_once: tuple[Path, bytes], at: int, by: int) -> None:
    path, whole = sealed_once
    data = bytearray(whole)
    data[at % len(data)] ^= by
    path.write_bytes(data)
    with pytest.raises(PrivacyError, match="damaged"):
        again(path.parents[1])


def test_another_key_or_another_ledgers_file_is_a_no(tmp_path: Path) -> None:
    made = opened(tmp_path)
    other = Ledger.create(tmp_path, VAULT, "other", epsilon=80.0, delta=1e-4)
    with pytest.raises(PrivacyError, match="no ledger"):  # another key looks for another name
        again(tmp_path, Vault(os.urandom(32)))
    made.path.write_bytes(other.path.read_bytes())
    with pytest.raises(PrivacyError, match="damaged"):
        again(tmp_path)
    made.path.unlink()
    with pytest.raises(PrivacyError, match="no ledger"):
        again(tmp_path)
