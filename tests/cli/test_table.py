"""Tables line up, in Chinese as well; sizes and numbers are short."""

import pytest

from atoll.control.progress import progress
from atoll.control.table import number, size, table


def test_columns_line_up_whatever_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    table(["训练方式", "a"], [["联邦", "1.5"], ["alone", "–"]])
    lines = capsys.readouterr().out.splitlines()
    wide = [sum(2 if ord(c) > 0x2FFF else 1 for c in line) for line in lines]
    assert wide == [13, 13, 13]  # eight columns of text, two of space, three of numbers to the right
    assert lines[1].endswith("1.5")


def test_the_last_column_is_folded_to_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("atoll.control.table._room", lambda: 40)
    table(["name", "what"], [["fedavg", "average the clients' models by their numbers of rows"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(line[8:].strip() for line in lines[1:]).endswith("numbers of rows")


def test_an_empty_table_is_its_heads(capsys: pytest.CaptureFixture[str]) -> None:
    table(["name", "what"], [])
    assert capsys.readouterr().out == "name  what\n"


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (23064000, "23.1 MB"), (5e12, "5 TB"), (5e15, "5000 TB")],
)
def test_sizes(n: float, text: str) -> None:
    assert size(n) == text


def test_numbers() -> None:
    assert [number(x) for x in (0.5, float("nan"), 12345.678)] == ["0.5000", "–", "1.235e+04"]


def test_progress_prints_few_lines_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(1000, str, quiet=False) as watch:
        for done in range(1001):
            watch({"round": done, "metrics": {"loss": 1.0}})
    lines = capsys.readouterr().err.splitlines()
    assert 15 <= len(lines) <= 25
    assert lines[-1].split()[:2] == ["round", "1000/1000"]
    with progress(3, str, quiet=True) as watch:
        watch({"round": 1, "metrics": {"loss": 1.0}})
    assert capsys.readouterr().err == ""
