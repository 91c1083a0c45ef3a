"""A small federation's certificates, as the tests of links need them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
