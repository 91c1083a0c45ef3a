"""A PostgreSQL server of our own: started for the tests where its programs are, gone afterwards."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

Databases = Callable[[], AbstractContextManager[str]]
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")


def programs() -> Path | None:
    """The folder with initdb and postgres, the newest version's."""
    found = [p for place in PLACES for p in Path("/").glob(place[1:]) if (p / "initdb").exists()]
    on_path = shutil.which("initdb")
    found += [Path(on_path).resolve().parent] if on_path else []
    return max(found, key=lambda p: [int(n) for n in p.parent.name.split(".") if n.isdecimal()], default=None)


def missing() -> str:
    """Why there can be no server here; empty if there can be one."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "the driver is not installed: pip install psycopg[binary]"
    if os.name == "nt" or (os.geteuid() == 0 and not (shutil.which("runuser") and _account())):
        return "PostgreSQL does not run as root, and there is no account postgres to run it as"
    return ""


def _account() -> bool:
    return subprocess.run(["id", "postgres"], check=False, capture_output=True).returncode == 0


@contextmanager
def server() -> Iterator[Databases]:
    """Yields a function that makes an empty database and returns its URL; over a Unix socket only.

    Its files lie in memory where there is room for them: thousands of small ones, gone in a minute.
    """
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own in it
    folder = Path(tempfile.mkdtemp(prefix="atoll-pg-", dir=memory if os.access(memory, os.W_OK) else None))
    import psycopg

    root = os.geteuid() == 0
    us = ["runuser", "-u", "postgres", "--"] if root else []
    if root:
        shutil.chown(folder, "postgres")

    def call(program: str, *options: str) -> None:
        command = [*us, str(programs() / program), *options]
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    data = folder / "data"
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    try:
        call("initdb", "-D", str(data), "-U", "atoll", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        log = ["-l", str(folder / "log")]
        call("pg_ctl", "-D", str(data), *log, "-o", settings, "-w", "-t", "60", "start")
        try:
            numbers = count()

            def command(text: str) -> None:
                with psycopg.connect(host=str(folder), user="atoll", dbname="postgres", autocommit=True) as c:
                    c.execute(text)

            @contextmanager
            def database() -> Iterator[str]:
                name = f"atoll{next(numbers)}"
                command(f"CREATE DATABASE {name} TEMPLATE template0")
                yield f"postgresql://atoll@/{name}?host={folder}"
                command(f"DROP DATABASE {name} WITH (FORCE)")

            yield database
        finally:
            call("pg_ctl", "-D", str(data), "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
