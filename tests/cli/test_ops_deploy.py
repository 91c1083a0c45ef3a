"""What stands in deploy/: units, images and the compose file start commands there are, with few rights."""

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from atoll.control import cli, topology

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
IMAGES = sorted(DEPLOY.glob("Containerfile.*"))


def parsed(words: list[str]) -> str:
    """The command these words name. Raises SystemExit for what the command line does not take."""
    args = cli._parser(str).parse_args(words)
    return args.run.__name__


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_units(path: Path) -> None:
    unit = configparser.RawConfigParser(strict=True)
    unit.optionxform = str
    unit.read(path, encoding="utf-8")
    service = unit["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program.endswith("/atoll")
    assert f"atoll-{words[0]}.service" == path.name
    assert parsed(words) == f"_{words[0]}"
    assert service["User"] == "atoll"
    assert service["Restart"] == "always"
    assert service["UMask"] == "0077"
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces"):
        assert service[name] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict"


@pytest.mark.parametrize("path", IMAGES, ids=lambda p: p.name)
def test_images(path: Path) -> None:
    text = path.read_text("utf-8")
    words = [w.strip('", []') for w in re.search(r"(?m)^CMD (.*)$", text)[1].split(",")]
    assert parsed(words) == f"_{words[0]}"
    assert re.search(r"(?m)^USER 10001$", text)
    assert ":latest" not in text
    assert "constraints.txt" in text
    assert not re.search(r"(?i)password|token|secret", text)


def test_what_images_are_built_from_holds_no_tokens() -> None:
    lines = (DEPLOY.parent / ".dockerignore").read_text("utf-8").splitlines()
    taken = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert "*" in lines  # nothing else, deploy/compose/members among it
    built = {"src", "pyproject.toml", "hatch_build.py", "constraints.txt", project["readme"]}
    assert taken == built | set(project["license-files"])


def test_compose() -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text("utf-8"))
    members = {m.name: m for m in topology.read(DEPLOY / "compose" / "topology.toml")}
    assert found["services"].keys() == members.keys() == found["volumes"].keys()
    for name, service in found["services"].items():
        assert parsed(service["command"]) == f"_{members[name].role}"
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert f"./members/{name}:/etc/atoll:ro" in service["volumes"]
        assert service["build"]["dockerfile"] in {f"deploy/{p.name}" for p in IMAGES}
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_there_are_units_and_images() -> None:
    assert [p.stem for p in UNITS] == ["atoll-client", "atoll-coordinator", "atoll-edge", "atoll-gateway"]
    assert len(IMAGES) == 2
