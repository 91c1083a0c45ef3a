"""A mosquitto of our own: started for the tests where the program is, gone afterwards.

with Mosquitto(folder) as broker:
    broker.kill(); broker.start()      # kill -9 and again, at the same port
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from atoll.control.broker import mosquitto as program


def missing() -> str:
    """Why there can be no broker here; empty if there can be one."""
    if not program():
        return "mosquitto is not installed (Debian: apt-get install mosquitto)"
    try:
        import paho.mqtt  # noqa: F401
    except ImportError:
        return "the client is not installed: pip install 'atoll-fl[mqtt]'"
    return ""


class Mosquitto:
    """A broker on loopback, `port` its own. `users`: passwords by name, nobody else gets in; `acl`: lines
    of its access list; `tls`: (certificate, key) files. Its log stands in `folder`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        acl: str = "",
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.users = dict(users or {})
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", f"log_dest file {folder / 'log'}"]
        lines += [
            "max_packet_size 131072",
            "set_tcp_nodelay true",
            f"allow_anonymous {'false' if users else 'true'}",
        ]
        if users:
            lines.append(f"password_file {folder / 'passwords'}")
            self._passwords()
        if acl:
            (folder / "acl").write_text(acl)
            (folder / "acl").chmod(0o600)
            lines.append(f"acl_file {folder / 'acl'}")
        if tls:
            lines += [f"certfile {tls[0]}", f"keyfile {tls[1]}"]
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join([*lines, "user root", ""]))
        self._process: subprocess.Popen[bytes] | None = None

    def _passwords(self) -> None:
        file = self.folder / "passwords"
        file.touch(0o600)
        for name, password in self.users.items():
            subprocess.run(["mosquitto_passwd", "-b", str(file), name, password], check=True)

    def start(self) -> None:
        """Start it; it accepts when this returns."""
        assert self._process is None
        with (self.folder / "errors").open("ab") as errors:
            command = [program(), "-c", str(self._config)]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, (self.folder / "errors").read_text()
                assert time.monotonic() < end, "the broker does not start"
                self._process.poll()

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stand(self, *, still: bool) -> None:
        """Have it do nothing, or go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if still else signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGTERM)
