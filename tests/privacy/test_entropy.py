"""Real runs draw from the system: not from the job's seed, and not twice the same after a fork."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import atoll as at
from atoll.control.engine.seats import coins, taken
from atoll.core.edge import Task
from atoll.core.rng import Rng
from atoll.learn.exchange import Seat
from atoll.learn.local import Local
from atoll.learn.secure import SecureSum, Step
from atoll.privacy.keys import Authority
from atoll.privacy.vault import Vault
from atoll.run import _drawn
from tests.privacy.sitting import LABEL, Sitting, vectors
from tests.wire.pki import member
from tests.worlds.test_secure_sums import JOB, SITES

FORKED = """
import io, json, os, secrets, sys
from pathlib import Path
import numpy as np
from atoll.learn.exchange import Seat
from atoll.privacy import secure_sum as ss
from atoll.privacy.roster import Label
from atoll.privacy.vault import Vault

seat, vault, control = Seat(secrets.token_bytes), Vault(bytes(32)), np.random.default_rng(7)
def drawn():
    label, made = Label("plant", "r1", 0, 0), io.BytesIO()
    secret = ss.begin(label, 0, seat.draw)
    with vault.sealing(made, Path("runs/a")) as sink:
        sink.write(b"text")
    kept = [secret.mask, secret.share, secret.seed, secret.noise, seat.draw(32), made.getvalue()[16:48]]
    return [x.hex() for x in kept], control.bytes(32).hex()
drawn()  # whatever is set up once is, before the fork
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, json.dumps(drawn()).encode())
    os._exit(0)
os.close(writer)
mine = drawn()
print(json.dumps([mine, json.loads(os.fdopen(reader).read())]))
os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_fork_draws_for_itself() -> None:
    """Control: a generator that is seeded in the process gives parent and child the same."""
    done = subprocess.run([sys.executable, "-c", FORKED], check=True, capture_output=True, text=True)
    (parent, seeded), (child, seeded_too) = json.loads(done.stdout)
    assert len({*parent, *child}) == 12
    assert seeded == seeded_too


def keys_of(seat: Seat, seed: int) -> Any:
    """What a client answers to the first step of a secure sum, and what it keeps."""
    job = JOB.replace(exchange=at.secure_sum())
    local = Local(job.learner, job.trained, {0: SITES[0]}, {}, Rng.of(seed), seat=seat)
    note = msgspec.msgpack.encode(Step("keys", 0, 0, 1.0, 2, {0: ([0], b"")}))
    task = Task(0, Rng.of(seed), (0,), (-1,), at.Update.of({"w": np.zeros(3)}), want="note", note=note)
    SecureSum().reply(local, task)
    secret = seat.secrets[0]
    return {secret.mask, secret.share, secret.seed, secret.noise, secret.keys.mask, secret.keys.own}


def test_the_same_job_twice_has_other_keys(tmp_path: Path) -> None:
    """Control: simulated clients draw from the seed, and a simulation repeats itself."""
    authority = Authority.new("plant", now=time.time())
    identity, found = member(authority, "client", "c", now=time.time()), []
    for life in ("one", "two"):
        folder = tmp_path / life
        identity.save(folder / "identity")
        seat = taken(folder, "r1", authority.root, "plant", 2, Vault(bytes(32)))
        found.append(keys_of(seat, seed=5))
        assert coins(folder, "r1", Vault(bytes(32))) == coins(folder, "r1", Vault(bytes(32)))
    assert len(found[0] | found[1]) == 12
    assert coins(tmp_path / "one", "r1", Vault(bytes(32))) != coins(tmp_path / "two", "r1", Vault(bytes(32)))
    assert keys_of(Seat(_drawn(5)), 5) == keys_of(Seat(_drawn(5)), 5)


def test_how_long_messages_are_says_nothing_of_what_is_in_them() -> None:
    """Keys and vectors of all kinds, also of zeros and of the largest numbers: the same sizes."""
    size, most = 40, (1 << 32) - 1
    kinds: dict[str, Any] = {
        "zeros": np.zeros((5, size), np.uint64),
        "largest": np.full((5, size), most, np.uint64),
        "any": vectors(5, size, 32, seed=1),
    }
    found = set()
    for crypto in ("intl", "gm"):
        for seed in range(3):
            for x in kinds.values():
                sitting = Sitting(
                    5, x, seed=seed, label=replace(LABEL, crypto=crypto), lost={"mask": [3]}
                ).run()
                notes = (sitting.shared, sitting.mail, sitting.signatures, sitting.opened)
                found.add(tuple(len(note) for of in notes for _, note in sorted(of.items())))
                found.add(tuple(x.nbytes for _, x in sorted(sitting.hidden.items())))
    assert len(found) == 2, found
