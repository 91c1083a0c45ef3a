"""A small federation's certificates, as the tests of links need them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atoll.privacy.keys import Authority, Identity, new_key, request

DAY = 86400.0
NOW = time.time()  # TLS libraries read the real clock
_FOLDER = Path(tempfile.mkdtemp(prefix="atoll-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def member(
    authority: Authority,
    role: str,
    name: str,
    *,
    hosts: Sequence[str] = (),
    now: float = NOW,
    hours: float = 24,
    roots: bytes = b"",
) -> Identity:
    """A member's identity in a folder of its own; `now`: when the authority signed it."""
    key = new_key()
    csr = request(key, authority.federation, role, name)
    chain = authority.sign(csr, role=role, name=name, now=now, hosts=hosts, hours=hours)
    return Identity(key, chain, roots or authority.root).save(Path(tempfile.mkdtemp(dir=_FOLDER)))


def renew(authority: Authority, identity: Identity, *, now: float, hosts: Sequence[str] = ()) -> Identity:
    """Write the identity's next certificate where it is."""
    me = identity.member
    csr = request(identity.key, me.federation, me.role, me.name)
    return identity.renewed(authority.sign(csr, role=me.role, name=me.name, now=now, hosts=hosts))


class Ledger:
    """A store's part that the registrar needs, in memory."""

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[str, str, float]] = {}
        self.used: dict[str, str] = {}
        self.made: dict[int, dict[str, Any]] = {}
        self.banned: set[str] = set()

    def token_add(self, digest: str, role: str, name: str, until: float, actor: str = "") -> None:
        self.tokens[digest] = (role, name, until)

    def token_use(self, digest: str, now: float, by: str = "") -> tuple[str, str] | None:
        role, name, until = self.tokens.get(digest, ("", "", 0.0))
        if now >= until or (role in {"client", "edge"} and self.used.setdefault(digest, by) != by):
            return None
        return role, name

    def certificate_add(self, serial: int, name: str, role: str, until: float) -> None:
        self.made[serial] = {"serial": serial, "name": name, "until": until, "revoked": False}

    def certificates(self, name: str = "") -> list[dict[str, Any]]:
        return [made for made in self.made.values() if name in {"", made["name"]}]

    def revoke(self, name: str, actor: str = "") -> bool:
        for made in self.certificates(name):
            made["revoked"] = True
        new = name not in self.banned
        self.banned.add(name)
        return new

    def revoked(self) -> set[str | int]:
        return self.banned | {serial for serial, made in self.made.items() if made["revoked"]}
