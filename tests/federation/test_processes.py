"""Federations of real processes: killed, spoken to in three ways, revoked, renewed, wiped and restored."""

import asyncio
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll as at
from atoll.control.cli import main as atoll
from atoll.control.config import dump, parse
from atoll.control.engine.agent import QUARANTINED
from atoll.control.engine.safe import opened
from atoll.control.settings import Client
from atoll.control.store import Store
from atoll.core.errors import AtollError
from atoll.core.session import Packet
from atoll.learn.failure import NOT_LET_IN
from atoll.learn.integers import Scale
from atoll.privacy.keys import Current, Identity
from atoll.privacy.ledger import Ledger
from atoll.privacy.private import write_private
from atoll.privacy.vault import Vault
from atoll.transport.enrol import renew
from atoll.transport.link import Link, letter, pack, read, unpack
from atoll.transport.open import open_link
from tests.federation import invariants
from tests.federation.parts_of_site import mark
from tests.federation.processes import JOB, ROOT, Federation, Nursery, simulated
from tests.wire.proxy import TlsProxy
from tests.wire.test_proxies import blind, proxy_tls

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are waited for by descriptors, which needs Linux"
)
LONG = {**JOB, "rounds": 40, "algorithm": "fedavg"}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def gathered(fed: Federation) -> None:
    fed.until(lambda: fed.joined() >= {*fed.clients, *fed.edges}, what="everybody to join")


def online(fed: Federation) -> set[str]:
    return {node["name"] for node in fed.connect().nodes() if node["online"]}


def whole(fed: Federation, run: str, rounds: int = 2) -> None:
    """Everybody counted in every round, the log verifies, the model is the simulation's."""
    with fed.store() as store:
        job = dict(fed.job)
        assert invariants.broken(store, run, expected=fed.expected(5, job), rounds=rounds) == []


def test_one_of_each_role_is_killed_and_the_model_is_the_same(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path, nursery=nursery, transport="grpc") as fed:
        places = {
            "coordinator": "drive.folded.after:2:kill",
            "edge-a": "drive.counted.after:3:kill",
            "client-1": "uplink.kept.after:2:kill",
        }
        for name in fed.names:
            fed.start(name, failpoints=places.get(name, ""))
        gathered(fed)
        run = fed.submit()
        fed.outlived(places)
        fed.finished(run)
        fed.stop(*fed.names)
        whole(fed, run)


def test_a_client_that_goes_to_another_edge_in_a_round_counts_once(tmp_path: Path, nursery: Nursery) -> None:
    """It has trained and is about to answer one edge when it turns up under the other; both live on."""
    with Federation(tmp_path, nursery=nursery, edges=2) as fed:
        for name in fed.names:
            fed.start(name, failpoints="uplink.kept.after:2:kill" if name == "client-1" else "")
        gathered(fed)
        run = fed.submit()
        fed.until(lambda: fed.dead("client-1"), what="client-1 to go")
        here, there = fed.read("client-1")["join"][:2]
        fed.set("client-1", join=[there, here])
        fed.start("client-1")
        fed.finished(run)
        shown = {row["name"]: row["parent"] for row in fed.connect().nodes()}
        fed.stop(*fed.names)
        whole(fed, run)
    assert shown["client-1"] == "edge-b"


@pytest.mark.parametrize("transport", ["grpc", "https", "websocket"])
def test_the_same_job_in_three_ways_of_talking(tmp_path: Path, nursery: Nursery, transport: str) -> None:
    with Federation(tmp_path, nursery=nursery, transport=transport) as fed:
        fed.start_all()
        gathered(fed)
        run = fed.submit()
        fed.finished(run)
        shown = {row["name"]: row["transport"] for row in fed.connect().nodes() if row["name"] in fed.edges}
        assert set(shown.values()) == {{"websocket": "wss"}.get(transport, transport)}
        fed.stop(*fed.names)
        whole(fed, run)


SMALL = {
    **JOB,
    "rounds": 3,
    "learner": {"name": "mlp", "hidden": [256], "lr": 0.1},
    "algorithm": {"name": "small", "up": {"name": "topk", "fraction": 0.1, "bits": 8}, "down": "thin"},
}


