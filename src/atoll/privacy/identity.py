"""A member's identity on disk: its key, its chain, the roots it pinned and where it belongs.

    key.pem (0600)   cert.pem (the chain)   root.pem   identity.json {federation, role, name, urls}

A renewal keeps the key and replaces cert.pem in one step, so the folder is good at every moment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import ProtocolError, StateError
from .authority import BACKDATED
from .certificate import Member, PrivateKey, certificates, key_name, key_pem, load_key, member_of
from .private import write_private


@dataclass(frozen=True)
class Identity:
    """Who we are. `chain`, `roots`: PEM; `urls`: servers to dial, in order; `folder`: None until saved.

    Raises StateError where key, chain and roots do not belong together.
    """

    key: PrivateKey = field(repr=False)
    chain: bytes = field(repr=False)
    roots: bytes = field(repr=False)
    urls: tuple[str, ...] = ()
    folder: Path | None = None
    member: Member = field(init=False)
    since: float = field(init=False)

    def __post_init__(self) -> None:
        try:
            leaf = certificates(self.chain)[0]
            certificates(self.roots)
            object.__setattr__(self, "member", member_of(self.chain))
        except ProtocolError as error:
            raise StateError(f"this is no identity: {error}") from None
        if key_name(leaf.public_key()) != key_name(self.key):
            raise StateError("the certificate is for another key than the one beside it: enrol again")
        object.__setattr__(self, "since", leaf.not_valid_before_utc.timestamp() + BACKDATED)

    @classmethod
    def open(cls, folder: Path) -> Identity:
        """What `save` wrote. Raises StateError where it is missing or damaged."""
        try:
            key = load_key((folder / "key.pem").read_bytes())
            chain, roots = (folder / "cert.pem").read_bytes(), (folder / "root.pem").read_bytes()
            urls = tuple(map(str, json.loads((folder / "identity.json").read_bytes())["urls"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StateError(f"there is no whole identity in {folder}: {error}; enrol again") from None
        return cls(key, chain, roots, urls, folder)

    def save(self, folder: Path) -> Identity:
        """Write the four files, cert.pem last: the folder holds an identity once it is there."""
        member = self.member
        about = {"federation": member.federation, "role": member.role, "name": member.name}
        write_private(folder / "key.pem", key_pem(self.key))
        write_private(folder / "root.pem", self.roots)
        text = json.dumps(about | {"urls": self.urls}, indent=1, sort_keys=True)
        write_private(folder / "identity.json", text.encode())
        write_private(folder / "cert.pem", self.chain)
        return Identity(self.key, self.chain, self.roots, self.urls, folder)

    def renewed(self, chain: bytes) -> Identity:
        """The same member with a new certificate for the same key, saved where this one is.

        Raises ProtocolError where the chain names another member, StateError where it is another key's.
        """
        made = Identity(self.key, chain, self.roots, self.urls, self.folder)
        if made.member.uri != self.member.uri:
            raise ProtocolError(f"a certificate for {made.member.uri} came, not for {self.member.uri}")
        if self.folder is not None:
            write_private(self.folder / "cert.pem", chain)
        return made

    def renew_due(self, now: float) -> bool:
        """Whether half of the certificate's life has passed."""
        return now >= (self.since + self.member.until) / 2


class Current:
    """The identity in a folder as it is now: `current()` sees a renewal as soon as it is written.

    Who serves or dials holds this, not an Identity. A file that cannot be read leaves the last good one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = self._stamp()
        self._identity = Identity.open(folder)

    def __call__(self) -> Identity:
        stamp = self._stamp()
        if stamp != self._seen:
            try:
                self._identity = Identity.open(self._folder)
            except StateError:  # half of an enrolment: look again at the next call
                return self._identity
            self._seen = stamp
        return self._identity

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = (self._folder / "cert.pem").stat(), (self._folder / "root.pem").stat()
        except OSError as error:
            raise StateError(f"there is no whole identity in {self._folder}: {error}; enrol") from None
        return tuple(n for s in found for n in (s.st_mtime_ns, s.st_ino, s.st_size))


__all__ = ["Current", "Identity"]
