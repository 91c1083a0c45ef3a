"""A failpoint that no run reaches would be one that no test kills at."""

import os

import pytest

import atoll.control.engine.agent
import atoll.control.engine.coordinator
import atoll.control.engine.edge
import atoll.control.engine.learner  # noqa: F401  they declare what they reach
from atoll.wire import failpoint
from tests.federation.kills import Case, Sweep

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
ELSEWHERE = ("store.", "files.", "sense.", "shelf.", "watch.", "fitting.")  # reached in tests of their own


def test_a_run_reaches_every_failpoint_and_may_die_there() -> None:
    with Sweep() as sweep:
        reached = {name for hits in sweep.hits.values() for found in hits.values() for name in found}
        declared = {name for name in failpoint.NAMES if not name.startswith(ELSEWHERE)}
        assert declared - reached == set()
        for case in (
            Case("coordinator", "store.token_add.after_commit", 1, 2, first=True),
            Case("learner", "learning.kept.after", 1, 2),
        ):
            assert sweep.kill(case).broken == []