def test_compact_updates_through_real_gates_give_the_simulations_bytes(
    tmp_path: Path, nursery: Nursery
) -> None:
    """A client is killed once it has kept an upload: what it holds back is what the server lacks."""
    with Federation(tmp_path, SMALL, nursery=nursery, transport="grpc") as fed:
        for name in fed.names:
            fed.start(name, failpoints="uplink.kept.after:2:kill" if name == "client-1" else "")
        gathered(fed)
        run = fed.submit()
        fed.until(lambda: fed.dead("client-1"), what="it to die")
        fed.start("client-1")
        fed.finished(run)
        fed.stop(*fed.names)
        whole(fed, run, rounds=3)


def listening(fed: Federation, name: str = "coordinator") -> int:
    ports = json.loads((fed.place(name) / "ports.json").read_text())
    return int(ports["listen"].rpartition(":")[2])


@contextmanager
def ending_tls(to: int) -> Iterator[tuple[int, Path]]:
    """A proxy that ends TLS before a server's port, in a thread; its port, and who vouches for it."""
    tls, ca = proxy_tls()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    proxy = TlsProxy(to, tls, blind())
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10.0)
        yield proxy.port, ca
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(10.0)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize(("scheme", "edges"), [("https+sealed", 0), ("wss+sealed", 0), ("wss+sealed", 1)])
def test_a_client_behind_a_proxy_that_ends_tls(
    tmp_path: Path, nursery: Nursery, scheme: str, edges: int
) -> None:
    """It takes part, is shown as sealed, below an edge as well, and gets its new certificate by that way."""
    with Federation(tmp_path, nursery=nursery, edges=edges) as fed:
        fed.start_all()
        gathered(fed)
        fed.stop("client-1")
        with ending_tls(listening(fed, "edge-a" if edges else "coordinator")) as (port, ca):
            url = f"{scheme}://127.0.0.1:{port}"
            old = Current(fed.place("client-1") / "identity")()
            new = asyncio.run(renew(url, old, proxy="", ca=ca, now=time.time()))
            assert new.chain != old.chain and new.member.name == "client-1"
            fed.set("client-1", join=[url], ca=str(ca))
            fed.start("client-1")
            shown = fed.until(
                lambda: [
                    n for n in fed.connect().nodes() if n["name"] == "client-1" and n["live"].get("sealed")
                ],
                what="client-1 to be shown as sealed",
            )
            assert shown[0]["transport"] == scheme.partition("+")[0]
            assert shown[0]["address"] and shown[0]["parent"] == ("edge-a" if edges else "")
            run = fed.submit()
            fed.finished(run)
            fed.stop(*fed.names)
        whole(fed, run)


def test_who_is_revoked_is_cut_wherever_it_is(tmp_path: Path, nursery: Nursery) -> None:
    """Below an edge, in the middle of its session; and it cannot come back."""
    with Federation(tmp_path, nursery=nursery) as fed:
        fed.start_all()
        gathered(fed)
        fed.connect().revoke("client-1")
        fed.until(lambda: fed.dead("client-1"), 30.0, "client-1 to be cut")
        fed.start("client-1")
        fed.until(lambda: fed.dead("client-1"), 30.0, "client-1 to be refused")
        assert "revoked" in fed.logs()
        assert not fed.dead("client-2")
        fed.connect().readmit("client-1")
        fed.start("client-1")
        fed.until(lambda: fed.dead("client-1"), 30.0, "its certificate from before to be refused")
        fed.set("client-1", token=fed.connect().token("client", "client-2"))
        fed.start("client-1")
        fed.until(lambda: fed.dead("client-1"), 30.0, "it to stay client-1 in its folder")
        assert "this token is for client client-2, and here is client client-1" in fed.logs(30)
        fed.set("client-1", token=fed.connect().token("client", "client-1"))
        for _ in range(2):  # with a new token it enrols, and once
            fed.start("client-1")
            fed.until(lambda: "client-1" in online(fed), what="client-1 to be back")
            fed.stop("client-1")
        assert fed.logs(200).count("enrolled at") == len(fed.edges) + len(fed.clients) + 1


