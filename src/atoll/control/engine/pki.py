"""The coordinator's side of identities: tokens, enrolment, renewal, revocation.

A member's name and role are those of its token; its request gives the key, and for a server the hosts.
A token is good for one key: the same key may ask again while the token lasts, since its answer may have
been lost; any other is refused and logged. Everything is synchronous and short, for the store's thread.

    FOLDER/authority/   root, intermediates and the key that certifies
    FOLDER/identity/    the coordinator's own key and certificate
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

from ...core.errors import ConfigError, ProtocolError, Refused, StateError
from ...privacy.keys import (
    SERVERS,
    Authority,
    Identity,
    Member,
    hosts_of,
    key_name,
    member_of,
    new_key,
    read_request,
    request,
    uri,
)
from ...privacy.report import trust
from ...privacy.token import Token, digest

MEMBERS = ("coordinator", "edge", "client")  # roles one can enrol as; the API's roles are no members
GRACE = 7 * 86400.0  # seconds: a device that was off for some days comes back without a new token
_log = logging.getLogger("atoll.pki")


class Ledger(Protocol):
    """What the registrar needs of a store, each one durable transaction: `token_add`; `token_use`, which lets
    a member's token be used by one key only; `certificate_add`, `certificates` (serial, revoked) by name;
    `revoke`; `revoked` names and serials.
    """

    def token_add(self, digest: str, role: str, name: str, until: float, actor: str = "") -> None: ...
    def token_use(self, digest: str, now: float, by: str = "") -> tuple[str, str] | None: ...
    def certificate_add(self, serial: int, name: str, role: str, until: float) -> None: ...
    def certificates(self, name: str = "") -> Sequence[Mapping[str, Any]]: ...
    def revoke(self, name: str, actor: str = "") -> bool: ...
    def revoked(self) -> Iterable[str | int]: ...


class Registrar:
    """Certifies members of one federation.

    `hours`: how long certificates are good; `grace`: seconds after their end in which the same key may
    renew them; `reserved`: hosts that no other server may name, such as the coordinator's own.
    """

    def __init__(
        self,
        authority: Authority,
        ledger: Ledger,
        *,
        hours: float = 24.0,
        grace: float = GRACE,
        reserved: Iterable[str] = (),
    ) -> None:
        self.root = authority.root
        self.federation = authority.federation
        self.grace = grace
        self._authority = authority
        self._ledger = ledger
        self._hours = hours
        self._reserved = frozenset(h for h in reserved if not _loopback(h))

    def token(
        self,
        role: str,
        name: str,
        *,
        now: float,
        random: Callable[[int], bytes],
        hours: float = 72.0,
        actor: str = "",
    ) -> Token:
        """A new token for one member, good for `hours`. Raises ConfigError for a bad role, name or time."""
        if role not in MEMBERS:
            raise ConfigError(f"a member is one of {', '.join(MEMBERS)}, not {role!r}")
        if not 0 < hours <= 24 * 366:
            raise ConfigError(f"a token is good for more than 0 and at most 8784 hours, not {hours}")
        uri(self.federation, role, name)
        if name in self._ledger.revoked():
            raise ConfigError(f"{name} is revoked: readmit it first (atoll node readmit {name})")
        made = Token.new(self._authority.fingerprint, random)
        self._ledger.token_add(made.digest, role, name, now + hours * 3600, actor)
        return made

    def enrol(self, secret: bytes, csr: bytes, *, now: float) -> bytes:
        """The chain for who holds this token's secret. Raises Refused, ProtocolError for a bad request."""
        asked = read_request(csr)
        known, key = digest(secret), key_name(asked.key)
        found = self._ledger.token_use(known, now, key)
        if found is None:
            _log.warning("token %s was refused to key %s: unknown, ended or used", known[:12], key[:12])
            raise Refused("this token is unknown, has ended or was used by another key: ask for a new one")
        role, name = found
        if role not in MEMBERS:
            raise Refused("this token is for the API, not for enrolment: ask for one with a member's role")
        if name in self._ledger.revoked():
            raise Refused(f"{name} is revoked: ask an administrator to readmit it")
        return self._certify(role, name, asked.hosts, csr, now)

    def renew(self, member: Member, csr: bytes, *, now: float) -> bytes:
        """A new chain for a member that has proved who it is. Raises Refused, ProtocolError."""
        self.check(member)
        if now > member.until:
            known = {c["serial"]: c for c in self._ledger.certificates(member.name)}.get(member.serial)
            if now > member.until + self.grace or known is None or known["revoked"]:
                raise Refused(f"the certificate of {member.name} has ended: enrol it with a new token")
        return self._certify(member.role, member.name, read_request(csr).hosts, csr, now)

    def check(self, member: Member) -> None:
        """Raises Refused for a member, or a certificate, that is revoked or of another federation."""
        if member.federation != self.federation:
            raise Refused(f"{member.uri} is of another federation than {self.federation}")
        out = self._ledger.revoked()
        if member.name in out or member.serial in out:
            raise Refused(f"{member.name} is revoked: ask an administrator to readmit it")

    def revoke(self, name: str, actor: str = "") -> bool:
        """Refuse a name and its certificates from now on; False if it is refused already."""
        return self._ledger.revoke(name, actor)

    def _certify(self, role: str, name: str, hosts: Sequence[str], csr: bytes, now: float) -> bytes:
        if hosts and role not in SERVERS:
            raise Refused(f"{name} is a {role}, which nobody dials: ask without hosts")
        if role != "coordinator" and (taken := self._reserved & set(hosts)):
            raise Refused(f"{', '.join(sorted(taken))} is the coordinator's: give {name} hosts of its own")
        try:
            chain = self._authority.sign(csr, role=role, name=name, now=now, hosts=hosts, hours=self._hours)
        except ConfigError as error:
            raise ProtocolError(str(error)) from None
        made = member_of(chain)
        self._ledger.certificate_add(made.serial, name, role, made.until)
        return chain


