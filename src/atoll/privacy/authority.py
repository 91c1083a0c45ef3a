"""The authority: who certifies a federation's members.

Its root is pinned by every member: the federation's own, or a company's that is brought along. The
key that signs day by day may be an intermediate's, so that the root's key can lie in a safe:

    root ──signs──► intermediate (at the coordinator) ──signs──► members, for hours

Certificates are dated back by an hour, so that a clock which is a little late accepts them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ..core.errors import ConfigError, MisuseError, ProtocolError, StateError
from .certificate import (
    SERVERS,
    IssuerKey,
    alternative_names,
    called,
    certificates,
    chain_member,
    end,
    fingerprint,
    key_name,
    key_pem,
    load_issuer_key,
    moment,
    new_key,
    read_request,
    request,
    uri,
)
from .private import write_private

BACKDATED = 25 * 3600.0  # seconds: a clock that is a day behind takes a new certificate, too


class Authority:
    """Signs certificates. `federation`; `root`: PEM, what members pin; `chain`: PEM of the intermediates,
    from the one that signs up to below the root, empty where the root itself signs; `fingerprint`: SHA-256
    of the root's DER, 64 hex digits.
    """

    def __init__(self, federation: str, root: bytes, chain: bytes, key: IssuerKey) -> None:
        uri(federation, "coordinator", "any")
        self.federation = federation
        self.root = root
        self.chain = chain
        self.fingerprint = fingerprint(root)
        self._key = key
        self._issuer = certificates(chain or root)[0]
        if key_name(self._issuer.public_key()) != key_name(key):
            raise ConfigError("the authority's key does not belong to its certificate: bring the pair")

    @classmethod
    def new(cls, federation: str, *, now: float, years: float = 10) -> Authority:
        """A federation's own root. Raises ConfigError for a name of another form."""
        uri(federation, "coordinator", "any")
        key, name = new_key(), called(f"{federation[:50]} root")
        until = now + years * 365.25 * 86400
        root = _authority(name, name, key.public_key(), now, until, below=1).sign(key, hashes.SHA256())
        return cls(federation, _pem(root), b"", key)

    @classmethod
    def adopt(cls, federation: str, root: bytes, chain: bytes, key: bytes, *, now: float) -> Authority:
        """An authority brought along. `chain`: from `key`'s certificate up; empty where `key` is the root's.

        Raises ConfigError where they do not fit, or members would refuse what they certify; StateError
        for a key that cannot be read.
        """
        try:
            if len(certificates(root)) != 1:
                raise ConfigError("bring exactly one root certificate: it is what members pin")
            made = cls(federation, root, chain, load_issuer_key(key))
            csr = request(new_key(), federation, "coordinator", "probe")
            chain_member(made.sign(csr, role="coordinator", name="probe", now=now, hours=1), root, now=now)
        except ProtocolError as error:
            raise ConfigError(f"members would refuse what this authority certifies: {error}") from None
        return made

    def delegate(self, *, now: float, years: float = 2) -> Authority:
        """An intermediate for a coordinator, so that this authority's own key can be kept elsewhere."""
        key, name = new_key(), called(f"{self.federation[:40]} authority")
        until = min(now + years * 365.25 * 86400, end(self._issuer))
        blank = _authority(name, self._issuer.subject, key.public_key(), now, until, below=0)
        signed = blank.add_extension(_above(self._issuer), critical=False).sign(self._key, hashes.SHA256())
        return Authority(self.federation, self.root, _pem(signed) + self.chain, key)

    @property
    def ends(self) -> tuple[float, float]:
        """When the root and the certificate that signs end, Unix seconds."""
        return end(certificates(self.root)[0]), end(self._issuer)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """What `save` wrote. Raises StateError where it is missing or damaged."""
        try:
            root, chain = (folder / "root.pem").read_bytes(), (folder / "chain.pem").read_bytes()
            federation = json.loads((folder / "authority.json").read_bytes())["federation"]
            return cls(federation, root, chain, load_issuer_key((folder / "authority.key.pem").read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, ConfigError, ProtocolError) as error:
            raise StateError(f"there is no whole authority in {folder}: {error}") from None

    def save(self, folder: Path) -> None:
        """Write authority.key.pem, chain.pem, authority.json and root.pem, all mode 0600."""
        write_private(folder / "authority.key.pem", key_pem(self._key))
        write_private(folder / "chain.pem", self.chain)
        write_private(folder / "authority.json", json.dumps({"federation": self.federation}).encode())
        write_private(folder / "root.pem", self.root)

    def sign(
        self, csr: bytes, *, role: str, name: str, now: float, hosts: Sequence[str] = (), hours: float = 24.0
    ) -> bytes:
        """The chain of a new certificate for the key in `csr`, dated back an hour, good for `hours` from now.

        Role, name and hosts are these arguments: the request gives the key alone. Only roles that are
        dialled have hosts (else MisuseError) and may serve. Raises ProtocolError for a bad request,
        StateError where this authority's own certificate has ended.
        """
        if hosts and role not in SERVERS:
            raise MisuseError(f"a {role} is never dialled: its certificate names no hosts")
        until = min(now + hours * 3600, end(self._issuer))
        if until <= now:
            raise StateError("the authority's own certificate has ended: make or bring a new one")
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role in SERVERS:  # a client's stolen certificate cannot play the coordinator
            usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names = alternative_names(uri(self.federation, role, name), hosts)
        made = _blank(called(name), read_request(csr).key, self._issuer.subject, now, until)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(certifies=False), True),
            (x509.ExtendedKeyUsage(usage), False),
            (names, False),
            (_above(self._issuer), False),
        ):
            made = made.add_extension(extension, critical=critical)
        return _pem(made.sign(self._key, hashes.SHA256())) + self.chain


def _blank(
    name: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, now: float, until: float
) -> x509.CertificateBuilder:
    serial = x509.random_serial_number()
    return x509.CertificateBuilder(issuer, name, key, serial, moment(now - BACKDATED), moment(until))


def _authority(
    name: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: float,
    until: float,
    *,
    below: int,
) -> x509.CertificateBuilder:
    """One that may certify; `below`: how many intermediates may stand under it."""
    return (
        _blank(name, key, issuer, now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(_usage(certifies=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, certifies: bool) -> x509.KeyUsage:
    none = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
        **none,
    )


def _above(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
            raise ConfigError("an authority's key is ECDSA or RSA: bring such a one") from None
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
