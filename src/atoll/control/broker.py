"""An MQTT broker on this machine, for trying things: mosquitto where it is installed, else amqtt from PyPI.

Nobody gets in without a password, and each user reads and writes what it is told to only. For a plant, run
your own broker with TLS: docs/howto/read-machines.md.

    FOLDER/users.json      name -> {password, reads, writes}, for its owner only
    FOLDER/broker.conf     mosquitto's, with passwords and acl beside it
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import ConfigError, StateError
from ..privacy.private import write_private

_ROUNDS = 101  # of PBKDF2, as mosquitto_passwd does; passwords are random and long
_PLACES = ("/usr/sbin", "/usr/local/sbin")
WAIT = 20.0  # seconds for it to answer


class User(NamedTuple):
    """Who may talk to a broker, and the topics (with + and #) that it may read and write."""

    password: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def start(folder: Path, port: int, users: Mapping[str, User], log: Path) -> subprocess.Popen[bytes]:
    """Run a broker at 127.0.0.1:`port`; it answers when this returns. The caller ends the process.

    Raises ConfigError where there is no broker to run, StateError where it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = {name: user._asdict() for name, user in users.items()}
    write_private(folder / "users.json", json.dumps({"port": port, "users": told}).encode())
    command = _command(folder, port, users)
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: S603  our own command, no shell
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    until = time.monotonic() + WAIT
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            process.wait()
            raise StateError(f"the MQTT broker does not come up: see {log}")
        time.sleep(0.05)
    return process


def which() -> str:
    """The broker that would run, "" if there is none."""
    if program := mosquitto():
        return program
    return "amqtt" if find_spec("amqtt") is not None else ""


def version() -> str:
    """Of the MQTT that it speaks."""
    return "5" if mosquitto() else "3.1.1"


def mosquitto() -> str:
    """Its program, "" where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES])
    return shutil.which("mosquitto", path=path) or ""


def _command(folder: Path, port: int, users: Mapping[str, User]) -> list[str]:
    if program := mosquitto():
        return [program, "-c", str(_conf(folder, port, users))]
    if not which():
        raise ConfigError(
            "there is no MQTT broker: install mosquitto with your system's packages, or pip install amqtt"
        )
    return [sys.executable, "-m", "atoll.control.broker", str(folder)]


def _conf(folder: Path, port: int, users: Mapping[str, User]) -> Path:
    place = folder.absolute()
    passwords = [f"{name}:{_hashed(user.password)}" for name, user in users.items()]
    rights = []
    for name, user in users.items():
        rights += [f"user {name}", *(f"topic read {t}" for t in user.reads)]
        rights += [f"topic write {t}" for t in user.writes]
    lines = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous false",
        f"password_file {place / 'passwords'}",
        f"acl_file {place / 'acl'}",
        "persistence true",
        f"persistence_location {place}/",
        "max_queued_messages 0",
        "log_type error",
        *([f"user {_me()}"] if _me() else []),
    ]
    for name, text in (("passwords", passwords), ("acl", rights), ("broker.conf", lines)):
        write_private(folder / name, "\n".join([*text, ""]).encode())
    return folder / "broker.conf"


def _me() -> str:
    """Where we are root, mosquitto would become another user who cannot read our files."""
    return "root" if hasattr(os, "getuid") and os.getuid() == 0 else ""


def _hashed(password: str) -> str:
    salt = os.urandom(12)
    made = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS, 64)
    return f"$7${_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(made).decode()}"


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


# -- amqtt, in a process of its own ------------------------------------------------------------


async def _serve(told: Mapping[str, Any], folder: Path) -> None:
    from amqtt.broker import Broker
    from pwdlib import PasswordHash
    from pwdlib.hashers.argon2 import Argon2Hasher

    users = {name: User(**user) for name, user in told["users"].items()}
    hasher = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8192, parallelism=1),))
    lines = [f"{name}:{hasher.hash(user.password)}" for name, user in users.items()]
    write_private(folder / "passwords", "\n".join([*lines, ""]).encode())
    reads = {name: list(user.reads) for name, user in users.items()}
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{told['port']}"}},
            "plugins": {
                "amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(folder / "passwords")},
                "amqtt.plugins.topic_checking.TopicAccessControlListPlugin": {
                    "acl": reads,
                    "publish_acl": {name: list(user.writes) for name, user in users.items()},
                },
            },
        }
    )
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    asyncio.run(_serve(json.loads((where / "users.json").read_text("utf-8")), where))
