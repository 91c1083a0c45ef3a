"""What the command line says of crypto suites, and the key of a client's files."""

from __future__ import annotations

from pathlib import Path

from atoll.control.engine.safe import opened
from atoll.control.settings import Client, Store, read

TOML = """
name = "north"
join = ["https://hub.example:8443"]
[data.rows]
train = "rows.csv"
target = "y"
[store]
key_file = "one"
"""


def test_a_run_says_which_suite_hides_updates(atoll, project: Path) -> None:
    words = ("simulate", "job.toml", "--set", "rounds=1", "--set", "exchange=secure_sum")
    said = atoll(*words, "--set", "crypto=gm")
    assert said.code == 0
    assert "crypto: gm (SM3, SM4; key agreement X25519, signatures ECDSA P-256, not SM2)" in said.err
    assert "crypto:" not in atoll(*words).err
    refused = atoll("simulate", "job.toml", "--set", "crypto=gm")
    assert refused.code != 0
    assert "$.crypto" in refused.err and "set exchange to secure_sum" in refused.err


def test_another_key_for_a_clients_files(atoll, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text({"one": "a1", "two": "b2"}[name] * 32)
    file = tmp_path / "client.toml"
    file.write_text(TOML)
    kept = tmp_path / "runs" / "r1.state"
    opened(read(file, Client)).write(kept, b"text")
    said = atoll("rekey", "--config", file, "--key-file", tmp_path / "two")
    assert (said.code, said.out) == (0, "its files stay; their key is sealed anew\n")
    assert (
        opened(Client(folder=str(tmp_path), store=Store(key_file=str(tmp_path / "two")))).read(kept)
        == b"text"
    )
    wrong = atoll("rekey", "--config", file, "--key-file", tmp_path / "two")
    assert wrong.code != 0
    assert "Nothing was changed" in wrong.err
    none = atoll("rekey", "--config", file, "--key-file", tmp_path / "nowhere")
    assert none.code != 0
    assert "cannot be read" in none.err or "Nothing was changed" in none.err
