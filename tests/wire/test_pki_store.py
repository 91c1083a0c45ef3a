"""The registrar over the real store: what it decides outlives the process."""

import secrets
import shutil
from pathlib import Path

import pytest

from atoll.control.engine.founding import found_authority
from atoll.control.engine.pki import Registrar
from atoll.control.settings import Server
from atoll.control.store.store import Store
from atoll.core.errors import Refused, StateError
from atoll.privacy.keys import Authority, member_of, new_key, request
from tests.wire.pki import DAY, NOW

OURS = Authority.new("lagoon", now=NOW)


def csr(key) -> bytes:
    return request(key, "any", "client", "any")


def test_a_token_stays_with_its_key_over_a_restart(tmp_path: Path) -> None:
    key = new_key()
    store = Store.open("", tmp_path, clock=lambda: NOW)
    token = Registrar(OURS, store).token("client", "bank-a", now=NOW, random=secrets.token_bytes)
    first = member_of(Registrar(OURS, store).enrol(token.secret, csr(key), now=NOW))
    store.close()
    store = Store.open("", tmp_path, clock=lambda: NOW)
    registrar = Registrar(OURS, store)
    assert member_of(registrar.enrol(token.secret, csr(key), now=NOW)).uri == first.uri
    with pytest.raises(Refused, match="used by another key"):
        registrar.enrol(token.secret, csr(new_key()), now=NOW)
    assert {c["serial"] for c in store.certificates("bank-a")} >= {first.serial}
    assert token.secret not in b"".join(p.read_bytes() for p in tmp_path.glob("atoll.db*"))
    store.close()


def test_no_new_authority_is_made_for_members_of_another(tmp_path: Path) -> None:
    def found(folder: str) -> bytes:
        settings = Server(folder=str(tmp_path / folder), federation="lagoon", listen="127.0.0.1:0")
        with Store.open("", tmp_path / "store", clock=lambda: NOW) as store:
            registrar, current = found_authority(settings, store, now=NOW)
            registrar.token("client", "bank-a", now=NOW, random=secrets.token_bytes)
            return current().roots

    first = found("hub")
    assert found("hub") == first
    with pytest.raises(StateError, match=r"another coordinator's: .* not in .*other/pki\. Restore"):
        found("other")
    assert not (tmp_path / "other" / "pki").exists()
    shutil.copytree(tmp_path / "hub" / "pki", tmp_path / "moved" / "pki")
    assert found("moved") == first, "a folder that brings it along"


def test_revoked_stays_revoked_and_readmitted_needs_a_new_certificate(tmp_path: Path) -> None:
    key, now = new_key(), NOW
    store = Store.open("", tmp_path, clock=lambda: now)
    registrar = Registrar(OURS, store)
    token = registrar.token("client", "bank-a", now=NOW, random=secrets.token_bytes)
    member = member_of(registrar.enrol(token.secret, csr(key), now=NOW))
    registrar.check(member)
    assert registrar.revoke("bank-a", "ann")
    with pytest.raises(Refused, match="revoked"):
        registrar.check(member)
    assert store.readmit("bank-a", "ann")
    with pytest.raises(Refused, match="revoked"):
        registrar.renew(member, csr(key), now=NOW)
    now = NOW + 5 * DAY
    assert member.serial not in store.revoked()  # it has run out, which is no way back
    with pytest.raises(Refused, match="new token"):
        registrar.renew(member, csr(key), now=now)
    store.close()


def test_a_device_that_was_off_comes_back(tmp_path: Path) -> None:
    key, now = new_key(), NOW
    store = Store.open("", tmp_path, clock=lambda: now)
    registrar = Registrar(OURS, store)
    token = registrar.token("client", "bank-a", now=NOW, random=secrets.token_bytes)
    member = member_of(registrar.enrol(token.secret, csr(key), now=NOW))
    now = NOW + 5 * DAY
    assert member_of(registrar.renew(member, csr(key), now=now)).until > now
    store.close()
