"""A client's seat in secure sums: its member key signs, the roots it pinned say whose keys the others' are.

What it keeps of an attempt is on disk before an answer leaves (runs/RUN.secrets, sealed by the
client's key), so that a client that is killed goes on with the same keys and masks no second vector.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np

from ...core.edge import Task
from ...core.errors import ProtocolError, Refused, StateError
from ...core.rng import Rng
from ...core.update import Update
from ...learn.auto import SAMPLE
from ...learn.exchange import Seat
from ...learn.quantise import coded
from ...privacy.keys import Identity, sign, verify
from ...privacy.roster import Keys
from ...privacy.secure_sum import load
from ...privacy.vault import Vault
from .repeats import Repeats

log = logging.getLogger("atoll.client")
PURPOSE = "atoll secure sum"
COINS = 32  # bytes
TRIES = 3


def taken(folder: Path, run: str, roots: bytes, federation: str, least: int, vault: Vault) -> Seat:
    """The seat of the client in `folder` for one run; what it kept for others goes.

    `roots`: PEM, what members' certificates must lead to. `least`: members, as its policy says. What it
    kept, sealed by `vault`, may be lost or damaged: then it is missing in one attempt, and begins the next
    with fresh keys. Raises StateError where its identity, or its list of sums, is damaged.
    """
    identity = Identity.open(folder / "identity")
    path = _only(folder, run, "secrets")

    def signed(text: bytes) -> tuple[bytes, bytes]:
        return sign(identity.key, text, purpose=PURPOSE), identity.chain

    def check(keys: Keys, text: bytes) -> str:
        member = verify(keys.chain, roots, text, keys.signature, now=time.time(), purpose=PURPOSE)
        if member.role != "client" or member.federation != federation:
            raise ProtocolError(f"{member.uri} is no client of this federation, and has no seat in its sums")
        return member.name

    kept = {}
    try:
        kept = load(vault.read(path))
    except FileNotFoundError:
        pass
    except (OSError, ProtocolError, StateError):
        log.warning("%s is damaged: this client begins its next secure sum anew", path.name)
    return Seat(
        secrets.token_bytes,
        (federation, run),
        sign=signed,
        check=check,
        least=least,
        save=lambda data: vault.write(path, data),
        secrets=dict(kept),
        vouch=Repeats(folder, vault).vouch,
    )


def coins(folder: Path, run: str, vault: Vault) -> bytes:
    """What a run's rows are drawn by: 32 bytes of the system's, kept: a restart draws the same rows."""
    path = _only(folder, run, "coins")
    try:
        kept = vault.read(path)
    except FileNotFoundError:
        kept = b""
    except StateError as error:
        log.warning("%s: its rows are drawn anew", error)
        kept = b""
    if len(kept) != COINS:
        kept = secrets.token_bytes(COINS)
        vault.write(path, kept)
    return kept


def link(folder: Path, run: str, vault: Vault, rate: float) -> tuple[float, float]:
    """What a run's compression is chosen by: bytes a second sent, 0 where that is unknown, and encoded.

    Measured once and kept: a client that is killed before its first answer left chooses the same again.
    """
    path = _only(folder, run, "link")
    with suppress(FileNotFoundError, StateError, msgspec.DecodeError):
        return msgspec.msgpack.decode(vault.read(path), type=tuple[float, float])
    found = (rate, _encoding())
    vault.write(path, msgspec.msgpack.encode(found))
    return found


def _encoding() -> float:
    """Bytes of float32 a second that this machine makes compact: the best of some tries."""
    x = np.random.default_rng(0).normal(size=SAMPLE).astype(np.float32)
    update, best = Update.of({"x": x}), float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        coded("int8()", 8, update, Rng.of(0))
        best = min(best, time.perf_counter() - began)
    return x.nbytes / max(best, 1e-6)


def once(folder: Path, run: str, vault: Vault, task: Task, drawn: bytes) -> None:
    """Note that a round was asked for with this model, before it is answered with noise of this client's own.

    The same question gets the same answer; another about the same round, or noise by other coins than those
    `drawn`, would be a release that nobody has accounted. Raises Refused for that, and where what was noted
    cannot be read.
    """
    path = folder / "runs" / f"{run}.asked"  # it stays: a run that comes again must not begin anew
    try:
        kept = msgspec.msgpack.decode(vault.read(path), type=dict[int, bytes])
    except FileNotFoundError:
        kept = {}
    except (StateError, msgspec.DecodeError) as error:
        raise Refused(f"it cannot be read what this site has answered in the run: {error}") from None
    made = blake2b(repr((task.round, task.key.key, task.used)).encode(), key=drawn, digest_size=16)
    made.update(task.params.buffer.view(np.uint8).data)
    if task.round not in kept:
        vault.write(path, msgspec.msgpack.encode({**kept, task.round: made.digest()}))
    elif kept[task.round] != made.digest():
        raise Refused(
            f"round {task.round + 1} was answered for another model: a second answer, with other noise of"
            " this site, is in no promise"
        )


def _only(folder: Path, run: str, kind: str) -> Path:
    """Where a run's file of a kind is; other runs' files of that kind go."""
    path = folder / "runs" / f"{run}.{kind}"
    for other in path.parent.glob(f"*.{kind}"):
        if other != path:
            other.unlink(missing_ok=True)
    return path
