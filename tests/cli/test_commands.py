"""The other commands, the two languages, exit codes, and two runs as a process of its own."""

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.control import cli, text
from tests.house.sources import PACKAGE, tree


def test_parts_lists_every_name_once_with_a_line(atoll) -> None:
    found = json.loads(atoll("parts", "--json").out)["parts"]
    assert {"fedavg", "mlp", "dirichlet", "sample", "lognormal"} <= {p["name"] for p in found}
    assert all(p["summary"].strip() for p in found)
    lines = atoll("parts", "algorithm").out.splitlines()
    assert lines[0].split()[:2] == ["kind", "name"]
    assert {line.split()[0] for line in lines[1:]} == {"algorithm"}


def test_data_commands(atoll, project: Path) -> None:
    described = json.loads(atoll("data", "describe", "data", "--target", "fails", "--json").out)
    assert (described["rows"], described["sites"], described["classes"]) == (320, 4, ["no", "yes"])
    assert "320 training rows" in atoll("data", "describe", "data", "--target", "fails").out

    dealt = atoll("data", "partition", "data", "--target", "fails", "--clients", 3, "--by", "iid", "--json")
    assert [c["rows"] + c["test_rows"] for c in json.loads(dealt.out)["clients"]] == [107, 107, 106]

    argv = ("data", "partition", "data", "--target", "fails", "--clients", 3, "--by", "dirichlet,alpha=1")
    assert atoll(*argv, "--out", "dealt").code == 0
    assert sum(len(p.read_text().splitlines()) - 1 for p in Path("dealt").glob("*.csv")) == 320
    assert atoll("data", "describe", "dealt", "--target", "label").code == 0

    unlike = json.loads(atoll("data", "heterogeneity", "data", "--target", "fails", "--json").out)
    assert unlike["clients"] == 4 and 0 <= unlike["label_tv"] <= 1 and unlike["algorithm"]
    assert "digits" in atoll("data", "list").out


def test_heterogeneity_draws(atoll, project: Path) -> None:
    pytest.importorskip("matplotlib")
    argv = ("data", "heterogeneity", "data", "--target", "fails", "--draw")
    assert atoll(*argv, "picture.png").code == 0
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")
    assert atoll(*argv, "job.toml/picture.png").code == 2


def test_compare_and_report(atoll, project: Path) -> None:
    for name, algorithm in (("a", "fedavg"), ("b", "fedavgm")):
        atoll("simulate", "job.toml", "--out", name, "--set", f"algorithm={algorithm}")
    rows = json.loads(atoll("compare", "a", "b", "--json").out)["runs"]
    assert [r["algorithm"].partition("(")[0] for r in rows] == ["fedavg", "fedavgm"]
    assert len(atoll("compare", "a", "b").out.splitlines()) == 3
    Path("a/report.html").unlink()
    assert json.loads(atoll("report", "a", "--json").out)["report"] == "a/report.html"
    assert Path("a/report.html").exists()
    for argv in (("compare", "nothing"), ("report", "nothing")):
        assert atoll(*argv).code == 1


def test_the_starter_runs_as_its_last_line_says(atoll, tmp_path: Path, monkeypatch) -> None:
    said = atoll("new", tmp_path / "mine", "--json")
    found = json.loads(said.out)
    folder, command = found["next"].removeprefix("cd ").split(" && ")
    assert all(Path(f).is_file() for f in found["files"])
    monkeypatch.chdir(folder)
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--json", "--baselines"],
        capture_output=True,
        text=True,
        check=True,
    )
    trained = json.loads(done.stdout)["trained"]
    assert trained["federated"]["pooled"]["accuracy"] > trained["each_site_alone"]["pooled"]["accuracy"]
    assert atoll("new", folder).code == 1  # never over somebody's work


def test_the_starter_is_the_same_for_everyone(atoll, tmp_path: Path) -> None:
    for name in ("a", "b"):
        atoll("new", tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("simulat", "job.toml"), 2, "simulat"),
        (("simulate", "none.toml"), 2, "there is no file none.toml"),
        (("simulate", "job.toml", "--set", "rounds"), 2, "--set takes key=value"),
        (("simulate", "job.toml", "--set", "rounds.a=1"), 2, "rounds is a value"),
        (("simulate", "job.toml", "--parts", "none.py"), 2, "there is no file none.py"),
        (("simulate", "job.toml", "--parts", "job.toml"), 2, "not a Python file"),
        (("parts", "algoritm"), 2, "did you mean 'algorithm'"),
        (("data", "describe", "digitz"), 2, "did you mean 'digits'"),
        (("data", "partition", "data", "--target", "fals"), 2, "did you mean 'fails'"),
        (("data", "partition", "data", "--target", "fails", "--by", "irid"), 2, "--by.name"),
    ],
)
def test_wrong_commands_say_what_is_wrong(atoll, project: Path, argv, code: int, says: str) -> None:
    said = atoll(*argv)
    assert said.code == code
    assert "error: " in said.err and says in said.err
    assert said.out == ""


def test_version(atoll) -> None:
    assert atoll("version").out.startswith("atoll ")
    assert atoll("--version").out == atoll("version").out
    assert json.loads(atoll("version", "--json").out)["atoll"]


def test_chinese_everywhere(atoll, project: Path, monkeypatch) -> None:
    assert "错误: " in atoll("simulate", "none.toml", "--lang", "zh").err
    assert "用法: " in atoll("--lang=zh", "nothing").err
    assert "用法: " in atoll("simulate", "--lang", "zh", "--help").out
    assert "联邦" in atoll("simulate", "job.toml", "--out", "a", "--lang", "zh").out
    assert '<html lang="zh">' in Path("a/report.html").read_text(encoding="utf-8")
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert "错误: " in atoll("report", "none").err
    assert "error: " in atoll("report", "none", "--lang", "en").err


def said_texts() -> set[str]:
    """Every text that control/ hands to say(), or registers a command with."""
    found = set()
    for path in (PACKAGE / "control").glob("*.py"):
        for call in (n for n in ast.walk(tree(path)) if isinstance(n, ast.Call)):
            name = getattr(call.func, "id", "")
            args = call.args if name == "say" else call.args[2:3] if name == "command" else []
            found |= {a.value for a in args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def test_every_text_has_its_chinese() -> None:
    assert len(said_texts()) > 60
    assert said_texts() - text.ZH.keys() == set()


def test_a_reader_that_stops_early_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "atoll", "parts"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_no_command_prints_the_help(atoll) -> None:
    said = atoll()
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("usage: atoll")


def test_an_option_that_is_given_twice_has_the_values_of_both() -> None:
    def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    yield from options(inner)
            elif action.option_strings and action.nargs in ("+", "*"):
                yield action

    found = list(options(cli._parser(str)))
    assert len(found) > 5
    assert [a.option_strings for a in found if not isinstance(a, argparse._ExtendAction)] == []
