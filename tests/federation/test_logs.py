"""What members write into their logs: where they are; and however much they say, no key, token or norm."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

import atoll as at
from atoll.control.config import parse
from atoll.control.engine.safe import opened
from atoll.control.settings import Client, read
from atoll.core import edge
from atoll.core.update import Update
from tests.federation import test_suites as suites
from tests.federation.processes import JOB, Federation, Nursery
from tests.federation.test_processes import gathered

pytestmark = suites.pytestmark
PROMISED = {**JOB, "algorithm": "fedavg", "privacy": {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0}}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def norms(monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]) -> list[float]:
    """The lengths of all updates of the same job in a simulation, before and after the clip."""
    found: list[float] = []
    norm, wire = Update.norm, edge.wire

    def told(update: Update) -> float:
        found.append(norm(update))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Update, "norm", told)
        patch.setattr(edge, "wire", lambda update: (told(update), wire(update))[1])
        file = parse({key: value for key, value in table.items() if key != "exchange"})
        at.simulate(file.job, file.sites(), seed=5)
    return [value for value in found if abs(value - 1.0) > 1e-3]  # the clip is no secret


def lengths(text: str, norms: list[float]) -> list[str]:
    """The numbers in a text that are a norm, as far as they are written out."""
    told = set(re.findall(r"\d+\.\d{3,}", text))
    return [n for n in told for x in norms if abs(float(n) - x) < 0.51 * 10.0 ** -len(n.partition(".")[2])]


def keys(fed: Federation) -> set[bytes]:
    """The keys, coins and tokens of members, the authority's key and the run's secret at the coordinator."""
    found = {str(json.loads((fed.place("coordinator") / "admin.json").read_text())["token"]).encode()}
    for path in fed.folder.rglob("*key.pem"):
        key: Any = serialization.load_pem_private_key(path.read_bytes(), None)
        lines = path.read_bytes().split(b"\n")[1:-2]
        found |= {key.private_numbers().private_value.to_bytes(32, "big"), *lines}
    for name in fed.clients:
        vault = opened(read(fed.settings(name), Client))
        found |= {vault.key, *(vault.read(path) for path in fed.place(name).glob("runs/*.coins"))}
        found |= {vault.read(path)[:32] for path in fed.place(name).glob("runs/sums")}
    with fed.store() as store:
        states = [store.journal(run["id"], "secret").resume().state for run in store.runs()]
    return found | {state for state in states if state is not None}


@pytest.mark.parametrize("table", [suites.SECURE, PROMISED], ids=["secure_sum", "promise"])
def test_no_key_token_or_norm_is_in_any_log(
    tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]
) -> None:
    updates = norms(monkeypatch, table)
    with Federation(tmp_path, JOB, nursery=nursery, edges=0) as fed:
        for name in fed.names:
            fed.start(name, ATOLL_LOG="DEBUG")
        gathered(fed)
        run = fed.submit(job=table, seed=5)
        secrets: set[bytes] = set()
        while fed.state(run) not in ("done", "failed"):
            secrets |= suites.kept(fed, run)
        fed.finished(run)
        told = json.dumps(fed.connect().run(run).logs()) + json.dumps(fed.connect().events(0)[0])
        fed.stop(*fed.names)
        secrets |= keys(fed)
    logs = {path.name: path.read_text() for path in sorted((tmp_path / "logs").iterdir())}
    logs["what the coordinator shows"] = told
    assert len(secrets) > 10 and len(updates) > 5 and len(logs) > 4
    assert all("DEBUG" in text for name, text in logs.items() if name.endswith(".log"))
    for name, text in logs.items():
        assert suites.sightings(text.encode(), secrets) == 0, name
        assert lengths(text, updates) == [], name
    assert lengths(f"an update of {updates[0]:.4f}", updates), "the control"
    assert suites.sightings(suites.forms(min(secrets))[1], secrets) > 0, "the control"


def test_members_say_where_they_are_and_whose_folder_it_is(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path, JOB, nursery=nursery, edges=1) as fed:
        fed.start_all()
        gathered(fed)
        token = fed.connect().token("client", "late")
        ports = json.loads((fed.place("coordinator") / "ports.json").read_text())
        words = [sys.executable, "-m", "atoll", "client"]
        place = fed.place("client-1")
        shutil.copytree(place, tmp_path / "late", ignore=shutil.ignore_patterns("identity"))
        late = [*words, "--config", str(place / "client.toml"), "--folder", str(tmp_path / "late")]
        late += ["--name", "late", "--join", ports["api"], "--token", token]
        lost = subprocess.run(late, capture_output=True, text=True, check=False)
        fed.stop(*reversed(fed.names))
        logs = {name: (fed.folder / "logs" / f"{name}.log").read_text() for name in fed.names}
        other = [*words, "--config", str(place / "client.toml"), "--name", "client-2"]
        wrong = subprocess.run(other, capture_output=True, text=True, check=False)
    door = ports["listen"].rpartition(":")[2]
    for said in (f":{door}, gRPC on port {ports['grpc']}", f"console and API: {ports['api']}"):
        assert said in logs["coordinator"], said
    assert "admin.json" in logs["coordinator"]
    assert "edge-a of federation" in logs["edge-a"]
    for name in ("edge-a", *fed.clients):
        assert "INFO atoll.transport: connected to https://" in logs[name], name
    assert wrong.returncode == lost.returncode == 1
    assert "is client-1's, and the settings name client-2: each member needs a folder" in wrong.stderr
    assert f"{ports['api']} is no parent of members: is it another service's address?" in lost.stderr
