"""The registrar: one token, one key; names from tokens; renewal; revocation."""

import json
import logging
import os
import secrets
from pathlib import Path

import pytest

from atoll.control.cli import main
from atoll.control.engine.pki import GRACE, Registrar, about, init, own
from atoll.core.errors import ConfigError, ProtocolError, Refused, StateError
from atoll.privacy.certificate import key_pem
from atoll.privacy.keys import (
    Authority,
    Identity,
    chain_member,
    hosts_of,
    member_of,
    new_key,
    request,
)
from atoll.privacy.report import trust
from atoll.privacy.token import Token
from tests.wire.pki import DAY, Ledger

NOW = 1_800_000_000.0
OURS = Authority.new("lagoon", now=NOW)
KEY = new_key()


def csr(key=KEY, role: str = "client", name: str = "any", hosts=()) -> bytes:
    return request(key, "any", role, name, hosts)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def registrar(ledger: Ledger) -> Registrar:
    return Registrar(OURS, ledger, reserved=["hub.example", "10.0.0.1", "localhost", "127.0.0.1"])


def token(registrar: Registrar, role: str = "client", name: str = "bank-a", hours: float = 72) -> Token:
    return registrar.token(role, name, now=NOW, random=secrets.token_bytes, hours=hours)


def test_a_token_is_worth_one_certificate_of_its_name(registrar: Registrar) -> None:
    greedy = csr(role="coordinator", name="hub")
    chain = registrar.enrol(token(registrar).secret, greedy, now=NOW)
    assert chain_member(chain, OURS.root, now=NOW).uri == "spiffe://lagoon/client/bank-a"


def test_the_store_never_holds_the_secret(registrar: Registrar, ledger: Ledger) -> None:
    made = token(registrar)
    assert list(ledger.tokens) == [made.digest]
    assert made.secret.hex() not in repr(vars(ledger)) and str(made) not in repr(vars(ledger))


