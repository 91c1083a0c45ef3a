"""A federation of processes on PostgreSQL: its server cuts the connections, the run goes on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation import invariants
from tests.federation.processes import JOB, Federation, Nursery
from tests.store import postgres

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
LONG = {**JOB, "rounds": 12, "algorithm": "fedavg"}
CUTS = 13
CUT = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> "


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.server() as database, database() as made:
        yield made


def test_a_run_outlives_its_databases_connections(tmp_path: Path, url: str) -> None:
    with Nursery() as nursery, Federation(tmp_path, LONG, nursery=nursery) as fed:
        with fed.store() as here:
            tokens = here.tokens()
        fed.set("coordinator", store=url)
        with fed.store() as there:
            for token in tokens:
                there.token_add(*(token[key] for key in ("digest", "role", "name", "until")))
        fed.start_all()
        fed.until(lambda: fed.joined() >= {*fed.clients, *fed.edges}, what="everybody to join")
        run = fed.submit()
        for _ in range(CUTS):
            fed.until(lambda: fed.sql(f"{CUT}pg_backend_pid()"), what="a connection to cut")
        fed.finished(run)
        assert fed.connect().health()["ok"]
        fed.stop(*fed.names)
        with fed.store() as store:
            assert invariants.broken(store, run, expected=fed.expected(5, LONG), rounds=LONG["rounds"]) == []
            assert not [entry for entry in store.logs(run) if entry["level"] == "error"]
