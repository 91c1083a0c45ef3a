"""A suite runs the whole of a secure sum, is signed with it, and is nobody's to change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import aead, algorithms

import atoll as at
from atoll.control import config
from atoll.control.engine.policy import Asked, refusal
from atoll.control.settings import Client, Policy, make
from atoll.core.errors import ConfigError, ProtocolError
from atoll.privacy import secure_sum as ss
from atoll.privacy.hazmat import suite as suites
from atoll.privacy.roster import Roster
from tests.privacy.sitting import LABEL, Sitting, vectors
from tests.worlds.test_secure_sums import JOB, SITES

GM = replace(LABEL, crypto="gm")


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("lost", [{}, {"mask": [1], "sign": [4]}])
def test_the_sum_is_exact_in_gm(bits: int, lost: dict[str, list[int]]) -> None:
    sitting = Sitting(7, vectors(7, 100, bits), bits=bits, label=GM, lost=lost).run()
    assert (sitting.sum() == sitting.added(sitting.vectors[list(sitting.hidden)])).all()


def test_a_simulated_job_gives_the_same_model_in_either() -> None:
    one = at.simulate(JOB.replace(exchange=at.secure_sum()), SITES, seed=3)
    other = at.simulate(JOB.replace(exchange=at.secure_sum(), crypto="gm"), SITES, seed=3)
    assert one.params == other.params


def test_an_encrypted_sum_in_gm_is_the_same_sum() -> None:
    pytest.importorskip("tenseal")
    one = at.simulate(JOB.replace(exchange=at.encrypted_sum(members=16)), SITES, seed=3)
    other = at.simulate(JOB.replace(exchange=at.encrypted_sum(members=16), crypto="gm"), SITES, seed=3)
    assert one.params == other.params


def test_a_promise_of_privacy_holds_in_gm() -> None:
    """Other noise of the same size: from another cipher, under other masks."""
    job = JOB.replace(sites=False).private(
        epsilon=8.0, delta=1e-3, clip=1.0, exchange=at.secure_sum(largest=4.0)
    )
    one, other = (at.simulate(job.replace(crypto=name), SITES, seed=3) for name in ("intl", "gm"))
    assert one.params != other.params
    apart = np.linalg.norm(one.params.buffer - other.params.buffer)
    assert 0 < apart < 10 * job.privacy.sigma * len(one.history)


class Used(Exception):  # noqa: N818
    """A primitive of the other suite was used."""


def broken(*given: Any) -> Any:
    raise Used


@pytest.mark.parametrize(
    ("crypto", "of_the_other"),
    [
        ("gm", [(hashes, "SHA256"), (algorithms, "AES"), (aead, "ChaCha20Poly1305")]),
        ("intl", [(hashes, "SM3"), (algorithms, "SM4")]),
    ],
)
@pytest.mark.parametrize("control", [False, True])
def test_nothing_of_the_other_suite_is_used(
    crypto: str, of_the_other: list[Any], control: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the other suite itself does not run without its parts."""
    for module, name in of_the_other:
        monkeypatch.setattr(module, name, broken)
    played = {"gm": "intl", "intl": "gm"}[crypto] if control else crypto
    sitting = Sitting(4, vectors(4, 8, 32), label=replace(LABEL, crypto=played), lost={"mask": [2]})
    if control:
        with pytest.raises(Used):
            sitting.run()
    else:
        ss.noise_key(sitting.run().secrets[0])
        assert sitting.sum().any()


# -- who would have another one ---------------------------------------------------------------


def test_keys_signed_for_one_suite_are_not_taken_in_another() -> None:
    """A coordinator that tells one member of another suite: who was told the right one refuses the roster."""
    right, wrong = (Sitting(4, vectors(4, 8, 32), label=label).run("keys") for label in (GM, LABEL))
    right.members.keys |= wrong.members.keys
    mixed = Roster(GM, (*right.roster.members[:3], wrong.roster.members[3]))
    with pytest.raises(ProtocolError, match="not the member's signature"):
        ss.share(right.secrets[0], ss.roster_out(mixed), right.draw, check=right.check)
    ss.share(right.secrets[0], ss.roster_out(right.roster), right.draw, check=right.check)  # the control


def test_what_was_made_for_one_suite_says_nothing_in_another() -> None:
    """Control: without signatures the mixed roster is taken, and still no letter can be opened."""
    right, wrong = (
        Sitting(3, vectors(3, 8, 32), label=label, signed=False).run("keys") for label in (GM, LABEL)
    )
    assert [a.keys.mask for a in right.secrets.values()] == [b.keys.mask for b in wrong.secrets.values()]
    for sitting in (right, wrong):
        sitting.shares()
    mail = ss.routed({c: wrong.shared[c] if c else right.shared[c] for c in range(3)})
    secret, _ = ss.mask(right.secrets[0], mail[0], right.vectors[0], 32)
    secret, _ = ss.sign(secret, ss.survivors_out(range(3)))
    signed = ss.signatures_out(dict.fromkeys(range(3), b""))
    with pytest.raises(ProtocolError, match="was changed"):
        ss.reveal(secret, ss.survivors_out(range(3)), signed)


def test_a_site_lists_what_it_requires() -> None:
    asked = Asked(
        job="j", learner="mlp", algorithm="fedavg", cohort=5, rows=9, round=0, minute=0, crypto="intl"
    )
    assert "requires crypto gm, the job has intl" in refusal(Policy(crypto=("gm",)), asked)
    assert refusal(Policy(crypto=("gm",)), replace(asked, crypto="gm")) == ""
    assert refusal(Policy(), asked) == ""
    assert make(Client, {"policy": {"crypto": ["gm"]}}).policy.crypto == ("gm",)
    with pytest.raises(ConfigError, match="Invalid enum value 'sm2'"):
        make(Client, {"policy": {"crypto": ["sm2"]}})


def test_a_job_names_its_suite() -> None:
    table = {"learner": "softmax", "exchange": "secure_sum", "crypto": "gm"}
    job = config.parse(table).job
    assert (job.crypto, job.trained.crypto) == ("gm", "gm")
    assert config.parse({"learner": "softmax"}).job.crypto == "intl"
    for wrong in ("sm2", "", 5, ["gm"], {"name": "gm"}):
        with pytest.raises(ConfigError, match=r"\$\.crypto: crypto is 'intl' or 'gm', got"):
            config.parse({**table, "crypto": wrong})
    with pytest.raises(ConfigError, match="set exchange to secure_sum"):
        config.parse({"learner": "softmax", "crypto": "gm"})


def test_an_installation_says_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm

    assert suites.usable() == ("intl", "gm")
    suites.usable.cache_clear()

    def lacking(*given: Any) -> Any:
        raise UnsupportedAlgorithm("no SM4 here")

    monkeypatch.setattr(algorithms, "SM4", lacking)
    try:
        assert suites.usable() == ("intl",)
    finally:
        suites.usable.cache_clear()


def test_noise_of_a_member_comes_from_its_suite() -> None:
    from atoll.learn.integers import share_of

    one, two = (share_of(bytes(32), 3, suites.SUITES[name].stream)(4096, 100.0) for name in suites.SUITES)
    assert not np.array_equal(one, two)
    assert abs(one.std() / two.std() - 1) < 0.1