def test_an_edge_takes_the_name_of_its_token(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path, nursery=nursery) as fed:
        settings = {k: v for k, v in fed.read("edge-a").items() if k != "name"}
        write_private(fed.settings("edge-a"), dump(settings).encode())
        fed.start_all()
        gathered(fed)
        assert fed.joined() >= {"edge-a"}
        fed.finished(fed.submit())
        assert "edge-a of federation local: members join" in fed.logs(200)


@contextmanager
def faulty(
    folder: Path, nursery: Nursery, how: str, *, failpoints: str = "", **shape: Any
) -> Iterator[tuple[Federation, str]]:
    """A finished run with a learner that fails so (parts_of_site.py) at client-2, everybody still there.

    `failpoints`: of edge-a, which is started again.
    """
    job = {**JOB, "learner": "line", "algorithm": "fedavg"}
    parts = str(ROOT / "tests" / "federation" / "parts_of_site.py")
    with Federation(folder, JOB, nursery=nursery, **{"edges": 0, **shape}) as fed:
        for name in fed.names:
            fed.words[name] = ("--parts", parts)
            own = failpoints if name == "edge-a" else ""
            fed.start(name, failpoints=own, FAULTY=how if name == "client-2" else "")
            if name in fed.edges:  # listens by then: nobody goes past it
                fed.until(lambda name=name: name in fed.joined(), what=f"{name} to join")
        gathered(fed)
        run = fed.submit(job=job)
        if failpoints:
            fed.outlived({"edge-a"})
        fed.finished(run)
        yield fed, run


TIERS = {
    "coordinator": "",
    "edge-a": "coordinator",
    "edge-b": "edge-a",
    **dict.fromkeys(("client-1", "client-2", "client-3"), "edge-b"),
}


@pytest.mark.parametrize("shape", [{}, {"edges": 1}, {"edges": 2, "above": TIERS}])
def test_a_traceback_at_a_site_reaches_the_operator(
    tmp_path: Path, nursery: Nursery, shape: dict[str, Any]
) -> None:
    """Its own words with cause and fix, once for each round, however many edges are in between."""
    with faulty(tmp_path, nursery, "raises", **shape) as (fed, run):
        logs = fed.connect().run(run).logs()
        told = [row for row in logs if row["node"] == "client-2" and row["level"] == "error"]
        assert len(told) == len(logs) == JOB["rounds"], logs
        assert "parts_of_site.py" in told[0]["text"] and "ZeroDivisionError" in told[0]["cause"], logs
        assert told[0]["fix"]


def test_what_a_gate_refused_is_logged_once_though_its_edge_was_killed(
    tmp_path: Path, nursery: Nursery
) -> None:
    with faulty(tmp_path, nursery, "nan", failpoints="edge.summed:1:kill", edges=1) as (fed, run):
        logs = fed.connect().run(run).logs()
        told = [(row["node"], row["level"]) for row in logs if row["text"].startswith(NOT_LET_IN)]
        assert told == [("client-2", "refused")] * JOB["rounds"], logs
        assert all(row["cause"] and row["fix"] for row in logs)


def test_a_learner_that_dies_takes_nobody_with_it(tmp_path: Path, nursery: Nursery) -> None:
    with faulty(tmp_path, nursery, "dies") as (fed, run):
        said = [row["text"] for row in fed.connect().run(run).logs() if row["node"] == "client-2"]
        assert any("was ended by SIGKILL, 2 times" in text for text in said), said
        assert not fed.dead("client-2")
        assert {node["name"] for node in fed.connect().nodes() if node["online"]} >= {"client-2"}


def test_a_liar_is_quarantined_by_a_coordinator_that_was_killed(tmp_path: Path, nursery: Nursery) -> None:
    """Killed after three rounds, it goes on with what they showed; an admin reinstates."""
    five = {**JOB, "data": {**JOB["data"], "clients": 5}}
    job = {**five, "rounds": 5, "learner": "line", "algorithm": {"name": "robust", "set_aside": True}}
    parts = str(ROOT / "tests" / "federation" / "parts_of_site.py")
    with Federation(tmp_path, five, nursery=nursery) as fed:
        for name in fed.names:
            fed.words[name] = ("--parts", parts)
            kill = "drive.saved.after:3:kill" if name == "coordinator" else ""
            fed.start(name, failpoints=kill, FAULTY="lies" if name == "client-2" else "")
        gathered(fed)
        run = fed.submit(job=job)
        fed.until(lambda: fed.dead("coordinator"), what="the coordinator to die")
        fed.start("coordinator")
        fed.finished(run)
        far = fed.connect()
        history = far.run(run).wait().history
        assert [r["aside"] for r in history[1:]] == [[], [], [], [1], [1]]
        assert {n["name"] for n in far.nodes() if n["quarantined"]} == {"client-2"}
        (told,) = [row["text"] for row in far.run(run).logs() if row["node"] == "client-2"]
        note = fed.place("client-2") / QUARANTINED
        fed.until(lambda: note.exists() and note.read_text() == told, what="client-2 to be told")
        assert far.reinstate("client-2")["quarantined"] is False
        fed.until(lambda: not note.exists(), what="client-2 to hear that it is reinstated")
        assert far.audit()["ok"]


