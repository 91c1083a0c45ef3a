"""SM3 and SM4 in real processes: a site that requires them, encrypted folders, and logs without secrets."""

from __future__ import annotations

import os
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.control.engine.safe import opened
from atoll.control.settings import Client, read
from atoll.privacy import secure_sum as ss
from atoll.privacy.vault import sealed
from tests.federation.processes import JOB, Federation, Nursery
from tests.federation.test_processes import gathered, whole

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
ROUNDS = 6
SECURE = {
    **JOB,
    "rounds": ROUNDS,
    "algorithm": "fedavg",
    "exchange": {"name": "secure_sum", "largest": 4096.0},
}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def forms(secret: bytes) -> list[bytes]:
    """A secret as a log could hold it."""
    texts = [secret.hex(), secret.hex().upper(), repr(secret)[2:-1], repr(list(secret))[1:-1]]
    coded = [b64encode(secret).rstrip(b"="), urlsafe_b64encode(secret).rstrip(b"=")]
    return [secret, *(text.encode() for text in texts), *coded]


def sightings(text: bytes, secrets: set[bytes]) -> int:
    return sum(form in text for secret in secrets for form in forms(secret))


def kept(fed: Federation, run: str) -> set[bytes]:
    """Every key, seed, share and vector's name that clients hold now, and the keys of their folders."""
    found = set()
    for name in fed.clients:
        vault, path = opened(read(fed.settings(name), Client)), fed.place(name) / "runs" / f"{run}.secrets"
        found.add(vault.key)
        for secret in (ss.load(vault.read(path)) if path.exists() else {}).values():
            found |= {secret.mask, secret.share, secret.seed, secret.noise, secret.vector, secret.list}
            found |= {secret.keys.mask, secret.keys.share, secret.keys.own, *secret.mail.values()}
    return found - {b""}


def test_a_federation_in_gm(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path, SECURE, nursery=nursery) as fed:
        fed.set("client-2", policy={"crypto": ["gm"]}, store={"crypto": "gm"})
        for name in fed.names:
            fed.start(name, ATOLL_LOG="DEBUG")
        gathered(fed)
        intl = fed.submit(seed=6)  # without client-2: with the same seed nobody would sum the same again
        fed.finished(intl)
        run = fed.submit(seed=5, job={**SECURE, "crypto": "gm"})
        secrets: set[bytes] = set()
        while fed.state(run) not in ("done", "failed"):
            secrets |= kept(fed, run)
        fed.finished(run)
        whole(fed, run, ROUNDS)
        history = fed.connect().run(intl).wait().history
        said = fed.sql("select text from logs where run = ? and level = 'warning'", intl)
        fed.stop(*fed.names)
        logs = b"".join(path.read_bytes() for path in sorted((tmp_path / "logs").iterdir()))
        models = [fed.leaves(r) for r in (intl, run)]

    assert [list(r["failed"]) for r in history if "failed" in r] == [[1]] * ROUNDS
    assert "requires crypto gm, the job has intl" in history[1]["failed"][1]
    assert said == [("client-2 offers crypto gm: it takes no part in intl",)]
    assert models[0] != models[1], "one client more"
    assert len(secrets) > 60 and min(map(len, secrets)) >= 16
    assert len(logs) > 1000 and sightings(logs, secrets) == 0
    for planted in forms(min(secrets)):
        assert sightings(logs + planted, secrets) > 0, "the control"

    for name, number in (("client-1", 1), ("client-2", 2)):
        files = [p for p in (fed.place(name) / "runs").iterdir() if p.name != ".lock"]
        files += (fed.place(name) / "answers").iterdir()
        assert files
        for path in files:
            data = path.read_bytes()
            assert sealed(data) and data[15] == number, path
            assert sightings(data, secrets) == 0
