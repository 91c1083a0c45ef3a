"""A PostgreSQL server that is away: waited for at the start, noticed on a connection that went silent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from atoll.control.engine import coordinator
from atoll.control.engine.coordinator import Coordinator
from atoll.control.settings import Server
from atoll.control.store import Store
from atoll.control.store.disk import AwayError
from atoll.control.store.engine import connect
from atoll.core.errors import StateError


@contextlib.contextmanager
def over_tcp(url: str) -> Iterator[str]:
    """The same database by a TCP address, whose bytes we bring to its Unix socket."""
    made = make_url(url)
    there = f"{made.query['host']}/.s.PGSQL.5432"
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, far = door.accept()[0], socket.socket(socket.AF_UNIX)
                    far.connect(there)
                    for a, b in ((near, far), (far, near)):
                        threading.Thread(target=pumped, args=(a, b), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"postgresql://atoll@127.0.0.1:{door.getsockname()[1]}/{made.database}"


def pumped(a: socket.socket, b: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := a.recv(1 << 16):
            b.sendall(data)
    with contextlib.suppress(OSError):
        b.shutdown(socket.SHUT_RDWR)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="these are options of Linux")
@pytest.mark.parametrize(("more", "silent"), [("", 30_000), ("?tcp_user_timeout=7000", 7000)])
def test_a_connection_that_goes_silent_is_given_up(
    postgres_database: Callable[[], str], tmp_path: Path, more: str, silent: int
) -> None:
    with over_tcp(postgres_database()) as url:
        engine = connect(url + more, tmp_path)
        with engine.connect() as conn, socket.socket(fileno=fileno(conn)) as line:
            said = [
                line.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    *(socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL),
                    socket.TCP_KEEPCNT,
                )
            ]
            assert said == [silent, 15, 5, 3]
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        engine.dispose()


def fileno(conn: Any) -> int:
    """A descriptor of our own for a connection's socket."""
    number = conn.connection.dbapi_connection.fileno()
    return socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM).detach()


def until(found: Callable[[], Any]) -> None:
    """Wait for it, 30 seconds at most."""
    end = time.monotonic() + 30
    while not found() and time.monotonic() < end:
        time.sleep(0.05)
    assert found()


def settings(folder: Path, url: str) -> Server:
    doors = {"listen": "127.0.0.1:0", "grpc": "", "api": "127.0.0.1:0"}
    return Server(folder=str(folder), store=url, **doors)


def test_a_server_that_does_not_answer_yet_is_waited_for(
    postgres_database: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server is stopped, so that it takes connections and says nothing; then it goes on."""
    monkeypatch.setattr(coordinator, "AGAIN", 0.2)
    url = postgres_database()
    data = Path(str(make_url(url).query["host"])) / "data"
    leader = int((data / "postmaster.pid").read_text().split()[0])

    async def main() -> None:
        node = Coordinator(settings(tmp_path, f"{url}&connect_timeout=2"))
        serving = asyncio.ensure_future(node.serve())
        try:
            await asyncio.to_thread(until, lambda: caplog.records or serving.done())
            assert not serving.done(), serving.exception()
        finally:
            leader_goes_on()
        await asyncio.to_thread(until, lambda: (tmp_path / "ports.json").exists() or serving.done())
        await node.close()
        await serving

    def leader_goes_on() -> None:
        os.kill(leader, signal.SIGCONT)

    with caplog.at_level(logging.WARNING, "atoll.coordinator"):
        os.kill(leader, signal.SIGSTOP)
        try:
            asyncio.run(main())
        finally:
            leader_goes_on()
    assert "cannot be reached" in caplog.messages[0] and "tried again, for another" in caplog.messages[0]


def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return f"postgresql://atoll:kelp@127.0.0.1:{port}/atoll"


def test_it_is_waited_for_as_long_as_stated_and_not_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr(coordinator, "AWAY", 1.0)
    monkeypatch.setattr(coordinator, "AGAIN", 0.2)
    began = time.monotonic()
    with pytest.raises(StateError, match=r"cannot be reached .*check its URL. It was waited for 1 s") as told:
        asyncio.run(Coordinator(settings(tmp_path, nowhere())).serve())
    assert 1.0 <= time.monotonic() - began < 10.0
    assert "kelp" not in str(told.value)


def test_one_that_waits_can_be_told_to_stop(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")

    async def main() -> None:
        node = Coordinator(settings(tmp_path, nowhere()))
        serving = asyncio.ensure_future(node.serve())
        await asyncio.sleep(0.5)
        await node.close()
        await asyncio.wait_for(serving, 5)

    asyncio.run(main())


def test_one_that_answers_and_refuses_is_not_waited_for(
    postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    url = make_url(postgres_database()).set(database="nowhere").render_as_string(hide_password=False)
    with pytest.raises(StateError, match="check its URL") as told:
        Store.open(url, tmp_path)
    assert not isinstance(told.value, AwayError)
