"""Damaged certificates and requests: none is taken for another, none raises anything but our errors."""

import base64
import random
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from atoll.core.errors import ProtocolError
from atoll.privacy.keys import Authority, chain_member, hosts_of, member_of, new_key, read_request, request

NOW = 1_800_000_000.0
MUTANTS = 2000
OURS = Authority.new("lagoon", now=NOW)
HOSTS = ["edge.example", "10.0.0.1"]
CSR = request(new_key(), "lagoon", "edge", "line", HOSTS)
CHAIN = OURS.delegate(now=NOW).sign(CSR, role="edge", name="line", now=NOW, hosts=HOSTS)
LEAF, BETWEEN = (c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(CHAIN))
ASKED = x509.load_pem_x509_csr(CSR).public_bytes(Encoding.DER)


def pem(kind: str, der: bytes) -> bytes:
    return f"-----BEGIN {kind}-----\n".encode() + base64.encodebytes(der) + f"-----END {kind}-----\n".encode()


def mutant(der: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, left out or put in."""
    data = bytearray(der)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                del data[at : at + rng.randrange(1, 4)]
            case 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 4))
            case 2:
                data[at] ^= 1 << rng.randrange(8)
            case _:
                data[at] = rng.choice([0, 0x80, 0xFF, rng.randrange(256)])
    return bytes(data)


def certificate(der: bytes) -> bytes:
    return pem("CERTIFICATE", der)


READERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "leaf": (
        LEAF,
        lambda der: chain_member(certificate(der) + certificate(BETWEEN), OURS.root, now=NOW),
    ),
    "intermediate": (
        BETWEEN,
        lambda der: chain_member(certificate(LEAF) + certificate(der), OURS.root, now=NOW),
    ),
    "request": (ASKED, lambda der: read_request(pem("CERTIFICATE REQUEST", der)).key),
}


@pytest.mark.parametrize("kind", READERS)
def test_no_mutant_is_admitted(kind: str) -> None:
    original, read = READERS[kind]
    rng, admitted = random.Random(7), []
    assert read(original)  # control
    for _ in range(MUTANTS):
        changed = mutant(original, rng)
        try:
            read(changed)
        except ProtocolError:
            continue
        admitted.append(changed)
    assert set(admitted) <= {original}


def test_a_signature_has_no_bits_that_do_not_count() -> None:
    """Nobody signs their number, so another would be a second form of the same; the library reads it."""
    while True:
        text = request(new_key(), "lagoon", "edge", "line", HOSTS)
        asked = x509.load_pem_x509_csr(text)
        if not asked.signature[-1] & 1:
            break
    changed = bytearray(asked.public_bytes(Encoding.DER))
    changed[-len(asked.signature) - 1] = 1
    assert x509.load_der_x509_csr(bytes(changed)).is_signature_valid  # control
    assert read_request(text).key
    with pytest.raises(ProtocolError):
        read_request(pem("CERTIFICATE REQUEST", bytes(changed)))


def test_no_mutant_upsets_what_reads_names_only() -> None:
    rng, named = random.Random(8), 0
    for _ in range(MUTANTS):
        changed = mutant(LEAF, rng)
        try:
            member_of(changed)
            hosts_of(changed)
        except ProtocolError:
            continue
        named += 1
    assert 0 < named < MUTANTS  # control: many keep their name, their signatures apart