PRIVATE = {
    **JOB,
    "algorithm": "fedavg",
    "privacy": {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0},
}


def test_a_private_job_keeps_its_secret_and_a_site_its_limit(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path, nursery=nursery) as fed:
        fed.set("client-2", policy={"max_epsilon": 1.0})
        fed.set("client-3", policy={"max_epsilon": 8.0})
        fed.start("coordinator", failpoints="drive.folded.after:2:kill")
        fed.start(*fed.edges)
        for name in fed.clients:
            fed.start(name)
        gathered(fed)
        first = fed.submit(job=PRIVATE)
        fed.until(lambda: fed.dead("coordinator"), what="the coordinator to die")
        with fed.store() as store:
            before = store.journal(first, "secret").resume().state
        fed.start("coordinator")
        fed.finished(first)
        second = fed.submit(job=PRIVATE)
        fed.finished(second)
        federation = fed.connect()
        with pytest.raises(AtollError, match="claims epsilon 8"):
            federation.submit({**PRIVATE, "privacy": {**PRIVATE["privacy"], "sigma": 0.1}})
        table = federation.run(first).record["table"]
        history = federation.run(first).wait().history
        fed.stop(*fed.names)
        models = [fed.leaves(run) for run in (first, second)]
    assert table["privacy"]["sigma"] > 0.5, "solved once, for all"
    failed = [record["failed"] for record in history if "failed" in record]
    assert [list(found) for found in failed] == [[1], [1]]
    assert all("allows epsilon up to 1, the job has epsilon 8" in found[1] for found in failed), failed
    assert all(record.get("train", {}) == {} for record in history)
    assert before is not None and len(before) == 32
    assert models[0] != models[1], "the same sums, and another run's noise"
    told = b"".join(
        path.read_bytes() for name in fed.clients for path in fed.place(name).rglob("*") if path.is_file()
    )
    assert before not in told


SECURE = {**JOB, "algorithm": "fedavg", "exchange": {"name": "secure_sum", "largest": 4096.0}}


