"""Certificates and what they prove: whose key this is, who says so, until when.

A certificate's one URI is the member's name, as in SPIFFE: spiffe://<federation>/<role>/<name>.
Keys are ECDSA on P-256 with SHA-256. A *chain* is the member's certificate, then the intermediates,
as PEM; *roots* are the pinned certificates it must end at. Clocks are arguments, in Unix seconds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ..core.errors import ConfigError, ProtocolError, StateError

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey
IssuerKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey  # a company's own may be RSA

ROLES = ("coordinator", "edge", "client", "operator")
SERVERS = ("coordinator", "edge")  # roles that others dial: their certificates name hosts
LONGEST = 64 * 1024  # bytes of PEM we read from others
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_URI = re.compile(rf"spiffe://({_NAME.pattern})/({'|'.join(ROLES)})/({_NAME.pattern})")
_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
# What the parser raises for bytes that strangers made.
_ANY = (
    *(ValueError, TypeError, OverflowError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)


@dataclass(frozen=True, slots=True)
class Member:
    """Whom a certificate names. `serial`: the certificate's; `until`: its end, Unix seconds."""

    federation: str
    role: str
    name: str
    serial: int
    until: float

    @property
    def uri(self) -> str:
        """spiffe://federation/role/name."""
        return uri(self.federation, self.role, self.name)


def uri(federation: str, role: str, name: str) -> str:
    """The member's name in a certificate. Raises ConfigError for a name of another form."""
    made = f"spiffe://{federation}/{role}/{name}"
    if not _URI.fullmatch(made):
        raise ConfigError(
            f"no member can be called {made!r}: federation and name are up to 63 of a-z 0-9 . _ - and begin "
            f"with a letter or digit; the role is one of {', '.join(ROLES)}"
        )
    return made


# keys ----------------------------------------------------------------------------------------


