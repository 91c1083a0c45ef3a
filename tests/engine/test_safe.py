"""The key of a client's files: made once, sealed by its owner's, and a wrong one changes nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll.control.engine import safe
from atoll.control.engine.safe import CREDENTIAL, NAME, VARIABLE, opened, rekeyed
from atoll.control.settings import Client, Store, read
from atoll.core.errors import ConfigError, StateError
from atoll.privacy.vault import sealed

OWNER = bytes(range(32))


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def client(folder: Path, **store: Any) -> Client:
    return Client(folder=str(folder), store=Store(**store))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_key_is_made_once_and_is_its_owners_only(tmp_path: Path) -> None:
    first = opened(client(tmp_path))
    assert opened(client(tmp_path)).key == first.key
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert opened(client(tmp_path / "other")).key != first.key


def ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> dict[str, Store]:
    """The four places where an owner's key may be, all of them set."""
    (tmp_path / "owner").write_bytes(data)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / CREDENTIAL).write_bytes(data)
    script = f"import sys; sys.stdout.buffer.write({data!r})"
    return {
        "file": Store(key_file=str(tmp_path / "owner")),
        "command": Store(key_command=(sys.executable, "-c", script)),
        "variable": Store(),
        "credential": Store(),
    }


@pytest.mark.parametrize("way", ["file", "command", "variable", "credential"])
@pytest.mark.parametrize("data", [OWNER, OWNER.hex().encode() + b"\n"], ids=["bytes", "digits"])
def test_an_owners_key_seals_the_folders(
    way: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ways(tmp_path, monkeypatch, data)[way]
    if way == "variable":
        monkeypatch.setenv(VARIABLE, OWNER.hex())
    if way == "credential":
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    folder = tmp_path / "site"
    settings = Client(folder=str(folder), store=store)
    vault = opened(settings)
    vault.write(folder / "runs" / "r1.state", b"text")
    assert opened(settings).read(folder / "runs" / "r1.state") == b"text"
    for data_ in everything(folder).values():
        for secret in (vault.key, OWNER):
            assert secret not in data_ and secret.hex().encode() not in data_
    before = everything(folder)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="sealed by its owner's key"):
        opened(client(folder))
    (tmp_path / "wrong").write_bytes(bytes(32))
    with pytest.raises(StateError, match=r"is not the key that .* Nothing was changed"):
        opened(client(folder, key_file=str(tmp_path / "wrong")))
    assert everything(folder) == before


def test_a_key_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", b"short", b"g" * 64, bytes(31), bytes(33)):
        (tmp_path / "owner").write_bytes(data)
        with pytest.raises(ConfigError, match="gives no key: expected 32 bytes or 64"):
            opened(client(tmp_path / "site", key_file=str(tmp_path / "owner")))
    with pytest.raises(ConfigError, match="cannot be read"):
        opened(client(tmp_path / "site", key_file=str(tmp_path / "nowhere")))
    script = "import sys; sys.stderr.write('no smart card'); sys.exit(3)"
    with pytest.raises(ConfigError, match="ended with 3: no smart card"):
        opened(client(tmp_path / "site", key_command=(sys.executable, "-c", script)))
    with pytest.raises(ConfigError, match="gave no key"):
        opened(client(tmp_path / "site", key_command=("no-such-command-here",)))
    assert not (tmp_path / "site").exists()


