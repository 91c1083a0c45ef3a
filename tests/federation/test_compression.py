"""`compression = "auto"` between real processes: what a slow link makes of it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.federation.kills import Placed
from tests.federation.processes import JOB, Nursery
from tests.federation.troubles import relayed

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
WIDE = {
    **JOB,
    "rounds": 2,
    "learner": {"name": "mlp", "hidden": [512, 256], "lr": 1e-6},
    "algorithm": "fedavg",
}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def played(folder: Path, nursery: Nursery, job: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Bytes that members sent over a link of 4 MB/s, and what clients said of it."""
    with ExitStack() as stack:
        fed = stack.enter_context(Placed(folder, job, edges=0, nursery=nursery))
        relays = stack.enter_context(relayed(fed, 1, beat=5.0))
        relays.do(lambda relay: setattr(relay, "rate", 4e6))
        for name in fed.names:
            fed.start(name, ATOLL_LOG="info")
        fed.until(lambda: fed.joined() >= {*fed.clients}, what="everybody to join")
        run = fed.submit()
        fed.finished(run)
        said = [(fed.folder / "logs" / f"{name}.log").read_text() for name in fed.clients]
        lines = [line for text in said for line in text.splitlines() if "updates travel" in line]
        return relays.servers[0].bytes["up"], lines


def test_over_a_slow_link_updates_travel_small(tmp_path: Path, nursery: Nursery) -> None:
    small, said = played(tmp_path / "auto", nursery, {**WIDE, "compression": "auto"})
    whole, silent = played(tmp_path / "plain", nursery, WIDE)
    assert len(said) == 3 and not silent, "once a client"
    for line in said:
        rate = float(line.partition("updates travel as int")[2][3:].partition(" MB/s up")[0])
        assert rate < 4.5 and rate != 1.25, "of the download, not what is declared"
    assert small < 0.4 * whole
