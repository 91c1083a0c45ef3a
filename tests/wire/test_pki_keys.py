"""Keys, certificates and signatures: who is believed to be whom, and who is not."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import ConfigError, MisuseError, ProtocolError, StateError
from atoll.privacy import authority
from atoll.privacy.certificate import certificates
from atoll.privacy.keys import (
    Authority,
    Current,
    Identity,
    Member,
    chain_member,
    fingerprint,
    key_pem,
    load_key,
    member_of,
    new_key,
    read_request,
    request,
    sign,
    verify,
)
from atoll.privacy.token import Token

NOW = 1_800_000_000.0
HOUR = 3600.0
OURS = Authority.new("lagoon", now=NOW)
OTHER = Authority.new("lagoon", now=NOW)  # the same name, another key
KEY = new_key()
CSR = request(KEY, "lagoon", "client", "bank-a")
CHAIN = OURS.sign(CSR, role="client", name="bank-a", now=NOW)


def test_a_certificate_names_its_member() -> None:
    member = chain_member(CHAIN, OURS.root, now=NOW)
    assert (member.federation, member.role, member.name) == ("lagoon", "client", "bank-a")
    assert member.uri == "spiffe://lagoon/client/bank-a"
    assert member.until == NOW + 24 * HOUR
    assert member == member_of(CHAIN)


def test_name_and_role_are_the_authoritys_not_the_requests() -> None:
    greedy = request(KEY, "lagoon", "coordinator", "hub", ["hub.example"])
    chain = OURS.sign(greedy, role="client", name="bank-a", now=NOW)
    assert member_of(chain).uri == "spiffe://lagoon/client/bank-a"
    assert b"hub" not in certificates(chain)[0].public_bytes(Encoding.DER)


def test_dated_back_by_a_day_and_an_hour_for_clocks_that_are_late() -> None:
    assert chain_member(CHAIN, OURS.root, now=NOW - 25 * HOUR + 1)
    with pytest.raises(ProtocolError, match="begins on"):
        chain_member(CHAIN, OURS.root, now=NOW - 25 * HOUR - 1)


def test_an_expired_certificate_is_refused() -> None:
    assert chain_member(CHAIN, OURS.root, now=NOW + 24 * HOUR - 1)
    with pytest.raises(ProtocolError, match="ended on"):
        chain_member(CHAIN, OURS.root, now=NOW + 24 * HOUR + 1)


def test_another_authority_of_the_same_name_is_refused() -> None:
    forged = OTHER.sign(CSR, role="client", name="bank-a", now=NOW)
    assert member_of(forged).uri == member_of(CHAIN).uri  # control: only the signature tells them apart
    with pytest.raises(ProtocolError, match="pinned root"):
        chain_member(forged, OURS.root, now=NOW)


def test_a_member_cannot_certify_another() -> None:
    edge = OURS.sign(CSR, role="edge", name="line", now=NOW)
    rogue = Authority("lagoon", OURS.root, edge, KEY)
    forged = rogue.sign(CSR, role="coordinator", name="hub", now=NOW)
    assert member_of(forged).role == "coordinator"  # control: the forger made what it wanted
    with pytest.raises(ProtocolError, match="pinned root"):
        chain_member(forged, OURS.root, now=NOW)


def test_another_federation_under_one_root_is_refused() -> None:
    sister = Authority("reef", OURS.root, b"", OURS._key)
    chain = sister.sign(CSR, role="client", name="bank-a", now=NOW)
    assert chain_member(chain, OURS.root, now=NOW).federation == "reef"  # control: the root alone accepts it
    with pytest.raises(ProtocolError, match="of federation reef"):
        chain_member(chain, OURS.root, now=NOW, federation="lagoon")


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["spiffe://lagoon/client/a", "spiffe://lagoon/coordinator/hub"],
        ["https://lagoon/client/a"],
        ["spiffe://lagoon/king/a"],
        ["spiffe://lagoon/client/a/b"],
        ["spiffe://lagoon/client/A"],
        ["spiffe://lagoon/client/"],
        ["spiffe://lagoon/client/a?role=coordinator"],
        ["spiffe://lagoon/client/a\n"],
    ],
)
def test_a_wrong_alternative_name_names_nobody(uris: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = x509.SubjectAlternativeName(
        [x509.DNSName("bank-a"), *(x509.UniformResourceIdentifier(u) for u in uris)]
    )
    monkeypatch.setattr(authority, "alternative_names", lambda *_: names)
    chain = OURS.sign(CSR, role="client", name="bank-a", now=NOW)
    with pytest.raises(ProtocolError, match="names no member"):
        chain_member(chain, OURS.root, now=NOW)


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "../a", "-a", "a" * 64, "a\n", "ä"])
def test_names_have_one_form(name: str) -> None:
    with pytest.raises(ConfigError, match="no member can be called"):
        OURS.sign(CSR, role="client", name=name, now=NOW)
    with pytest.raises(ConfigError, match="no member can be called"):
        Authority.new(name, now=NOW)
    with pytest.raises(ConfigError, match="no member can be called"):
        request(KEY, "lagoon", "client", name)


def test_servers_name_their_hosts_and_clients_none() -> None:
    csr = request(KEY, "lagoon", "edge", "line", ["edge.plant.example", "10.0.0.7", "::1"])
    assert read_request(csr).hosts == ("edge.plant.example", "10.0.0.7", "::1")
    assert OURS.sign(csr, role="edge", name="line", now=NOW, hosts=read_request(csr).hosts)
    with pytest.raises(MisuseError, match="never dialled"):
        OURS.sign(csr, role="client", name="line", now=NOW, hosts=["edge.plant.example"])


@pytest.mark.parametrize("host", ["*.example", "a b", "", "a..b", "UPPER", "a/24", "-x", "x" * 254])
def test_hosts_are_plain(host: str) -> None:
    with pytest.raises(ConfigError, match="neither an IP address nor a host name"):
        request(KEY, "lagoon", "edge", "line", [host])


def test_a_request_is_signed_by_its_key() -> None:
    pem = CSR.decode().splitlines()
    pem[-2] = pem[-2][:-6] + ("AAAAAA" if pem[-2][-6:] != "AAAAAA" else "BBBBBB")
    with pytest.raises(ProtocolError, match="request"):
        read_request("\n".join(pem).encode())


def test_a_request_with_another_kind_of_key_is_refused() -> None:
    blank = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        csr = blank.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        with pytest.raises(ProtocolError, match="P-256"):
            OURS.sign(csr, role="client", name="bank-a", now=NOW)


@settings(max_examples=300)
@given(st.integers(0, len(CHAIN) - 1), st.binary(min_size=1, max_size=3))
def test_damaged_certificates_are_refused_in_our_words(at: int, bits: bytes) -> None:
    damaged = CHAIN[:at] + bits + CHAIN[at + len(bits) :]
    with suppress(ProtocolError):
        assert chain_member(damaged, OURS.root, now=NOW) == chain_member(CHAIN, OURS.root, now=NOW)


@settings(max_examples=300)
@given(st.integers(0, len(CSR) - 1), st.binary(min_size=1, max_size=3))
def test_damaged_requests_are_refused_in_our_words(at: int, bits: bytes) -> None:
    with suppress(ProtocolError):
        assert read_request(CSR[:at] + bits + CSR[at + len(bits) :]).key == KEY.public_key()


def test_a_huge_certificate_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        chain_member(CHAIN * 1000, OURS.root, now=NOW)


# signatures ----------------------------------------------------------------------------------


def test_a_signature_names_who_signed() -> None:
    member = verify(CHAIN, OURS.root, b"payload", sign(KEY, b"payload"), now=NOW)
    assert isinstance(member, Member) and member.name == "bank-a"


def test_signatures_of_another_payload_key_or_purpose_are_refused() -> None:
    for signature in (
        sign(KEY, b"other"),
        sign(new_key(), b"payload"),
        sign(KEY, b"payload", purpose="model"),
        b"",
        b"x" * 70,
    ):
        with pytest.raises(ProtocolError, match="not signed by"):
            verify(CHAIN, OURS.root, b"payload", signature, now=NOW)


def test_purposes_do_not_run_into_payloads() -> None:
    with pytest.raises(ProtocolError):
        verify(CHAIN, OURS.root, b"b\0c", sign(KEY, b"c", purpose="b"), now=NOW)


# the authority -------------------------------------------------------------------------------


def test_an_authority_comes_back_from_its_folder(tmp_path: Path) -> None:
    OURS.delegate(now=NOW).save(tmp_path)
    back = Authority.open(tmp_path)
    assert back.federation == "lagoon" and back.fingerprint == OURS.fingerprint
    assert chain_member(back.sign(CSR, role="client", name="a", now=NOW), OURS.root, now=NOW)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "authority.key.pem").stat().st_mode) == 0o600


def test_a_missing_or_damaged_authority_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no whole authority"):
        Authority.open(tmp_path)
    OURS.save(tmp_path)
    (tmp_path / "root.pem").write_bytes(OTHER.root)
    with pytest.raises(StateError, match="does not belong"):
        Authority.open(tmp_path)


def test_members_of_an_intermediate_pin_the_root() -> None:
    chain = OURS.delegate(now=NOW).sign(CSR, role="client", name="bank-a", now=NOW)
    assert len(certificates(chain)) == 2
    assert chain_member(chain, OURS.root, now=NOW).name == "bank-a"
    leaf = chain[: chain.index(b"-----END CERTIFICATE-----") + 26]
    with pytest.raises(ProtocolError, match="pinned root"):
        chain_member(leaf, OURS.root, now=NOW)


def test_certificates_end_with_their_issuer() -> None:
    short = OURS.delegate(now=NOW, years=1 / 365.25 / 24)  # an hour
    assert member_of(short.sign(CSR, role="client", name="a", now=NOW)).until == NOW + HOUR
    with pytest.raises(StateError, match="has ended"):
        short.sign(CSR, role="client", name="a", now=NOW + 2 * HOUR)


# the identity --------------------------------------------------------------------------------


def test_an_identity_comes_back_from_its_folder(tmp_path: Path) -> None:
    saved = Identity(KEY, CHAIN, OURS.root, ("https://hub:8443",)).save(tmp_path / "me")
    back = Identity.open(tmp_path / "me")
    assert (back.member, back.chain, back.roots, back.urls) == (saved.member, CHAIN, OURS.root, saved.urls)
    assert "PRIVATE" not in repr(back)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "me" / "key.pem").stat().st_mode) == 0o600


def test_renewal_is_due_at_half_life() -> None:
    identity = Identity(KEY, CHAIN, OURS.root)
    assert not identity.renew_due(NOW + 12 * HOUR - 1)
    assert identity.renew_due(NOW + 12 * HOUR)


def test_a_renewed_identity_is_seen_by_who_holds_it(tmp_path: Path) -> None:
    identity = Identity(KEY, CHAIN, OURS.root).save(tmp_path)
    current = Current(tmp_path)
    assert current().member.until == NOW + 24 * HOUR
    identity.renewed(OURS.sign(CSR, role="client", name="bank-a", now=NOW + 12 * HOUR))
    assert current().member.until == NOW + 36 * HOUR
    (tmp_path / "cert.pem").write_bytes(b"damaged")
    assert current().member.until == NOW + 36 * HOUR


def test_a_renewal_for_another_member_or_key_is_refused(tmp_path: Path) -> None:
    identity = Identity(KEY, CHAIN, OURS.root).save(tmp_path)
    with pytest.raises(ProtocolError, match="not for spiffe://lagoon/client/bank-a"):
        identity.renewed(OURS.sign(CSR, role="client", name="bank-b", now=NOW))
    other = request(new_key(), "lagoon", "client", "bank-a")
    with pytest.raises(StateError, match="another key"):
        identity.renewed(OURS.sign(other, role="client", name="bank-a", now=NOW))
    assert Identity.open(tmp_path).chain == CHAIN


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "root.pem", "identity.json"])
def test_a_damaged_identity_is_told(tmp_path: Path, name: str) -> None:
    Identity(KEY, CHAIN, OURS.root).save(tmp_path)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(StateError):
        Identity.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StateError, match="enrol again"):
        Identity.open(tmp_path)


def test_an_encrypted_or_foreign_key_is_told() -> None:
    assert key_pem(load_key(key_pem(KEY))) == key_pem(KEY)
    with pytest.raises(StateError, match="no private key"):
        load_key(b"-----BEGIN NOTHING-----")


# tokens --------------------------------------------------------------------------------------


def test_a_token_comes_back_from_its_text() -> None:
    token = Token.new(OURS.fingerprint, os.urandom)
    assert Token.parse(f" {token}\n") == token
    assert str(token).startswith("atoll1.") and len(str(token)) == 98
    assert token.fingerprint == fingerprint(OURS.root)
    assert len(token.digest) == 64 and token.secret.hex() not in repr(token)


@settings(max_examples=100)
@given(st.data())
def test_a_mistyped_token_is_told_and_not_repeated(data) -> None:
    text = str(Token("ab" * 32, bytes(range(32))))
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("abcXYZ059-_. é"))
    wrong = text[:at] + letter + text[at + 1 :]
    if wrong == text:
        return
    with pytest.raises(ConfigError) as caught:
        Token.parse(wrong)
    assert wrong not in str(caught.value)


@pytest.mark.parametrize("text", ["", "atoll1.", "atoll2.abc", "Bearer x", "atoll1." + "A" * 90])
def test_what_is_no_token_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        Token.parse(text)