def test_a_key_beside_its_files_is_sealed_once_its_owner_has_one(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    plain = opened(client(folder))
    plain.write(folder / "runs" / "r1.state", b"text")
    (tmp_path / "owner").write_text(OWNER.hex())
    vault = opened(client(folder, key_file=str(tmp_path / "owner")))
    assert vault.read(folder / "runs" / "r1.state") == b"text"
    assert plain.key.hex() not in (folder / NAME).read_text()


def test_the_owner_takes_another_key(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    for name, key in (("one", OWNER), ("two", OWNER[::-1])):
        (tmp_path / name).write_bytes(key)
    one, two = (client(folder, key_file=str(tmp_path / name)) for name in ("one", "two"))
    opened(one).write(folder / "runs" / "r1.state", b"text")
    state = (folder / "runs" / "r1.state").read_bytes()
    rekeyed(one, OWNER[::-1])
    assert opened(two).read(folder / "runs" / "r1.state") == b"text"
    assert (folder / "runs" / "r1.state").read_bytes() == state, "only the key is sealed anew"
    with pytest.raises(StateError, match="Nothing was changed"):
        opened(one)
    rekeyed(two, None)
    assert opened(client(folder)).read(folder / "runs" / "r1.state") == b"text"


PLAIN = {
    "runs/r1.secrets": b"secrets",
    "runs/r1.coins": bytes(32),
    "runs/r1.state": b"state" * 100_000,
    "answers/ab": b"answer",
}


def plain_folder(folder: Path) -> None:
    for name, data in {**PLAIN, "models/cd": b"model", "budgets/b.json": b"{}"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_what_an_earlier_version_left_is_sealed(tmp_path: Path) -> None:
    plain_folder(tmp_path)
    halves = [tmp_path / name for name in ("runs/.r1.state.12ab.part", "answers/ef.part")]
    for half in halves:
        half.write_bytes(b"half")
    vault = opened(client(tmp_path))
    for name, data in PLAIN.items():
        assert sealed((tmp_path / name).read_bytes())
        assert vault.read(tmp_path / name) == data
    assert not any(half.exists() for half in halves)
    assert (tmp_path / "models/cd").read_bytes() == b"model", "everybody's"
    assert (tmp_path / "budgets/b.json").read_bytes() == b"{}", "figures, and its owner's to read"


@pytest.mark.parametrize("after", range(len(PLAIN) + 1))
def test_a_kill_in_the_midst_of_that_loses_nothing(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_folder(tmp_path)
    done = []

    def dies(vault: Any, path: Path) -> None:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(path)
        seal(vault, path)

    seal = safe._seal
    monkeypatch.setattr(safe, "_seal", dies)
    if after < len(PLAIN):
        with pytest.raises(KeyboardInterrupt):
            opened(client(tmp_path))
    monkeypatch.setattr(safe, "_seal", seal)
    vault = opened(client(tmp_path))
    assert {name: vault.read(tmp_path / name) for name in PLAIN} == PLAIN
    assert not list(tmp_path.rglob("*.new"))


def test_a_plain_file_that_comes_later_is_somebody_elses(tmp_path: Path) -> None:
    vault = opened(client(tmp_path))
    plain_folder(tmp_path)
    assert opened(client(tmp_path)).key == vault.key
    with pytest.raises(StateError, match="is not encrypted"):
        vault.read(tmp_path / "runs" / "r1.coins")


def test_without_its_key_a_folder_is_not_begun_anew(tmp_path: Path) -> None:
    opened(client(tmp_path)).write(tmp_path / "runs" / "r1.state", b"text")
    (tmp_path / NAME).rename(tmp_path / "away")
    with pytest.raises(StateError, match=r"is missing, and r1\.state needs it: restore it"):
        opened(client(tmp_path))
    (tmp_path / "away").rename(tmp_path / NAME)
    assert opened(client(tmp_path)).read(tmp_path / "runs" / "r1.state") == b"text"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"crypto": "rot13", "salt": "", "key": ""}', '{"crypto": null}', "[]"]
)
def test_a_damaged_key_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(StateError, match=r"is damaged .* restore it"):
        opened(client(tmp_path))


def test_the_suite_of_a_clients_files(tmp_path: Path) -> None:
    vault = opened(client(tmp_path, crypto="gm"))
    vault.write(tmp_path / "runs" / "a", b"text")
    assert (tmp_path / "runs" / "a").read_bytes()[15] == 2
    assert opened(client(tmp_path)).read(tmp_path / "runs" / "a") == b"text"
    (tmp_path / "owner").write_bytes(OWNER)
    settings = client(tmp_path, crypto="gm", key_file=str(tmp_path / "owner"))
    assert opened(settings).read(tmp_path / "runs" / "a") == b"text"
    assert json.loads((tmp_path / NAME).read_text())["crypto"] == "gm"


def test_settings_say_where_the_key_is(tmp_path: Path) -> None:
    (tmp_path / "client.toml").write_text('[store]\ncrypto = "gm"\nkey_file = "keys/store"\n')
    found = read(tmp_path / "client.toml", Client).store
    assert (found.crypto, found.key_file) == ("gm", str(tmp_path / "keys" / "store"))
    (tmp_path / "client.toml").write_text('[store]\nkey = "secret"\n')
    with pytest.raises(ConfigError, match="key"):
        read(tmp_path / "client.toml", Client)
    assert os.environ.get(VARIABLE) is None
