"""The reference pages name every command, option, key and file there is, and no others."""

import argparse
import re
from pathlib import Path

from atoll.control import cli, config
from atoll.simulate import folder

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text("utf-8")


def commands(parser: argparse.ArgumentParser, above: str = "atoll") -> dict[str, set[str]]:
    """Every command with its long options."""
    found: dict[str, set[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                options = {o for a in inner._actions for o in a.option_strings if o.startswith("--")}
                found |= {f"{above} {name}": options} | commands(inner, f"{above} {name}")
    return found


def test_every_command_and_option_stands_on_its_page_and_no_other() -> None:
    known = commands(cli._parser(str))
    text = page("cli")
    assert {name for name in known if f"`{name}" not in text} == set()
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", text)) == {
        o for options in known.values() for o in options
    }


def test_every_key_of_a_job_stands_on_its_page() -> None:
    text = page("job-file")
    named = set(re.findall(r"(?m)^\[?(\w+)\]?(?= =| #|$)", text.split("```")[1]))
    assert set(config._KEYS) - {"workers"} <= named


def test_every_file_of_a_run_stands_on_its_page() -> None:
    listed = set(re.findall(r"(?m)^\| `([\w./]+)` \|", page("run-folder")))
    in_code = set(re.findall(r"(?m)^    ([\w./]+)  ", folder.__doc__ or ""))
    assert len(in_code) > 6
    assert in_code <= listed


def test_every_key_of_a_source_stands_on_its_page() -> None:
    from atoll.sense import source

    said = set(re.findall(r"`([\w.]+)`", page("client")))
    ways = (source.Folder, source.Sql, source.Push, source.Mqtt)
    for kind in (source.Source, *ways, source.Span, source.Labels):
        keys = set(kind.__struct_fields__) - {"window", "labels", "folder", "sql", "push", "mqtt"}  # tables
        assert {key for key in keys if not {key, f"window.{key}", f"labels.{key}"} & said} == set()
