"""A budget of a data set: spent once for each run, never less than was spent, and no without its ledger."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.cli import main
from atoll.core.errors import ConfigError, PrivacyError, StateError
from atoll.privacy.ledger import Ledger, Spent, ledgers


def opened(folder: Path, epsilon: float = 8.0, delta: float = 1e-4) -> Ledger:
    return Ledger.create(folder, "heart-2026", epsilon=epsilon, delta=delta)


def test_what_is_spent_stays_spent(tmp_path: Path) -> None:
    opened(tmp_path).spend("hub/r1", 3.0, 1e-5)
    again = Ledger.open(tmp_path, "heart-2026")
    again.spend("hub/r1", 3.0, 1e-5)  # the same run, after a restart
    assert again.spent == (Spent("hub/r1", 3.0, 1e-5),)
    assert again.left == (5.0, pytest.approx(9e-5))
    again.spend("hub/r2", 5.0, 1e-5)  # the same job once more is another run
    with pytest.raises(PrivacyError, match=r"epsilon 0 and delta 8e-05 left, the job needs 0\.1"):
        again.spend("hub/r3", 0.1, 1e-6)
    assert len(Ledger.open(tmp_path, "heart-2026").spent) == 2
    assert stat.S_IMODE(again.path.stat().st_mode) == 0o600


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
    assert Ledger.open(made.path.parents[1], "heart-2026").spent == made.spent


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
    found = json.loads(made.path.read_bytes())
    damage(found)
    made.path.write_text(json.dumps(found))
    with pytest.raises(PrivacyError, match="damaged"):
        Ledger.open(tmp_path, "heart-2026")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense", '{"epsilon": "x"}'])
def test_a_ledger_that_is_none_says_no(tmp_path: Path, text: str) -> None:
    opened(tmp_path).path.write_text(text)
    with pytest.raises(PrivacyError, match="damaged"):
        Ledger.open(tmp_path, "heart-2026")


def test_without_a_ledger_and_with_one_already(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="atoll privacy open heart-2026"):
        Ledger.open(tmp_path, "heart-2026")
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
        Ledger.create(tmp_path, id, epsilon=epsilon, delta=delta)
    assert ledgers(tmp_path) == []


def test_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--folder", str(tmp_path)]
    assert main(["privacy", "status", *there]) == 0
    assert "no budgets here" in capsys.readouterr().out
    assert main(["privacy", "open", "heart-2026", "--epsilon", "8", "--delta", "1e-5", *there]) == 0
    Ledger.open(tmp_path, "heart-2026").spend("hub/r1", 2.5, 1e-6)
    capsys.readouterr()
    assert main(["privacy", "status", *there]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["budget", "epsilon", "left", "delta", "delta", "left", "runs"]
    assert shown[1].split() == ["heart-2026", "8", "5.5", "1e-05", "9e-06", "1"]
    assert main(["privacy", "status", "--json", *there]) == 0
    assert json.loads(capsys.readouterr().out)["budgets"][0]["left"] == 5.5
    assert main(["privacy", "open", "heart-2026", "--epsilon", "8", "--delta", "1e-5", *there]) == 1
    assert "spent stays spent" in capsys.readouterr().err
