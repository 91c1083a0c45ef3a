"""Every Python block of the documentation runs, every TOML block parses.

The blocks of one page share their names and run in order, in an empty folder. A TOML block with a
title, as in ```toml title="job.toml", is written there under that name for the blocks below it.
A Python block is left out only under a line `<!-- not run: reason -->`.
"""

import re
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?ms)^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)``` *$")
INFO = re.compile(r'(?P<language>python|toml)(?: title="(?P<title>[\w.-]+)")?')
EXCUSE = re.compile(r"<!-- not run: \S.{9,} -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, title or None, first line in the page, and text."""

    language: str
    title: str | None
    line: int
    code: str


def blocks(page: str) -> list[Block]:
    """The Python and TOML blocks that must work. Raises ValueError for a mark of another kind."""
    found = []
    for fence in FENCE.finditer(page):
        info = fence["info"].strip()
        line = page.count("\n", 0, fence.start()) + 2
        if not info.startswith(("py", "toml")):
            continue
        if not (known := INFO.fullmatch(info)):
            raise ValueError(f"line {line - 1}: write python, toml or a title, not {info!r}")
        if not EXCUSE.search(page[: fence.start()]):
            found.append(Block(known["language"], known["title"], line, textwrap.dedent(fence["code"])))
    return found


def run(page: str, name: str) -> dict[str, object]:
    """Run the blocks of a page in the current folder; returns the names they made."""
    names: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.code)
            if block.title:
                Path(block.title).write_text(block.code, encoding="utf-8")
        else:
            # Empty lines above make tracebacks name the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), names)  # noqa: S102
    return names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(path.read_text(encoding="utf-8"), str(path))


def test_there_are_snippets() -> None:
    assert sum(len(blocks(page.read_text(encoding="utf-8"))) for page in PAGES) > 3


def test_both_readmes_show_the_same_code() -> None:
    english, chinese = ([b.code for b in blocks(page.read_text(encoding="utf-8"))] for page in PAGES[:2])
    assert english == chinese != []


def test_control_blocks_share_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (
        '```toml title="job.toml"\nrounds = 3\n```\n\n```python\nfrom pathlib import Path\n```\n'
        '=== "tab"\n\n    ```python\n    job = Path("job.toml").read_text()\n    ```\n'
    )
    assert run(page, "page")["job"] == "rounds = 3\n"


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nassert 1 == 2\n```\n", AssertionError),
        ("<!-- not run: -->\n```python\nassert 1 == 2\n```\n", AssertionError),
        ("```python no-run\nassert 1 == 2\n```\n", ValueError),
        ("```py\nassert 1 == 2\n```\n", ValueError),
        ("```toml\nrounds = \n```\n", tomllib.TOMLDecodeError),
    ],
)
def test_control_a_broken_snippet_fails(page: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(page, "page")


def test_control_an_excuse_needs_a_reason() -> None:
    assert blocks("<!-- not run: it waits for a real server -->\n```python\nassert 1 == 2\n```\n") == []