def found(
    folder: Path,
    federation: str,
    *,
    now: float,
    apart: Path | None = None,
    authority: Authority | None = None,
) -> Authority:
    """Make who certifies, in `folder`/authority. Nothing that is there is overwritten.

    `apart`: a folder for the root's key, which is then not needed here: an intermediate certifies.
    `authority`: one brought along. Raises ConfigError where there is one already.
    """
    for place in (folder / "authority", apart):
        if place is not None and (place / "root.pem").exists():
            raise ConfigError(f"there is an authority in {place}: take another folder, or go on with it")
    if authority is None:
        authority = Authority.new(federation, now=now)
        if apart is not None:
            authority.save(apart)
            authority = authority.delegate(now=now)
    authority.save(folder / "authority")
    return authority


def init(
    folder: Path,
    federation: str,
    *,
    hosts: Sequence[str],
    now: float,
    name: str = "coordinator",
    apart: Path | None = None,
    authority: Authority | None = None,
    hours: float = 24.0,
) -> Identity:
    """`found`, and the coordinator's own identity, which it gives."""
    found(folder, federation, now=now, apart=apart, authority=authority)
    return own(folder, name=name, hosts=hosts, now=now, hours=hours)


def own(
    folder: Path,
    *,
    name: str,
    hosts: Sequence[str],
    now: float,
    hours: float = 24.0,
    urls: Sequence[str] = (),
) -> Identity:
    """The coordinator's own identity in `folder`, certified anew by the authority beside it, for its old key.

    A coordinator calls it at its start and when `renew_due`. Raises StateError without an authority.
    """
    authority, place = Authority.open(folder / "authority"), folder / "identity"
    old: Identity | None = None
    with suppress(StateError):
        old = Identity.open(place)
    key = old.key if old else new_key()
    csr = request(key, authority.federation, "coordinator", name)
    chain = authority.sign(csr, role="coordinator", name=name, now=now, hosts=hosts, hours=hours)
    if old is not None and old.roots == authority.root and old.member.uri == member_of(chain).uri:
        return old.renewed(chain)
    return Identity(key, chain, authority.root, tuple(urls)).save(place)


def about(folder: Path) -> dict[str, Any]:
    """What stands in a folder made by `found`: plain values, no key; times in Unix seconds.

    {federation, fingerprint, root_ends, authority_ends}, and once a coordinator has started
    {coordinator, hosts, certificate_ends, trust}. Raises StateError where there is no authority.
    """
    authority = Authority.open(folder / "authority")
    plain: dict[str, Any] = {"federation": authority.federation, "fingerprint": authority.fingerprint}
    plain |= {"root_ends": authority.ends[0], "authority_ends": authority.ends[1]}
    with suppress(StateError):
        mine = Identity.open(folder / "identity")
        plain |= {"coordinator": mine.member.name, "hosts": list(hosts_of(mine.chain))}
        plain |= {"certificate_ends": mine.member.until, "trust": trust(mine.chain)}
    return plain


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
