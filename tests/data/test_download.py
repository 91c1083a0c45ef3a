"""The downloader against a real local server: whole or nothing, never more than declared."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atoll.core.errors import DataError
from atoll.data.fetch import File, download, locate

BODY = bytes(range(256)) * 1000


class Publisher(BaseHTTPRequestHandler):
    """Serves BODY well at /good and badly elsewhere."""

    def do_GET(self) -> None:
        body = {"/good": BODY, "/short": BODY, "/long": BODY + b"x", "/wrong": BODY[::-1]}.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/long":  # an endless answer has no length
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/short" else body)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture(scope="module")
def publisher() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def file_at(url: str) -> File:
    return File("rows.bin", url, len(BODY), hashlib.sha256(BODY).hexdigest())


def test_a_good_file_arrives_whole(publisher: str, tmp_path: Path) -> None:
    path = download(file_at(f"{publisher}/good"), tmp_path / "set" / "rows.bin")
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["rows.bin"]


@pytest.mark.parametrize(
    ("page", "words"),
    [("short", "try again"), ("long", "more came"), ("wrong", "SHA-256"), ("absent", "404")],
)
def test_a_bad_file_leaves_nothing(publisher: str, tmp_path: Path, page: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        download(file_at(f"{publisher}/{page}"), tmp_path / "rows.bin")
    assert not list(tmp_path.iterdir())


def test_a_bad_file_never_replaces_a_good_one(publisher: str, tmp_path: Path) -> None:
    (tmp_path / "rows.bin").write_bytes(b"kept")
    with pytest.raises(DataError):
        download(file_at(f"{publisher}/wrong"), tmp_path / "rows.bin")
    assert (tmp_path / "rows.bin").read_bytes() == b"kept"


def test_own_folder_then_cache_then_publisher(publisher: str, tmp_path: Path) -> None:
    env = {"ATOLL_DATA": str(tmp_path / "own"), "ATOLL_CACHE": str(tmp_path / "cache")}
    file = file_at(f"{publisher}/good")
    assert locate("set", [file], env)["rows.bin"] == tmp_path / "cache" / "set" / "rows.bin"
    gone = file_at(f"{publisher}/absent")
    assert locate("set", [gone], env)["rows.bin"].read_bytes() == BODY  # from the cache
    (tmp_path / "own" / "set").mkdir(parents=True)
    (tmp_path / "own" / "set" / "rows.bin").write_bytes(b"mine")
    assert locate("set", [gone], env)["rows.bin"].read_bytes() == b"mine"


def test_without_any_copy_the_error_says_what_to_put_where(publisher: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        locate("set", [file_at(f"{publisher}/absent")], {"ATOLL_CACHE": str(tmp_path)})
    assert "$ATOLL_DATA/set" in str(refused.value)
    assert f"{publisher}/absent" in str(refused.value)