def test_one_token_makes_one_identity_however_many_ask(
    registrar: Registrar, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    made = token(registrar)
    registrar.enrol(made.secret, csr(new_key()), now=NOW)
    for _ in range(99):
        with pytest.raises(Refused, match="used by another key"):
            registrar.enrol(made.secret, csr(new_key()), now=NOW)
    assert len(ledger.made) == 1
    told = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 99 and all(made.digest[:12] in r.getMessage() for r in told)
    assert made.secret.hex() not in caplog.text
    for _ in range(3):  # control: as many tokens as asked for make as many identities
        registrar.enrol(token(registrar).secret, csr(new_key()), now=NOW)
    assert len(ledger.made) == 4


def test_a_lost_answer_does_not_burn_the_token(registrar: Registrar) -> None:
    made = token(registrar)
    first = registrar.enrol(made.secret, csr(), now=NOW)
    again = registrar.enrol(made.secret, csr(), now=NOW + DAY)
    assert member_of(first).uri == member_of(again).uri
    with pytest.raises(Refused, match="has ended"):
        registrar.enrol(made.secret, csr(), now=NOW + 4 * DAY)


def test_a_bad_request_does_not_burn_the_token(registrar: Registrar) -> None:
    made = token(registrar)
    with pytest.raises(ProtocolError):
        registrar.enrol(made.secret, b"-----BEGIN CERTIFICATE REQUEST-----", now=NOW)
    assert registrar.enrol(made.secret, csr(), now=NOW)


@pytest.mark.parametrize("late", [0, 1])
def test_a_token_ends(registrar: Registrar, late: int) -> None:
    made = token(registrar, hours=1)
    with pytest.raises(Refused, match="has ended"):
        registrar.enrol(made.secret, csr(), now=NOW + 3600 + late)
    assert registrar.enrol(made.secret, csr(), now=NOW + 3599)


def test_an_unknown_secret_is_refused(registrar: Registrar) -> None:
    with pytest.raises(Refused, match="unknown"):
        registrar.enrol(os.urandom(32), csr(), now=NOW)
    with pytest.raises(Refused, match="unknown"):
        registrar.enrol(b"", csr(), now=NOW)


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_an_operators_token_makes_no_member(registrar: Registrar, ledger: Ledger, role: str) -> None:
    made = Token.new(OURS.fingerprint, secrets.token_bytes)
    ledger.token_add(made.digest, role, "ann", NOW + DAY)
    with pytest.raises(Refused, match="for the API"):
        registrar.enrol(made.secret, csr(), now=NOW)
    with pytest.raises(ConfigError, match="a member is one of"):
        token(registrar, role=role)


@pytest.mark.parametrize(("name", "hours"), [("Bank", 1), ("a/b", 1), ("a", 0), ("a", -1), ("a", 1e6)])
def test_a_token_has_a_proper_name_and_time(registrar: Registrar, name: str, hours: float) -> None:
    with pytest.raises(ConfigError):
        token(registrar, name=name, hours=hours)


# hosts ---------------------------------------------------------------------------------------


def test_an_edge_names_its_hosts(registrar: Registrar) -> None:
    asked = csr(role="edge", hosts=["edge.plant.example", "10.0.0.7", "localhost", "127.0.0.1"])
    chain = registrar.enrol(token(registrar, "edge", "line").secret, asked, now=NOW)
    assert set(hosts_of(chain)) == {"edge.plant.example", "10.0.0.7", "localhost", "127.0.0.1"}


@pytest.mark.parametrize("host", ["hub.example", "10.0.0.1"])
def test_an_edge_cannot_take_the_coordinators_host(registrar: Registrar, ledger: Ledger, host: str) -> None:
    made = token(registrar, "edge", "line")
    with pytest.raises(Refused, match="is the coordinator's"):
        registrar.enrol(made.secret, csr(role="edge", hosts=[host]), now=NOW)
    plain = Registrar(OURS, ledger)  # control: without the reservation it would get it
    assert hosts_of(plain.enrol(made.secret, csr(role="edge", hosts=[host]), now=NOW)) == (host,)


def test_a_client_gets_no_hosts(registrar: Registrar) -> None:
    with pytest.raises(Refused, match="nobody dials"):
        registrar.enrol(token(registrar).secret, csr(hosts=["hub.example"]), now=NOW)


# renewal and revocation ----------------------------------------------------------------------


def test_renewal_gives_a_later_certificate_of_the_same_name(registrar: Registrar) -> None:
    member = member_of(registrar.enrol(token(registrar).secret, csr(), now=NOW))
    again = member_of(registrar.renew(member, csr(), now=NOW + DAY / 2))
    assert again.uri == member.uri and again.until == member.until + DAY / 2
    assert again.serial != member.serial


def test_a_device_that_was_off_for_days_renews_but_not_for_ever(registrar: Registrar) -> None:
    member = member_of(registrar.enrol(token(registrar).secret, csr(), now=NOW))
    assert registrar.renew(member, csr(), now=member.until + GRACE)
    with pytest.raises(Refused, match="enrol it with a new token"):
        registrar.renew(member, csr(), now=member.until + GRACE + 1)


def test_a_certificate_nobody_knows_is_not_renewed_late(registrar: Registrar, ledger: Ledger) -> None:
    member = member_of(registrar.enrol(token(registrar).secret, csr(), now=NOW))
    ledger.made.clear()
    with pytest.raises(Refused, match="enrol it with a new token"):
        registrar.renew(member, csr(), now=member.until + 1)


def test_a_revoked_name_gets_nothing(registrar: Registrar) -> None:
    made, open_token = token(registrar), token(registrar)
    member = member_of(registrar.enrol(made.secret, csr(), now=NOW))
    registrar.check(member)  # control
    assert registrar.revoke("bank-a") and not registrar.revoke("bank-a")
    for attempt in (
        lambda: registrar.check(member),
        lambda: registrar.renew(member, csr(), now=NOW),
        lambda: registrar.enrol(made.secret, csr(), now=NOW),
        lambda: registrar.enrol(open_token.secret, csr(new_key()), now=NOW),
    ):
        with pytest.raises(Refused, match="revoked"):
            attempt()
    with pytest.raises(ConfigError, match="readmit it first"):
        token(registrar)


def test_a_readmitted_names_old_certificate_stays_out(registrar: Registrar, ledger: Ledger) -> None:
    stolen = member_of(registrar.enrol(token(registrar).secret, csr(), now=NOW))
    registrar.revoke("bank-a")
    ledger.banned.clear()  # readmitted
    registrar.check(member_of(registrar.enrol(token(registrar).secret, csr(new_key()), now=NOW)))
    with pytest.raises(Refused, match="revoked"):
        registrar.renew(stolen, csr(), now=NOW)


def test_members_of_another_federation_are_refused(registrar: Registrar) -> None:
    sister = Authority("reef", OURS.root, b"", OURS._key)
    member = member_of(sister.sign(csr(), role="client", name="bank-a", now=NOW))
    with pytest.raises(Refused, match="another federation"):
        registrar.renew(member, csr(), now=NOW)


# the coordinator's folder --------------------------------------------------------------------


def test_init_makes_an_authority_and_the_coordinators_identity(tmp_path: Path) -> None:
    made = init(tmp_path, "lagoon", hosts=["localhost"], now=NOW)
    assert made.member.uri == "spiffe://lagoon/coordinator/coordinator"
    assert Identity.open(tmp_path / "identity").chain == made.chain
    assert chain_member(made.chain, Authority.open(tmp_path / "authority").root, now=NOW)
    shown = about(tmp_path)
    assert shown["federation"] == "lagoon" and shown["hosts"] == ["localhost"]
    assert shown["authority_ends"] == shown["root_ends"] > shown["certificate_ends"]
    assert "PRIVATE" not in repr(shown)
    assert "holds the root's key" in shown["trust"]
    with pytest.raises(ConfigError, match="there is an authority"):
        init(tmp_path, "lagoon", hosts=["localhost"], now=NOW)


def test_the_roots_key_can_be_kept_apart(tmp_path: Path) -> None:
    here, safe = tmp_path / "here", tmp_path / "safe"
    made = init(here, "lagoon", hosts=["localhost"], now=NOW, apart=safe)
    assert chain_member(made.chain, Authority.open(safe).root, now=NOW)
    assert Authority.open(here / "authority").fingerprint == Authority.open(safe).fingerprint
    keys = [(folder / "authority.key.pem").read_bytes() for folder in (here / "authority", safe)]
    assert keys[0] != keys[1]
    assert "by an intermediate's" in about(here)["trust"]


@pytest.mark.parametrize("roots", [True, False])
def test_a_companys_key_is_its_roots_or_an_intermediates(tmp_path: Path, roots: bool) -> None:
    company = Authority.new("lagoon", now=NOW)
    made = company if roots else company.delegate(now=NOW)
    key = key_pem(made._key)
    adopted = Authority.adopt("lagoon", company.root, made.chain, key, now=NOW)
    hub = init(tmp_path / "pki", "lagoon", hosts=["localhost"], now=NOW, authority=adopted)
    client = adopted.sign(csr(), role="client", name="bank-a", now=NOW)
    words = "holds the root's key" if roots else "root's key lies elsewhere"
    for chain in (hub.chain, client):
        assert trust(chain).startswith("semi-honest coordinator") and words in trust(chain)


def test_status_says_what_is_believed_of_the_coordinator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the coordinator's folder, which gets no key of a store by it, and at a site."""
    init(tmp_path / "hub" / "pki", "lagoon", hosts=["localhost"], now=NOW, apart=tmp_path / "safe")
    authority = Authority.open(tmp_path / "hub" / "pki" / "authority")
    key = new_key()
    chain = authority.sign(request(key, "lagoon", "client", "a"), role="client", name="a", now=NOW)
    Identity(key, chain, authority.root).save(tmp_path / "site" / "identity")
    for folder in ("hub", "site"):
        assert main(["privacy", "status", "--folder", str(tmp_path / folder)]) == 0
        assert "trust: semi-honest coordinator" in capsys.readouterr().out
        assert main(["privacy", "status", "--json", "--folder", str(tmp_path / folder)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["budgets"] == [] and "by an intermediate's" in told["trust"]
    assert not (tmp_path / "hub" / "store.key").exists()
    assert main(["privacy", "status", "--json", "--folder", str(tmp_path / "new")]) == 0
    assert json.loads(capsys.readouterr().out)["trust"] is None


def test_the_coordinator_renews_its_own_for_the_same_key(tmp_path: Path) -> None:
    first = init(tmp_path, "lagoon", hosts=["localhost"], now=NOW)
    again = own(tmp_path, name="coordinator", hosts=["localhost", "hub.example"], now=NOW + DAY / 2)
    assert again.member.until == first.member.until + DAY / 2
    assert hosts_of(again.chain) == ("localhost", "hub.example")
    assert (tmp_path / "identity" / "key.pem").exists() and again.folder == tmp_path / "identity"
    with pytest.raises(StateError):
        own(tmp_path / "nowhere", name="coordinator", hosts=[], now=NOW)
