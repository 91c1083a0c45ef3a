"""Files outside the code: no paths of somebody's machine, changelog fragments that read as one list."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house.sources import ROOT

MACHINE_PATH = re.compile(r"(?<![\w.}~-])/(?:work|root|opt|Users|home/\w+)/")
KINDS = ("added", "changed", "fixed", "removed", "security")
FRAGMENT = re.compile(rf"[a-z0-9][a-z0-9-]*\.(?:{'|'.join(KINDS)})\.md")
LONGEST = 600  # characters: a fragment is read in a list


def tracked() -> list[Path]:
    """Every file that is or would be committed."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout: there is no list of tracked files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def machine_paths(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_no_machine_paths_in_tracked_files() -> None:
    files = tracked()
    assert len(files) > 10
    assert {str(f): bad for f in files if (bad := machine_paths(f.read_text("utf-8", "replace")))} == {}


def test_control_machine_paths_are_seen() -> None:
    for folder in ("work", "root", "opt", "Users", "home/ann"):
        assert machine_paths(f'DATA = "/{folder}/data"')
    assert not machine_paths("see docs/work/list.md, ../opt/x and https://example.org/root/y")


def faults(name: str, text: str) -> list[str]:
    """What is wrong with a changelog fragment; changelog.d/README.md says what is right."""
    found = []
    if not FRAGMENT.fullmatch(name):
        found.append(f"call it what-changed.KIND.md, KIND one of {', '.join(KINDS)}")
    if not re.match(r"[\w`]", text):
        found.append("begin with a sentence: no heading, no bullet")
    if not text.strip().endswith("."):
        found.append("end with a full stop")
    if not 20 <= len(text) <= LONGEST:
        found.append(f"use 20 to {LONGEST} characters")
    return found


def test_changelog_fragments_are_well_formed() -> None:
    fragments = [f for f in (ROOT / "changelog.d").iterdir() if f.name != "README.md"]
    assert fragments
    assert {f.name: bad for f in fragments if (bad := faults(f.name, f.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rng.md", "A sentence that says what users get."),
        ("rng.news.md", "A sentence that says what users get."),
        ("Rng stream.added.md", "A sentence that says what users get."),
        ("rng.added.md", "# A heading that says what users get."),
        ("rng.added.md", "- A bullet that says what users get."),
        ("rng.added.md", "A sentence without its end"),
        ("rng.added.md", ""),
        ("rng.added.md", "Short."),
        ("rng.added.md", "Long. " * 200),
    ],
)
def test_control_bad_fragments_are_seen(name: str, text: str) -> None:
    assert faults(name, text)


def test_control_a_good_fragment_passes() -> None:
    assert faults("random-streams.added.md", "`Rng` gives each client its own stream.\n") == []
