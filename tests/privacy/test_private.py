"""Keys, tokens and papers are whole or absent wherever their writer is killed, and it goes on from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.control.engine.safe import opened
from atoll.control.remote.where import read
from atoll.control.settings import Client
from atoll.privacy.authority import Authority
from atoll.privacy.keys import Identity
from atoll.wire import failpoint

POINTS = sorted(name for name in failpoint.NAMES if name.startswith("private."))
MANY = 1000

# What members do with private files, each step such that a later life goes on with what it finds.
LIFE = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from atoll.control.engine import pki, safe
from atoll.control.engine.founding import found_authority
from atoll.control.remote.where import Where, write
from atoll.control.settings import Client, Server
from atoll.privacy.certificate import request
from atoll.privacy.keys import Authority, Identity
from atoll.transport import enrol
from atoll.wire import failpoint

here, now = Path(sys.argv[1]), 1e9
if sys.argv[2:]:  # count
    failpoint.arm(",".join(f"{n}:{MANY}:kill" for n in failpoint.NAMES))
server = Server(folder=str(here / "coordinator"), federation="f", names=("localhost",))
found_authority(server, SimpleNamespace(tokens=list), now=now)  # of a store that holds none
authority = Authority.open(here / "coordinator" / "pki" / "authority")
member = here / "member"
try:
    mine = Identity.open(member)
except Exception:
    key = enrol._pending(member)
    chain = authority.sign(request(key, "f", "client", "c"), role="client", name="c", now=now)
    mine = Identity(key, chain, authority.root, ("https://localhost",)).save(member)
mine.renewed(authority.sign(request(mine.key, "f", "client", "c"), role="client", name="c", now=now + 9))
vault = safe.opened(Client(folder=str(here / "client"), name="c"))
kept = here / "client" / "runs" / "r.state"
if kept.exists():
    assert vault.read(kept) == b"state"
vault.write(kept, b"state")
write(here / "operator.json", Where("https://localhost", "token"))
if sys.argv[2:]:
    print(*(f"{n} {MANY - p.left}" for n, p in failpoint._armed.items() if n.startswith("private.")), sep=",")
""".replace("MANY", str(MANY))


def lived(folder: Path, *more: str, armed: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, failpoint.VARIABLE: armed}
    return subprocess.run(
        [sys.executable, "-c", LIFE, str(folder), *more], capture_output=True, text=True, check=False, env=env
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_at_each_step_of_each_private_file_a_life_goes_on(tmp_path: Path) -> None:
    calm = lived(tmp_path / "calm", "count")
    assert calm.returncode == 0, calm.stderr
    reached = {name: int(count) for name, count in (p.split() for p in calm.stdout.strip().split(","))}
    assert set(reached) == set(POINTS)
    assert min(reached.values()) == max(reached.values()) >= 10
    for number in range(1, max(reached.values()) + 1):
        point = POINTS[number % len(POINTS)]  # each file at one step, and each step at several files
        folder = tmp_path / f"{number}"
        killed = lived(folder, armed=f"{point}:{number}:kill")
        assert killed.returncode == -9, (point, number, killed.stderr)
        whole(folder)
        again = lived(folder)
        assert again.returncode == 0, (point, number, again.stderr)
        Authority.open(folder / "coordinator" / "pki" / "authority")
        Identity.open(folder / "member")
        assert opened(Client(folder=str(folder / "client"), name="c")).read(folder / "client/runs/r.state")


def whole(folder: Path) -> None:
    """No file under its own name was written by half."""
    for path in folder.rglob("*.pem"):
        assert path.read_text().endswith("-----\n") or path.name == "chain.pem", path  # a root needs no chain
    for path in folder.rglob("operator.json"):
        assert read(path).url == "https://localhost"
    for path in (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"):
        assert path.stat().st_mode & 0o077 == 0, path
