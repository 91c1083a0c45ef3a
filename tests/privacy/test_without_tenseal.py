"""Encrypted sums where TenSEAL is missing: said by who lacks it, and no update leaves in the open."""

import sys

import pytest

import atoll as at
from tests.worlds.test_secure_sums import JOB, SITES


def test_who_lacks_tenseal_says_so(monkeypatch) -> None:
    for name in ("tenseal", "tenseal.sealapi"):
        monkeypatch.setitem(sys.modules, name, None)
    from atoll.privacy.hazmat import bfv

    bfv._context.cache_clear()
    job = JOB.replace(exchange=at.encrypted_sum(members=10))
    assert job.exchange.cost(1000)[1] is None
    with pytest.raises(at.AtollError, match=r"atoll-fl\[he\]"):
        at.simulate(job, SITES, seed=1)