def new_key() -> PrivateKey:
    """A fresh private key, from the system's entropy."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: IssuerKey) -> bytes:
    """The key as PKCS 8 PEM, not encrypted: it belongs in a file that only its owner reads."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def load_key(pem: bytes) -> PrivateKey:
    """A member's key. Raises StateError for anything but an unencrypted P-256 key in PEM."""
    key = load_issuer_key(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StateError("a member's key is ECDSA on P-256, and this is another kind: enrol again")
    return key


def load_issuer_key(pem: bytes) -> IssuerKey:
    """An authority's key, ECDSA or RSA. Raises StateError for anything else or an encrypted one."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (TypeError, ValueError):  # TypeError: it is encrypted
        raise StateError("this is no private key in PEM, or it is encrypted: decrypt it first") from None
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise StateError("an authority's key is ECDSA or RSA, and this is another kind")
    return key


def key_name(key: object) -> str:
    """SHA-256 of a private or public key's public half, 64 hex digits."""
    public = key.public_key() if isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)) else key
    if not isinstance(public, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        raise ProtocolError("this key is neither ECDSA nor RSA")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256(public.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def sign(key: PrivateKey, payload: bytes, *, purpose: str = "") -> bytes:
    """An ECDSA signature, DER. `purpose` is signed along: a signature for one says nothing for another."""
    return key.sign(_stamped(payload, purpose), ec.ECDSA(hashes.SHA256()))


def verify(
    chain: bytes, roots: bytes, payload: bytes, signature: bytes, *, now: float, purpose: str = ""
) -> Member:
    """Who signed: the member whose chain is good now and whose key made `signature`. Raises ProtocolError."""
    member = chain_member(chain, roots, now=now)
    try:
        p256(certificates(chain)[0].public_key()).verify(
            signature, _stamped(payload, purpose), ec.ECDSA(hashes.SHA256())
        )
    except InvalidSignature:
        raise ProtocolError(f"this is not signed by {member.uri}") from None
    return member


def _stamped(payload: bytes, purpose: str) -> bytes:
    return purpose.encode() + b"\0" + payload


def p256(key: object) -> ec.EllipticCurvePublicKey:
    """The key, if it is a member's kind. Raises ProtocolError."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("members use ECDSA on P-256, and this key is of another kind")
    return key


# requests ------------------------------------------------------------------------------------


def request(key: PrivateKey, federation: str, role: str, name: str, hosts: Sequence[str] = ()) -> bytes:
    """A certificate request (CSR) as PEM. `hosts`: DNS names and IP addresses that others will dial."""
    names = alternative_names(uri(federation, role, name), hosts)
    asked = x509.CertificateSigningRequestBuilder().subject_name(called(name))
    made = asked.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Request:
    """A CSR whose own signature is right. `hosts` are what it asks for, not what it may have."""

    key: ec.EllipticCurvePublicKey
    hosts: tuple[str, ...]


def read_request(csr: bytes) -> Request:
    """The key and hosts of a CSR. Raises ProtocolError; what it claims about its name is not read."""
    try:
        asked = x509.load_pem_x509_csr(_short(csr))
        hosts = _hosts(asked.extensions)
        valid = asked.is_signature_valid and _exact(asked)
        key = asked.public_key()
    except _ANY as error:
        raise ProtocolError(f"this is no certificate request in PEM: {type(error).__name__}") from None
    if not valid:
        raise ProtocolError("the certificate request is not signed by the key it names")
    return Request(p256(key), hosts)


def called(name: str) -> x509.Name:
    """A subject that shows `name` to people; programs read the URI."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def alternative_names(member: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    """The URI and the hosts, by kind. Raises ConfigError for a host that is none."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(member), *map(_host, hosts)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):  # no wildcards: a certificate is one machine's
        raise ConfigError(f"{host!r} is neither an IP address nor a host name in small letters")
    return x509.DNSName(host)


def _hosts(extensions: x509.Extensions) -> tuple[str, ...]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


# reading -------------------------------------------------------------------------------------


def certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates in a PEM, at least one; a single one may be DER. Raises ProtocolError."""
    try:
        if b"-----BEGIN" not in _short(pem):
            found = [x509.load_der_x509_certificate(pem)]
        else:
            found = x509.load_pem_x509_certificates(pem)
        if all(map(_exact, found)):
            return found
    except _ANY as error:
        raise ProtocolError(f"this is no certificate: {type(error).__name__}") from None
    raise ProtocolError("this is no certificate: its signature is not whole bytes")


def _exact(signed: x509.Certificate | x509.CertificateSigningRequest) -> bool:
    """Whether it is all that its issuer wrote: nobody signs the number of bits of a signature that do not
    count, and the library does not look at it (0 in every signature; X.690, 8.6.2.2).
    """
    return signed.public_bytes(serialization.Encoding.DER).endswith(b"\0" + signed.signature)


def _short(data: bytes) -> bytes:
    if len(data) > LONGEST:
        raise ProtocolError(f"this has {len(data)} bytes: certificates and requests have at most {LONGEST}")
    return data


def fingerprint(root: bytes) -> str:
    """SHA-256 of a certificate's DER, 64 hex digits: what a token pins. Raises ProtocolError."""
    return sha256(certificates(root)[0].public_bytes(serialization.Encoding.DER)).hexdigest()


def member_of(certificate: bytes, federation: str | None = None) -> Member:
    """Whom a certificate names, PEM (a chain's first) or DER; others, as TLS, checked issuer and dates.

    Raises ProtocolError where it has not exactly one URI, one of another form, or names a member
    of another federation than the one given: a company's root may stand above several.
    """
    return _member(certificates(certificate)[0], federation)


def _member(leaf: x509.Certificate, federation: str | None = None) -> Member:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (*_ANY, x509.ExtensionNotFound):
        uris = []
    found = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if found is None:
        raise ProtocolError(
            "the certificate names no member: it needs one URI, spiffe://federation/role/name"
        )
    if federation not in {None, found[1]}:
        raise ProtocolError(f"the certificate is of federation {found[1]}, and this is {federation}")
    return Member(found[1], found[2], found[3], leaf.serial_number, end(leaf))


def chain_member(chain: bytes, roots: bytes, *, now: float, federation: str | None = None) -> Member:
    """Whom a chain names, after checking that it leads to one of the roots and is good now.

    Raises ProtocolError: expired, not yet valid, another authority's, or as `member_of`.
    """
    leaf, *above = certificates(chain)
    if now > end(leaf):
        raise ProtocolError(f"the certificate ended on {leaf.not_valid_after_utc:%F %T}: renew it or enrol")
    if now < leaf.not_valid_before_utc.timestamp():
        start = f"{leaf.not_valid_before_utc:%F %T}"
        raise ProtocolError(f"the certificate begins on {start}: check this clock and its issuer's")
    try:
        rules = PolicyBuilder().store(Store(certificates(roots))).time(moment(now))
        rules.build_client_verifier().verify(leaf, above)
    except (VerificationError, *_ANY) as error:
        raise ProtocolError(f"the certificate does not lead to a pinned root: {error}") from None
    p256(leaf.public_key())
    return _member(leaf, federation)


def proven(
    chain: bytes, csr: bytes, roots: bytes, *, now: float, federation: str | None = None, grace: float = 0.0
) -> Member:
    """Who asks for a renewal: the request must be signed by the key that the chain's certificate names.

    `grace`: seconds for which a certificate that has ended still proves this. Raises ProtocolError.
    """
    leaf = certificates(chain)[0]
    member = chain_member(chain, roots, now=min(now, end(leaf)) if now <= end(leaf) + grace else now)
    if key_name(read_request(csr).key) != key_name(leaf.public_key()):
        raise ProtocolError(f"the request is not signed by the key of {member.uri}")
    return _member(leaf, federation)


def hosts_of(certificate: bytes) -> tuple[str, ...]:
    """The host names and addresses a certificate (PEM or DER) is good for. Raises ProtocolError."""
    try:
        return _hosts(certificates(certificate)[0].extensions)
    except _ANY as error:
        raise ProtocolError(f"this is no certificate: {type(error).__name__}") from None


def moment(seconds: float) -> datetime:
    """Unix seconds as a date."""
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)


def end(certificate: x509.Certificate) -> float:
    """When it ends, Unix seconds."""
    return certificate.not_valid_after_utc.timestamp()
