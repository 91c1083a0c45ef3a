"""A run's signed report: what it says, and who may have signed it."""

import json

import pytest

import atoll as at
from atoll.core.errors import ProtocolError
from atoll.privacy.keys import Authority, Identity, new_key, request
from atoll.privacy.report import LONGEST, open_report, report, sign_report
from tests.exact.quadratic import Quadratic

NOW = 1_800_000_000.0


def identity(authority: Authority, role: str, federation: str = "plant") -> Identity:
    key = new_key()
    csr = request(key, federation, role, "ann")
    return Identity(key, authority.sign(csr, role=role, name="ann", now=NOW), authority.root)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.new("plant", now=NOW)


def values(**promise):
    job = at.Job(Quadratic(), promise.pop("algorithm", at.fedavg()), rounds=3, sites=False)
    if promise:
        job = job.private(**promise)
    plan = job.epsilon() if promise else None
    return report(
        job.privacy,
        plan,
        shows=job.exchange.shows,
        run="r1",
        federation="plant",
        rounds=3,
        ended=NOW + 60,
        crypto=job.crypto if job.exchange.shows == "sum" else "",
        buffers=job.trained.buffer is not None,
    )


def test_it_says_what_was_promised_and_who_saw_what() -> None:
    plain = values()
    assert plain["promise"] is None
    assert "each client's update" in plain["seen"]
    central = values(epsilon=2.0, delta=1e-3, clip=1.0)["promise"]
    assert central["epsilon"] == pytest.approx(2.0, rel=1e-3)
    assert "trusted with sums without noise" in central["mechanism"]
    spread = values(epsilon=2.0, delta=1e-3, clip=1.0, exchange=at.secure_sum())
    assert "by the clients" in spread["promise"]["mechanism"]
    assert "sums of updates only" in spread["seen"]
    assert "semi-honest" in spread["trust"]
    assert "neighbours" not in spread["promise"]
    buffers = values(algorithm=at.fedbuff(), epsilon=2.0, delta=1e-3, clip=1.0, exchange=at.secure_sum())
    assert "updates are zeros" in buffers["promise"]["neighbours"]
    assert plain["crypto"] == "TLS 1.3 between members, nothing else"
    assert spread["crypto"].startswith("intl (SHA-256, AES-256")


def test_only_its_coordinator_signs_it(authority: Authority) -> None:
    mine = identity(authority, "coordinator")
    signed = sign_report(mine.key, mine.chain, values())
    assert open_report(signed, authority.root) == values()
    other = identity(authority, "client")
    with pytest.raises(ProtocolError, match="may not sign such reports"):
        open_report(sign_report(other.key, other.chain, values()), authority.root)
    stranger = Authority.new("plant", now=NOW)
    with pytest.raises(ProtocolError):
        open_report(signed, stranger.root)
    changed = json.loads(signed)
    changed["values"] = changed["values"].replace('"rounds": 3', '"rounds": 2')
    with pytest.raises(ProtocolError, match="is not signed by"):
        open_report(json.dumps(changed), authority.root)
    for text in ("", "[]", "{}", '{"report": "{}", "signature": "", "chain": ""}', "x" * (LONGEST + 1)):
        with pytest.raises(ProtocolError, match="no signed report"):
            open_report(text, authority.root)
