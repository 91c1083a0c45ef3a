"""Topology files: the tree they declare, the settings that come of it, and what is wrong in one."""

import json
from pathlib import Path

import pytest

from atoll.control import settings, topology
from atoll.control.starter import make
from atoll.core.errors import ConfigError

THREE = """
federation = "works"
[members.cloud]
names = ["cloud.example"]
[members.north]
below = "cloud"
names = ["north.example"]
listen = "0.0.0.0:9443"
[members.south]
below = "cloud"
[members.line-1]
below = "north"
data.machines = { train = "m.csv", target = "fails" }
[members.line-2]
below = "south"
[members.alone]
below = "cloud"
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "topology.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_roles_and_doors(tmp_path) -> None:
    members = {m.name: m for m in topology.read(written(tmp_path, THREE))}
    assert {name: m.role for name, m in members.items()} == {
        "cloud": "coordinator",
        "north": "edge",
        "south": "edge",
        "alone": "client",
        "line-1": "client",
        "line-2": "client",
    }
    cloud, north, south = "https://cloud.example:8443", "https://north.example:9443", "https://south:8443"
    assert members["line-1"].values["join"] == [north, south, cloud]
    assert members["line-2"].values["join"] == [south, north, cloud]
    assert members["alone"].values["join"] == [cloud]
    assert members["north"].values["join"] == [cloud]


def test_four_tiers(tmp_path) -> None:
    deep = THREE + '[members.cell]\nbelow = "line-1"\n'
    members = {m.name: m for m in topology.read(written(tmp_path, deep.replace("data.machines", "# data")))}
    assert (members["line-1"].role, members["cell"].role) == ("edge", "client")
    assert [url.split(":")[1] for url in members["cell"].values["join"]] == [
        "//line-1",
        "//north.example",
        "//south",
        "//cloud.example",
    ]


def test_the_files_are_settings_of_their_members(atoll, tmp_path) -> None:
    file = written(tmp_path, THREE)
    said = atoll("topology", file, "--to", tmp_path / "m")
    assert said.code == 0
    assert said.out.startswith("cloud (coordinator)\n  north (edge)\n    line-1 (client)\n")
    assert "atoll token create --role edge --name north" in said.out
    client = settings.read(tmp_path / "m" / "line-1" / "client.toml", settings.Client)
    assert client.data == {"machines": {"train": "m.csv", "target": "fails"}}
    edge = settings.read(tmp_path / "m" / "north" / "edge.toml", settings.Edge)
    assert (edge.listen, edge.join) == ("0.0.0.0:9443", ("https://cloud.example:8443",))
    cloud = settings.read(tmp_path / "m" / "cloud" / "coordinator.toml", settings.Server)
    assert (cloud.federation, cloud.names) == ("works", ("cloud.example", "localhost"))
    plain = json.loads(atoll("topology", file, "--json").out)
    assert [m["name"] for m in plain["members"]][:3] == ["cloud", "north", "south"]
    assert plain["files"] == []


def test_the_starters_files_are_good(tmp_path) -> None:
    make(tmp_path / "new")
    members = topology.read(tmp_path / "new" / "topology.toml")
    assert [m.role for m in members].count("edge") == 2
    client = settings.read(tmp_path / "new" / "client.toml", settings.Client)
    assert (tmp_path / "new" / client.data["machines"]["train"]).exists()
    assert client.policy.min_cohort == 3


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("", "$.members", "name the members"),
        ("novelty = 1", "$.novelty", "unknown key"),
        ("[members.a]\n[members.b]", "$.members", "exactly one"),
        ('[members.a]\nbelow = "b"', "$.members.a.below", "no member is called 'b'"),
        ('[members.a]\n[members.b]\nbelow = "c"\n[members.c]\nbelow = "b"', "$.members.b.below", "circle"),
        ('[members.a]\nbelow = "a"', "$.members.a.below", "circle"),
        ("[members.A]", "$.members.A", "a-z"),
        ("members.a = 3", "$.members.a", "a table"),
        ("[members.a]\nports = 3", "$.members.a.ports", "unknown key 'ports'"),
        ("[members.a]\npatience = 'x'", "$.members.a.patience", "str"),
        (
            '[members.a]\n[members.b]\nbelow = "a"\ntransport = "pigeon"',
            "$.members.b.transport",
            "Invalid enum",
        ),
        ('[members.a]\nlisten = "x"\n[members.b]\nbelow = "a"', "$.members.a.listen", "host:port"),
        ("[members", "", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(tmp_path, text: str, path: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        topology.read(written(tmp_path, text))
    assert caught.value.path == path
    assert says in str(caught.value)
