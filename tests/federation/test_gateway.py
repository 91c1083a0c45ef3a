"""Members that reach a broker only, beside others over gRPC: real processes, whatever dies."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atoll.control.config import dump
from atoll.control.remote.doctor_member import doors
from atoll.control.settings import Client, read
from tests.federation.processes import JOB, Federation, Nursery
from tests.federation.test_processes import gathered, whole
from tests.wire.mosquitto import Mosquitto, missing

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
FOUR = {**JOB, "data": {**JOB["data"], "clients": 4}}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


BY_BROKER = ("client-1", "client-2")


class Gated(Federation):
    """A federation with a gateway before its coordinator, and the first two clients at a broker only."""

    def __init__(self, folder: Path, broker: Mosquitto, nursery: Nursery) -> None:
        super().__init__(folder, FOUR, nursery=nursery, edges=0, transport="grpc")
        hub = self.read("coordinator")["listen"]
        self.names.insert(1, "gateway")
        values = {"name": "plant", "broker": f"mqtt://127.0.0.1:{broker.port}", "to": f"https://{hub}"}
        (folder / "gateway").mkdir()
        (folder / "gateway" / "gateway.toml").write_text(dump(values))
        self.url = f"mqtt+sealed://127.0.0.1:{broker.port}/plant"

    def role(self, name: str) -> str:
        return "gateway" if name == "gateway" else super().role(name)

    def place(self, name: str) -> Path:
        return self.folder / "gateway" if name == "gateway" else super().place(name)


@contextmanager
def gated(folder: Path, nursery: Nursery) -> Iterator[tuple[Gated, Mosquitto]]:
    """Everybody there; two of them enrolled by the broker and know no other way."""
    with Mosquitto(folder / "broker") as broker, Gated(folder / "fed", broker, nursery) as fed:
        for name in BY_BROKER:
            fed.set(name, join=[fed.url])
        fed.start_all()
        gathered(fed)
        fed.until(lambda: sealed(fed) == set(BY_BROKER), what="them to be shown as sealed")
        yield fed, broker


def sealed(fed: Federation) -> set[str]:
    return {n["name"] for n in fed.connect().nodes() if n["online"] and n["live"].get("sealed")}


def test_two_by_a_broker_and_two_by_grpc_whatever_dies(
    tmp_path: Path, nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.transport.mqtt_link.STATE", 1.0)  # the doctor's, in this process
    job: Any = {**FOUR, "rounds": 6}
    with gated(tmp_path, nursery) as (fed, broker):
        fed.job = job
        run = fed.submit()
        fed.until(lambda: fed.rounds(run) >= 1, what="the first round")
        fed.kill("gateway")
        fed.start("gateway")
        fed.until(lambda: fed.rounds(run) >= 3, what="the third round")
        broker.kill()
        broker.start()
        fed.finished(run)
        looked(fed, broker)
        fed.stop(*fed.names)
        whole(fed, run, rounds=6)


def looked(fed: Gated, broker: Mosquitto) -> None:
    """What the doctor says beside a member, as one thing after the other goes."""

    def levels() -> dict[str, str]:
        place = fed.place("client-1")
        found = doors(place, read(place / "client.toml", Client), 10.0, time.time)
        return {f.what: f.level for f in found if f.remedy or f.level == "ok"}

    well = {"name": "ok", "way": "ok", "broker": "ok", "gateway": "ok"}
    assert levels() == {**well, "root": "ok", "versions": "ok", "certificate": "ok"}
    with pytest.MonkeyPatch.context() as newer:
        newer.setattr("atoll.transport.link.PROTOCOL", (2, 0))
        assert levels()["versions"] == "bad"
    fed.kill("gateway")
    assert levels() == {**well, "gateway": "bad"}
    broker.kill()
    assert levels() == {"name": "ok", "way": "bad"}
