"""Root and server certificates for tests, made once a process."""

from __future__ import annotations

import datetime as dt
import ipaddress
import time
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from atoll.privacy.keys import Authority

DAY = dt.timedelta(days=1)


@cache
def authority_of(federation: str) -> Authority:
    """Who certifies its members."""
    return Authority.new(federation, now=time.time() - 86400)


def root_of(name: str) -> tuple[bytes, Any]:
    """(certificate PEM, key) of a root."""
    made = authority_of(name)
    return made.root, made._key


def server_pem(federation: str, *hosts: str) -> bytes:
    """Certificate and key of a server of that federation, one PEM."""
    root, signer = root_of(federation)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    made = _builder("hub", x509.load_pem_x509_certificate(root).subject, key.public_key())
    made = made.add_extension(x509.SubjectAlternativeName(names), False)
    cert = made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return cert + key.private_bytes(serialization.Encoding.PEM, *form)


def _builder(subject: str, issuer: x509.Name, public: Any) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder().serial_number(x509.random_serial_number()).public_key(public)
    made = made.not_valid_before(now - DAY).not_valid_after(now + DAY)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return made.subject_name(name).issuer_name(issuer)
