"""An installed package's parts join the registry through the entry point `atoll.parts`."""

import json
import os
import subprocess
import sys
from pathlib import Path

PART = '''
from atoll import part

@part("learner")
def from_a_package(lr: float = 0.1):
    """A learner that another package brings."""
'''


def installed(folder: Path) -> dict[str, str]:
    """An environment in which a package with that entry point is installed."""
    (folder / "their_parts.py").write_text(PART)
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[atoll.parts]\ntheirs = their_parts\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def listed(env: dict[str, str]) -> dict[str, str]:
    command = [sys.executable, "-m", "atoll", "parts", "learner", "--json"]
    found = json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    return {row["name"]: row["summary"] for row in found["parts"]}


def test_parts_of_an_installed_package_are_listed(tmp_path: Path) -> None:
    assert "from_a_package" not in listed(dict(os.environ))
    assert listed(installed(tmp_path))["from_a_package"] == "A learner that another package brings."
