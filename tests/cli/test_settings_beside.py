"""Where a member's settings come from: the file that is named, else the one in its folder."""

import pytest

from atoll.control.engine import agent, coordinator, edge

MAINS = {"client": agent, "edge": edge, "coordinator": coordinator}


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The settings that a member was started with."""
    got = []
    for module in MAINS.values():
        monkeypatch.setattr(module, "main", lambda settings: got.append(settings) or 0)
    monkeypatch.chdir(tmp_path)
    return got


@pytest.mark.parametrize("role", MAINS)
@pytest.mark.parametrize("here", [True, False])
def test_a_folders_own_file_is_read_and_options_go_over_it(atoll, started, tmp_path, role, here) -> None:
    place = tmp_path if here else tmp_path / "site"
    place.mkdir(exist_ok=True)
    (place / f"{role}.toml").write_text('name = "of-the-file"\nfolder = "state"\n', encoding="utf-8")
    where = () if here else ("--folder", "site")
    assert atoll(role, *where).code == 0
    assert atoll(role, *where, "--name", "said").code == 0
    assert [one.name for one in started] == ["of-the-file", "said"]
    assert {one.folder for one in started} == {"state" if here else "site"}
    (tmp_path / "other.toml").write_text('name = "named"\n', encoding="utf-8")
    atoll(role, *where, "--config", "other.toml")
    assert started[-1].name == "named"


def test_a_client_joins_by_url_and_token_with_the_data_of_its_folder(atoll, started, tmp_path) -> None:
    (tmp_path / "client.toml").write_text('[data.heart]\ntrain = "x.csv"\n', encoding="utf-8")
    assert atoll("client", "--join", "https://hub:8443", "--token", "atoll1.x").code == 0
    (found,) = started
    assert (found.join, found.token, list(found.data)) == (("https://hub:8443",), "atoll1.x", ["heart"])


def test_without_data_the_file_and_the_option_are_named(atoll, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = atoll("client", "--join", "https://hub:8443", "--token", "atoll1.x")
    assert said.code != 0
    assert "client.toml" in said.err and "--config" in said.err
