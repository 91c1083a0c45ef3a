"""A mosquitto of our own: started for the tests where it is installed, gone afterwards."""

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.wire.mosquitto import missing, program

__all__ = ["OPEN", "Broker", "missing", "running"]

OPEN = ("allow_anonymous true", "autosave_on_changes true")  # each change is on its disk: slow, for few
QUEUED = "max_queued_messages 0\nmax_inflight_messages 0\n"  # all that a node misses is kept for it


class Broker:
    """One broker on a port of its own. `lines`: of its settings, besides."""

    def __init__(self, folder: Path, lines: Sequence[str] = OPEN) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        text = f"listener {self.port} 127.0.0.1\npersistence true\npersistence_location {folder}/\n{QUEUED}"
        text += "autosave_interval 1\n"
        (folder / "mosquitto.conf").write_text(text + "\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it, with what it kept; it listens when this returns."""
        command = [program(), "-c", str(self.folder / "mosquitto.conf")]
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        while self.process.poll() is None:
            with socket.socket() as dial:
                if dial.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError((self.folder / "broker.log").read_text())

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


@contextmanager
def running(folder: Path, lines: Sequence[str] = OPEN) -> Iterator[Broker]:
    """A broker for the block."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    broker = Broker(folder, [*lines, "user root"])
    broker.start()
    try:
        yield broker
    finally:
        if broker.process is not None:
            broker.kill()
