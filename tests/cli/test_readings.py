"""`atoll readings`: what a site's store holds, what was set aside and comes back, and the wipe."""

import json
import time
from pathlib import Path

import pytest

from atoll.control.engine import sensing
from atoll.control.engine.safe import opened as vault_of
from atoll.control.settings import Client, read
from atoll.sense.reading import Reading
from atoll.sense.store import Store
from tests.engine.test_sensing import CONTRACT, LATE, SETTINGS

NOW = time.time()
PRIVATE = 7777.25


def said(i: int, **over: object) -> Reading:
    return Reading("a", NOW - 100 + i, str(i), {"heat": float(i), "load": 5.0, **over})


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client's folder with ten readings, three labels, of which one waits, and two set aside."""
    monkeypatch.chdir(tmp_path)
    Path("press.toml").write_text(CONTRACT)
    Path("client.toml").write_text(SETTINGS + LATE)
    settings = read(Path("client.toml"), Client)
    with running(settings) as store:
        store.take([*(said(i) for i in range(10)), said(10, heat=PRIVATE)], NOW)
        labels = [Reading("a", NOW, i, {"result": "yes"}) for i in ("3", "4", "77")]
        store.label([*labels, Reading("a", NOW, "5", {"result": "perhaps"})], NOW)
    return settings


def running(settings: Client) -> Store:
    """The store as the client that runs has it open."""
    return sensing.opened(settings, "press", vault_of(settings))[0]


@pytest.mark.parametrize("runs", [False, True])
def test_status_counts_and_shows_no_value(atoll, client: Client, runs: bool) -> None:
    beside = running(client) if runs else None
    said = atoll("readings", "status", "--json")
    assert said.code == 0
    (one,) = json.loads(said.out)["sources"].values()
    wanted = {"readings": 10, "labelled": 2, "unlabelled": 8, "labels_waiting": 1, "quota": 10**9, "days": 30}
    assert {key: one[key] for key in wanted} == wanted
    assert one["aside"] == {
        "column 'heat' lies outside -40 to 150": 1,
        "column 'result' is no flag: true or false": 1,
    }
    assert one["bytes"] > 4096
    assert one["oldest"] == one["newest"] == pytest.approx(NOW)
    shown = atoll("readings", "status", "press").out
    assert shown.splitlines()[1].split()[:6] == ["press", "10", "2", "8", "1", "2"]
    assert "lies outside -40 to 150" in shown
    assert "读数" in atoll("readings", "status", "--lang", "zh").out
    if beside is not None:
        beside.close()


def test_what_was_set_aside_is_shown_without_its_values_unless_asked(atoll, client: Client) -> None:
    plain = atoll("readings", "aside").out + atoll("readings", "aside", "--json").out
    assert "lies outside" in plain and "no flag" in plain
    assert str(PRIVATE) not in plain and "perhaps" not in plain
    (one,) = json.loads(atoll("readings", "aside", "--reason", "outside", "--json", "--values").out)["aside"]
    assert one["values"]["heat"] == PRIVATE
    assert (one["source"], one["device"], one["id"], one["kind"]) == ("press", "a", "10", "reading")
    assert f"heat={PRIVATE}" in atoll("readings", "aside", "--values").out


@pytest.mark.parametrize("runs", [False, True])
def test_a_mended_contract_takes_back_what_was_set_aside(atoll, client: Client, runs: bool) -> None:
    beside = running(client) if runs else None
    assert atoll("readings", "replay").out.split()[-3:] == ["press", "0", "2"]
    Path("press.toml").write_text(CONTRACT.replace("high = 150", "high = 9000"))
    found = json.loads(atoll("readings", "replay", "press", "--reason", "outside", "--json").out)
    assert found == {"sources": {"press": {"stored": 1}}}
    if beside is not None:
        assert beside.take([said(20)], NOW) == {"stored": 1}
        beside.close()
    with running(client) as store:
        assert [r.id for r in store.readings()] == [*map(str, range(11)), *(["20"] if runs else [])]
        assert [a.id for a in store.aside()] == ["5"]


@pytest.mark.parametrize("runs", [False, True])
def test_a_wipe_asks_and_leaves_nothing(atoll, client: Client, runs: bool) -> None:
    beside = running(client) if runs else None
    assert "--yes" in atoll("readings", "wipe", "press").err
    assert "--all" in atoll("readings", "wipe").err
    assert atoll("readings", "wipe", "press", "--all").code == 2
    assert len(list(Path("sense").iterdir())) > 1
    watched = Path("client.toml").read_text() + '[watch]\nsource = "press"\n'
    Path("client.toml").write_text(watched)
    kept = Path("watch") / "rows" / "0000000000000004.4"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"a window")
    assert atoll("readings", "wipe", "press", "--yes").out == "wiped: press\n"
    assert not kept.exists()
    assert list(Path("sense").iterdir()) == []
    if beside is not None:
        assert beside.take([said(20)], NOW) == {"stored": 1}
        beside.close()
    (one,) = json.loads(atoll("readings", "status", "--json").out)["sources"].values()
    assert one["readings"] == int(runs)
    assert json.loads(atoll("readings", "wipe", "--all", "--yes", "--json").out) == {
        "wiped": ["press"] if runs else []
    }


def test_wrong_places_and_names_say_what_to_do(atoll, client: Client, tmp_path: Path) -> None:
    assert "did you mean 'press'" in atoll("readings", "status", "pres").err
    assert "--config FILE.toml" in atoll("readings", "status", "--folder", "elsewhere").err
    other = tmp_path / "other"
    other.mkdir()
    (other / "client.toml").write_text(SETTINGS)
    said = atoll("readings", "status", "--config", other / "client.toml")
    assert said.code == 1 and "no client's folder" in said.err
    assert not (other / "store.key").exists()
    (other / "client.toml").write_text("")
    assert "[sources.NAME]" in atoll("readings", "status", "--config", other / "client.toml").err


def test_yes_is_typed_at_a_terminal(atoll, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert atoll("readings", "wipe", "press").code == 1
    assert Path("sense/press.db").exists()
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    assert atoll("readings", "wipe", "press").code == 0
    assert not Path("sense/press.db").exists()
