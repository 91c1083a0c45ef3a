"""Settings files: values, with their defaults; every wrong key by its path."""

from pathlib import Path

import pytest

from atoll.control.engine.agent import Agent
from atoll.control.settings import Client, Edge, Server, address, answers_at, make, read
from atoll.control.up import plain, start
from atoll.core.errors import ConfigError, StateError


def test_a_file_is_read_and_the_command_line_goes_over_it(tmp_path) -> None:
    file = tmp_path / "client.toml"
    file.write_text('name = "a"\njoin = ["https://hub:8443"]\n[data.heart]\ntrain = "x.csv"\n')
    found = read(file, Client, name="b", token=None)
    assert (found.name, found.join, found.token) == ("b", ("https://hub:8443",), "")
    assert found.folder == str(tmp_path / ".") or found.folder == str(tmp_path)


@pytest.mark.parametrize(
    ("kind", "table", "words"),
    [
        (Client, {"nmae": "a"}, r"\$\.nmae.*did you mean 'name'"),
        (Client, {"policy": {"min_cohort": "many"}}, r"policy"),
        (Client, {"policy": {"epsilon": 1}}, "epsilon"),
        (Edge, {"transport": "smoke"}, "transport"),
        (Server, {"patience": "long"}, "patience"),
    ],
)
def test_wrong_values_are_named(kind, table, words) -> None:
    with pytest.raises(ConfigError, match=words):
        make(kind, table, "a file")


def test_no_file_and_no_toml(tmp_path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read(tmp_path / "x.toml", Client)
    (tmp_path / "y.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read(tmp_path / "y.toml", Client)


def test_addresses() -> None:
    assert address("127.0.0.1:8443", "$.listen") == ("127.0.0.1", 8443)
    assert address("[::1]:0", "$.listen") == ("::1", 0)
    assert address(":80", "$.listen") == ("0.0.0.0", 80)  # noqa: S104
    for wrong in ("hub", "hub:http", "hub:99999", ""):
        with pytest.raises(ConfigError, match=r"\$\.listen"):
            address(wrong, "$.listen")


@pytest.mark.parametrize("where", ["0.0.0.0:29555", ":9000", "[::]:0", "192.0.2.7:9000", "site.example:9000"])
def test_predictions_are_not_answered_in_the_clear_where_others_reach_them(where, tmp_path) -> None:
    client = Client(folder=str(tmp_path), data={"rows": {"train": "rows.csv"}}, predict=where)
    with pytest.raises(ConfigError, match=r"\$\.predict: .*no TLS.*127\.0\.0\.1"):
        Agent(client)
    assert list(tmp_path.iterdir()) == [], "refused before anything is made"
    for own in ("127.0.0.1:9000", "[::1]:9000", "localhost:9000"):
        assert answers_at(Client(predict=own))[1] == 9000


def test_a_plain_federation_deals_clients_to_edges() -> None:
    assert plain(2, 3) == {
        "coordinator": "", "edge-a": "coordinator", "edge-b": "coordinator",
        "client-1": "edge-a", "client-2": "edge-b", "client-3": "edge-a",
    }  # fmt: skip
    assert plain(0, 1) == {"coordinator": "", "client-1": "coordinator"}
    assert list(plain(0, 12))[1:3] == ["client-01", "client-02"]
    with pytest.raises(ConfigError):
        plain(1, 0)


def test_a_federation_that_an_earlier_version_laid_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator" / "atoll.db").touch()
    (tmp_path / "ports.json").write_text('{"api": "", "edges": {}}')
    with pytest.raises(StateError, match="laid out by an earlier version: name another"):
        start(tmp_path, tmp_path / "job.toml", above=plain(1, 1), transport="https", tell=print)