def test_a_secure_sum_whatever_dies(tmp_path: Path, nursery: Nursery) -> None:
    """Coordinator, edge and the process that learns are killed between its steps: the model is the same."""
    with Federation(tmp_path, SECURE, nursery=nursery) as fed:
        places = {
            "coordinator": "drive.counted.after:4:kill",
            "edge-a": "drive.counted.after:3:kill",
            "client-1": "learning.kept.after:3:kill",
            "client-2": "uplink.kept.after:2:kill",
        }
        fed.set("client-3", policy={"secure_sum": True})
        for name in fed.names:
            fed.start(name, failpoints=places.get(name, ""))
        gathered(fed)
        run = fed.submit(seed=5)
        alive = {"coordinator", "edge-a", "client-2"}
        while alive:
            died = fed.until(lambda names=alive: [n for n in names if fed.dead(n)], what=f"{alive} to die")
            for name in died:
                fed.start(name)
            alive = alive - set(died)
        fed.finished(run)
        whole(fed, run)
        plain = fed.submit(job={**JOB, "algorithm": "fedavg"})
        fed.finished(plain)
        history = fed.connect().run(plain).wait().history
        kept = [path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.secrets")]
        fed.stop(*fed.names)
        models = [fed.leaves(r) for r in (run, plain)]
    assert [list(r["failed"]) for r in history if "failed" in r] == [[2], [2]]
    assert "shows its updates to nobody" in history[1]["failed"][2]
    assert models[0] != models[1], "one client less"
    assert kept == [0o600] * 3, kept


def pages(pid: int) -> Iterator[bytes]:
    """The memory of a process, region by region."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, stop = (int(end, 16) for end in span.split("-"))
            if rights.startswith("rw"):
                try:
                    memory.seek(start)
                    yield memory.read(stop - start)
                except (OSError, OverflowError, ValueError):
                    continue


def traces(fed: Federation, needles: list[bytes]) -> bool:
    """Whether any of them is in the memory or the files of the coordinator and its edge."""
    for name in ("coordinator", "edge-a"):
        if any(needle in page for page in pages(fed.lives[name].pid) for needle in needles):
            return True
        for path in fed.place(name).rglob("*"):
            try:
                found = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            if any(needle in found for needle in needles):
                return True
    return False


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_member_that_never_comes_back(tmp_path: Path, nursery: Nursery, step: int) -> None:
    """Killed once its keys, shares, vector or signature have arrived: the sum is of who is in it.

    An answer may be cancelled at the moment it arrives, and is then forgotten twice: so the step before.
    """
    wine = {"name": "wine", "clients": 5, "holdout": 0.25}
    job = {**SECURE, "rounds": 1, "data": wine, "sites": False}
    with Federation(tmp_path, job, nursery=nursery, edges=0) as fed:
        fed.set("coordinator", patience=3.0)
        for name in fed.names:
            fed.start(name, failpoints=f"uplink.forgotten.after:{step}:kill" if name == "client-5" else "")
        gathered(fed)
        run = fed.submit(seed=5)
        fed.finished(run)
        history = fed.connect().run(run).wait().history
        assert fed.dead("client-5")
        fed.stop(*[name for name in fed.names if name != "client-5"])
        found = fed.leaves(run)
    stayed = history[1]["clients"] == 5
    assert stayed if step == 4 else step == 3 or not stayed, history
    assert history[1]["clients"] >= 4
    if stayed:
        assert found == simulated(job, 5)
        return
    file = parse(job)
    job4 = file.job.replace(learner=file.job.learner.sized(13, 3), exchange=at.plain_sum())
    rest = at.simulate(job4, list(file.sites())[:4], seed=5).params
    for name, leaf in found.items():
        np.testing.assert_allclose(np.frombuffer(leaf, np.float32), rest[name].reshape(-1), atol=1e-2)


def vault_at(fed: Federation, name: str) -> tuple[Path, Vault]:
    folder = fed.place(name)
    return folder, opened(Client(folder=str(folder)))


def test_noise_of_the_clients_under_their_masks(tmp_path: Path, nursery: Nursery) -> None:
    """A promise with nobody to trust: the policy's limit on epsilon counts, and the budget at the site."""
    promise = {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0}
    job = {**JOB, "algorithm": "fedavg", "exchange": "secure_sum", "privacy": promise}
    with Federation(tmp_path, JOB, nursery=nursery) as fed:
        held = fed.read("client-1")["data"]
        fed.set("client-1", data={key: {**table, "budget": "wine"} for key, table in held.items()})
        fed.set("client-2", policy={"max_epsilon": 8.5, "secure_sum": True})
        Ledger.create(*vault_at(fed, "client-1"), "wine", epsilon=10.0, delta=1e-3)
        fed.start_all()
        gathered(fed)
        runs = [fed.submit(job=job, seed=5), fed.submit(job=job, seed=5)]
        fed.finished(runs[0])
        with pytest.raises(AssertionError, match="QuorumError"):  # the second finds no budget at one of three
            fed.finished(runs[1])
        record = fed.connect().run(runs[0]).record
        history = fed.connect().run(runs[0]).wait().history
        told = fed.connect().run(runs[0]).report()
        failed = fed.connect().run(runs[1]).report()
        fed.stop(*fed.names)
        first = fed.leaves(runs[0])
    assert record["table"]["privacy"]["noise"] == "distributed"
    assert told["promise"]["epsilon"] == pytest.approx(8.0, rel=1e-3)
    assert (told["state"], failed["state"]) == ("done", "failed")
    assert told["promise"]["epsilon spent at most"] == told["promise"]["epsilon"]
    assert 0 < failed["promise"]["epsilon spent at most"] <= told["promise"]["epsilon"]
    assert told["promise"]["mechanism"].startswith("discrete Gaussian noise by the clients")
    assert told["integers"].startswith("16 bits in sums of up to 3 clients: 127 steps a number")
    assert told["trust"].startswith("semi-honest coordinator") and told["seen"].startswith("sums of updates")
    assert all(r["failed"] == {} and r.get("train", {}) == {} for r in history if "failed" in r)
    assert max(abs(np.frombuffer(leaf, np.float32)).max() for leaf in first.values()) > 0
    spent = Ledger.open(*vault_at(fed, "client-1"), "wine").spent
    assert [(s.epsilon, s.delta) for s in spent] == [(8.0, 1e-4)]


def marks() -> list[bytes]:
    """Each client's update in every form a server could hold it in."""
    found = []
    for client in range(3):
        x = mark(client)
        whole = np.rint(x.astype(np.float64) * Scale(32, 16.0, 3, 1.0).unit).astype(np.int64)
        forms = (
            x,
            x.astype(np.float64),
            whole,
            whole.astype(np.uint32),
            whole.astype(np.uint64) & 0xFFFFFFFF,
        )
        found += [form.tobytes()[64:192] for form in forms]
    return found


def sightings(folder: Path, nursery: Nursery, exchange: str, rounds: int) -> int:
    """How often somebody who searches memory and files of coordinator and edge finds an update, again and
    again while a run goes on and once afterwards.
    """
    equal = {"name": "fedavg", "weigh": "equal"}
    job = {**JOB, "rounds": rounds, "exchange": exchange, "learner": {"name": "marked"}, "algorithm": equal}
    with Federation(folder, JOB, nursery=nursery) as fed:
        for name in fed.names:
            fed.words[name] = ("--parts", str(ROOT / "tests" / "federation" / "parts_of_site.py"))
        fed.start_all()
        gathered(fed)
        run = fed.submit(seed=5, job=job)
        found = 0
        while fed.state(run) not in ("done", "failed"):
            found += traces(fed, marks())
        fed.finished(run)
        found += traces(fed, marks())
        fed.stop(*fed.names)
    return found


@pytest.mark.parametrize("exchange", ["plain_sum", "secure_sum"])
def test_who_searches_the_servers_finds_an_update_only_where_sums_are_plain(
    tmp_path: Path, nursery: Nursery, exchange: str
) -> None:
    assert (sightings(tmp_path, nursery, exchange, rounds=6) > 0) == (exchange == "plain_sum")


def test_data_that_nobody_offers_are_told_with_those_that_there_are(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path, nursery=nursery, edges=0) as fed:
        fed.set("coordinator", patience=2.0)
        fed.start_all()
        gathered(fed)
        run = fed.submit(job={**JOB, "data": {"name": "whine"}})
        fed.until(lambda: fed.state(run) == "failed", what="the run to fail")
        ((reason,),) = fed.sql("select reason from runs where id = ?", run)
        fed.stop(*fed.names)
    assert "no site offers data called 'whine'" in reason and "wine" in reason.split(":", 2)[-1], reason


def test_members_draw_their_buckets_whoever_dies_meanwhile(tmp_path: Path, nursery: Nursery) -> None:
    """Six in three buckets, through an edge; a process that learns is killed and forgets its coin."""
    data = {**JOB["data"], "clients": 6}
    robust = {"name": "robust", "rule": {"name": "median"}, "buckets": 3}
    how = {"name": "secure_sum", "largest": 4096.0}
    job = {**JOB, "data": data, "rounds": 3, "algorithm": robust, "exchange": how}
    with Federation(tmp_path, {**JOB, "data": data}, nursery=nursery) as fed:
        for name in fed.names:
            fed.start(name, failpoints="learning.trained:2:kill" if name == "client-2" else "")
        gathered(fed)
        run = fed.submit(job=job)
        fed.finished(run)
        rounds = [r["clients"] for r in fed.connect().run(run).wait().history if "clients" in r]
        said = [row["text"] for row in fed.connect().run(run).logs()]
        fed.stop(*fed.names)
    assert len(rounds) == 3 and max(rounds) == 6, (rounds, said)
    assert min(rounds) >= 4, (rounds, said)


@pytest.mark.parametrize("exchange", ["secure_sum", "encrypted_sum"])
def test_the_same_update_is_in_no_two_sums_whose_difference_shows_a_member(
    tmp_path: Path, nursery: Nursery, exchange: str
) -> None:
    """The same job once more, with one member less: the first round's sums would differ by that member's."""
    if exchange == "encrypted_sum":
        pytest.importorskip("tenseal", reason="tenseal is not installed: no encrypted sums")
    how = {"name": exchange, "attempts": 1, "largest": 4096.0}
    table = {**JOB, "rounds": 1, "exchange": how}
    table |= {"algorithm": {"name": "fedavg", "weigh": "equal"}}
    table["data"] = {**JOB["data"], "clients": 4}
    with Federation(tmp_path, {**JOB, "data": table["data"]}, nursery=nursery, edges=0) as fed:
        fed.start_all()
        gathered(fed)
        fed.finished(fed.submit(job=table, seed=5))
        fed.finished(fed.submit(job=table, seed=5))  # the same members: the same sum
        fed.connect().drain("client-4")
        with pytest.raises(AssertionError, match="in a sum with other members"):
            fed.finished(fed.submit(job=table, seed=5))
        fed.finished(fed.submit(job=table, seed=6))
        fed.stop(*fed.names)


@pytest.mark.parametrize("edges", [0, 1])
def test_a_ledger_from_a_backup_is_found_out(tmp_path: Path, nursery: Nursery, edges: int) -> None:
    """What the site has signed comes back to it with the next ask, through whichever servers and restarts."""
    job = {**PRIVATE, "privacy": {**PRIVATE["privacy"], "epsilon": 2.0}}

    def failed(fed: Federation) -> dict[str, str]:
        run = fed.submit(job=job)
        fed.finished(run)
        records = [r["failed"] for r in fed.connect().run(run).wait().history if r.get("failed")]
        return {str(k): v for found in records for k, v in found.items()}

    with Federation(tmp_path, nursery=nursery, edges=edges) as fed:
        held = fed.read("client-1")["data"]
        fed.set("client-1", data={key: {**table, "budget": "wine"} for key, table in held.items()})
        site = fed.place("client-1")
        Ledger.create(*vault_at(fed, "client-1"), "wine", epsilon=10.0, delta=1e-3)
        fed.start_all()
        gathered(fed)
        assert failed(fed) == {}
        shutil.copytree(site / "budgets", tmp_path / "backup")
        assert failed(fed) == {}
        for name in fed.names:
            fed.kill(name)
        shutil.rmtree(site / "budgets")
        shutil.copytree(tmp_path / "backup", site / "budgets")
        fed.start_all()
        (reason,) = failed(fed).values()
        assert "signed for 2 entries of 4 in all, and it has 1 of 2" in reason
        assert atoll(["privacy", "recover", "wine", "--folder", str(site)]) == 0
        assert failed(fed) == {}
        fed.stop(*fed.names)
    assert Ledger.open(*vault_at(fed, "client-1"), "wine").total.promised[0] == 6.0


def test_a_budget_is_spent_over_all_jobs_whatever_dies(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path, nursery=nursery, edges=0) as fed:
        for name in fed.clients[:2]:
            held = fed.read(name)["data"]
            fed.set(name, data={key: {**table, "budget": "wine"} for key, table in held.items()})
        Ledger.create(*vault_at(fed, "client-1"), "wine", epsilon=10.0, delta=1e-3)  # client-2 has none
        for name in ("coordinator", "client-2", "client-3"):
            fed.start(name)
        fed.start("client-1", failpoints="learning.trained:2:kill")  # its process that learns, once
        gathered(fed)
        found = []
        for table in (PRIVATE, PRIVATE, {**PRIVATE, "privacy": {**PRIVATE["privacy"], "epsilon": 2.0}}, JOB):
            run = fed.submit(job=table)
            fed.finished(run)
            record = next(r for r in fed.connect().run(run).wait().history if r.get("failed"))
            found.append(record["failed"])
            fed.kill("client-1")  # a restart spends nothing and forgets nothing
            fed.start("client-1")
        fed.stop(*fed.names)
    assert [sorted(failed) for failed in found] == [[1], [0, 1], [1], [0, 1]]
    assert all("has no ledger" in failed[1] for failed in found[:3]), found
    assert "left, the job needs 8 and 0.0001" in found[1][0], found
    assert "promises no privacy" in found[3][0], found
    spent = Ledger.open(*vault_at(fed, "client-1"), "wine").spent
    assert [(s.epsilon, s.delta) for s in spent] == [(8.0, 1e-4), (2.0, 1e-4)]


def test_whoever_sends_what_is_no_update_is_named_with_the_reason(tmp_path: Path, nursery: Nursery) -> None:
    with faulty(tmp_path, nursery, "nan") as (fed, run):
        said = [row["text"] for row in fed.connect().run(run).logs() if row["node"] == "client-2"]
        assert any("NaN or an infinity" in text for text in said), said
        fed.kill("client-3")
        told = asyncio.run(strange(fed, "client-3"))
        assert "upgrade Atoll on this side" in told["protocol 9.0"]
        assert told["protocol 1.0"] == "welcome"
        assert told["rubbish"]
        log = (fed.folder / "logs" / "coordinator.log").read_text()
        assert "client client-3: protocol" in log


async def strange(fed: Federation, name: str) -> dict[str, str]:
    """What the coordinator says to a member that speaks other protocols, or sends rubbish as its answer."""
    identity = Identity.open(fed.place(name) / "identity")
    told = {}
    for protocol in ([9, 0], [1, 0]):
        link = open_link(f"https://{fed.read('coordinator')['listen']}", identity)
        session = secrets.token_hex(16)
        hello = {"protocol": protocol, "capabilities": [], "session": session, "about": {}}
        channel = await link.session(session, pack(Packet(0, 0, letter("hello", hello))))
        try:
            first = unpack(await channel.recv() or b"")
            message = read(first.body or b"")
            told[f"protocol {protocol[0]}.{protocol[1]}"] = message.head.get("reason", message.kind)
            if message.kind == "welcome":
                told["rubbish"] = await rubbish(link, f"r0001.main.0.{name}")
        except AtollError as error:
            told[f"protocol {protocol[0]}.{protocol[1]}"] = str(error)
        finally:
            await channel.close()
            await link.close()
    await asyncio.sleep(0.25)  # TLS says goodbye after aiohttp has closed
    return told


async def rubbish(link: Link, upload: str) -> str:
    async def frames() -> AsyncIterator[bytes]:
        yield secrets.token_bytes(5000)

    try:
        await link.upload(upload, frames(), 0)
    except AtollError as error:
        return str(error)
    return ""


def test_wiped_and_restored_a_run_goes_on(tmp_path: Path, nursery: Nursery) -> None:
    with Federation(tmp_path / "fed", LONG, nursery=nursery) as fed:
        fed.start_all()
        gathered(fed)
        run = fed.submit()
        fed.until(lambda: fed.rounds(run) >= 3, what="some rounds")
        made = fed.connect().backup()
        fed.kill("coordinator")
        place = fed.place("coordinator")
        shutil.copy(made["path"], tmp_path / "backup.tar")
        settings = (place / "coordinator.toml").read_bytes()
        shutil.rmtree(place)
        assert atoll(["restore", str(tmp_path / "backup.tar"), "--folder", str(place)]) == 0
        (place / "coordinator.toml").write_bytes(settings)
        fed.start("coordinator")
        fed.finished(run)
        fed.stop(*fed.names)
        whole(fed, run, rounds=40)


def test_certificates_are_renewed_during_a_run(tmp_path: Path, nursery: Nursery) -> None:
    """Certificates good for 8 seconds, a run of more than two of their lives, no round lost."""
    with Federation(tmp_path, {**LONG, "rounds": 100_000}, nursery=nursery, transport="grpc") as fed:
        fed.set("coordinator", hours=8 / 3600)
        began = time.time()
        fed.start_all()
        gathered(fed)
        run = fed.submit()
        fed.until(lambda: time.time() > began + 18, what="time to pass")
        before = fed.rounds(run)
        fed.until(lambda: fed.rounds(run) > before + 2, what="rounds after two renewals")
        fed.stop(*fed.names)
        with Store.open("", fed.place("coordinator")) as store:
            history = store.history(run)
        assert not any(record.get("failed") or record.get("sites_failed") for record in history)
