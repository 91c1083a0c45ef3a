"""What a client keeps is opened by its key, whole and unchanged, or not at all."""

from __future__ import annotations

import io
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import ProtocolError, StateError
from atoll.privacy import vault as vaults
from atoll.privacy.hazmat.suite import GM, INTL, SUITES, Suite
from atoll.privacy.vault import CHUNK, MAGIC, Vault, sealed

KEY = bytes(range(32))
SIZES = [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5]
HEAD = len(MAGIC) + 33
each = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)


def text(size: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(1000)) * (size // 1000 + 1)


@each
@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read(suite: Suite, size: int, tmp_path: Path) -> None:
    vault, path, data = Vault(KEY, suite), tmp_path / "runs" / "r1.state", text(size)[:size]
    vault.write(path, data)
    assert vault.read(path) == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert sealed(path.read_bytes())
    chunks = max(1, -(-size // CHUNK))
    assert path.stat().st_size == HEAD + size + 16 * chunks
    if size > 100:
        assert data[:50] not in path.read_bytes()


@given(
    st.lists(st.integers(0, CHUNK + 50), max_size=6),
    st.lists(st.tuples(st.integers(0, 3 * CHUNK), st.integers(0, CHUNK + 9)), max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_written_in_any_pieces_and_read_in_any(pieces: list[int], places: list[tuple[int, int]]) -> None:
    path, vault, made = Path("answers/x"), Vault(KEY), io.BytesIO()
    data = os.urandom(sum(pieces))
    with vault.sealing(made, path) as sink:
        at = 0
        for size in pieces:
            sink.write(data[at : at + size])
            at += size
    body = made.getvalue()
    key = vault._key(INTL, path, body[HEAD - 32 : HEAD])
    file = vaults._Opened(io.BytesIO(body), INTL, key, "x")
    for place, size in places:
        file.seek(place)
        assert file.read(size) == data[place : place + size]
    assert file.seek(0, os.SEEK_END) == len(data)


@each
def test_the_same_bytes_twice_are_never_the_same_file(suite: Suite, tmp_path: Path) -> None:
    """A fresh key for each writing: a counter is then no nonce that comes twice."""
    vault, path = Vault(KEY, suite), tmp_path / "runs" / "a"
    seen = set()
    for _ in range(8):
        vault.write(path, b"the same")
        body = path.read_bytes()
        seen |= {body[HEAD - 32 : HEAD], body[HEAD:]}
    assert len(seen) == 16


@each
@pytest.mark.parametrize("size", [10, 2 * CHUNK + 5])
def test_a_file_that_was_touched_is_told(suite: Suite, size: int, tmp_path: Path) -> None:
    vault, path = Vault(KEY, suite), tmp_path / "runs" / "a"
    vault.write(path, text(size)[:size])
    good = path.read_bytes()
    step = CHUNK + 16
    wrong = {
        "salt": flipped(good, HEAD - 1),
        "suite": flipped(good, len(MAGIC), 3),
        "first byte": flipped(good, HEAD),
        "last byte": flipped(good, len(good) - 1),
        "cut": good[:-1],
        "only its head": good[:HEAD],
        "longer": good + b"x",
    }
    if size > CHUNK:
        head, one, two, last = (good[a:b] for a, b in pairwise([0, *range(HEAD, len(good), step), len(good)]))
        wrong |= {
            "cut after a chunk": head + one,
            "chunks swapped": head + two + one + last,
            "a chunk twice": head + one + one + two + last,
            "one left out": head + two + last,
            "the last first": head + last + one + two,
        }
    for data in wrong.values():
        path.write_bytes(data)
        with pytest.raises(StateError, match="was changed, is cut, or was encrypted with another key"):
            vault.read(path)
    path.write_bytes(good)
    assert vault.read(path) == text(size)[:size], "the control"


def flipped(data: bytes, place: int, bits: int = 1) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def test_another_key_name_or_folder_opens_nothing(tmp_path: Path) -> None:
    vault, path = Vault(KEY), tmp_path / "runs" / "a"
    vault.write(path, b"text")
    with pytest.raises(StateError, match="another key"):
        Vault(bytes(32)).read(path)
    for other in (tmp_path / "runs" / "b", tmp_path / "answers" / "a"):
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
        with pytest.raises(StateError, match="was changed"):
            vault.read(other)
    with pytest.raises(FileNotFoundError):
        vault.read(tmp_path / "runs" / "c")


@pytest.mark.parametrize("data", [b"", b"plain", MAGIC, MAGIC + b"\x09" + bytes(32) + bytes(40)])
def test_a_plain_file_is_not_taken(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(StateError, match="is not encrypted as this client keeps its files"):
        Vault(KEY).read(tmp_path / "a")


def test_each_suite_reads_what_the_other_wrote(tmp_path: Path) -> None:
    Vault(KEY, GM).write(tmp_path / "a", b"text")
    assert Vault(KEY, INTL).read(tmp_path / "a") == b"text"


def test_of_a_long_file_little_is_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path, vault, size = tmp_path / "answers" / "a", Vault(KEY), 24 << 20
    path.parent.mkdir()
    tracemalloc.start()
    with path.open("wb") as out, vault.sealing(out, path) as sink:
        for _ in range(size >> 20):
            sink.write(bytes(1 << 20))
    with vault.opened(path) as file:
        for _ in range(size >> 20):
            assert len(file.read(1 << 20) or b"") == 1 << 20
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6 << 20


def test_golden_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The format, written out: what an earlier version sealed must open."""
    monkeypatch.setattr(vaults.os, "urandom", lambda n: bytes(range(n)))
    made = io.BytesIO()
    with Vault(KEY).sealing(made, Path("runs/r1.state")) as sink:
        sink.write(b"atoll")
    body = made.getvalue()
    assert body[:HEAD] == b"atoll sealed 1\n\x01" + bytes(range(32))
    key = INTL.derived(KEY, "atoll file 1", "intl", "runs/r1.state", bytes(range(32)))
    assert INTL.decrypted(key, bytes(7) + bytes(4) + b"\x01", body[HEAD:]) == b"atoll"
    assert body[HEAD:].hex() == "840d77cdd9210b56324948d9efdead77aeaa7e0ff5"
    with pytest.raises(ProtocolError):
        INTL.decrypted(key, bytes(12), body[HEAD:])
