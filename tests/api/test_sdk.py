"""The SDK against a served API: submit, watch, wait; the run that comes back is the simulator's kind."""

import json
import math
import stat
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import atoll as at
from atoll.control.remote import restate
from atoll.control.remote import where as places
from atoll.control.remote.remote import failure, restored
from atoll.control.store import Store
from atoll.core.errors import ConfigError, Gone, MisuseError, PeerError, PrivacyError, QuorumError, StateError
from atoll.core.registry import build
from atoll.core.update import Update
from atoll.run import Run
from atoll.wire.codec import Message, encode
from tests.api.conftest import JOB, finished, record
from tests.api.serving import served

WEIGHT = np.arange(3, dtype=np.float32)[:, None]
PARAMS = Update.of({"layer0.weight": WEIGHT, "layer0.bias": np.zeros(1, np.float32)})


@pytest.fixture
def fed(hall):
    with served(hall) as url, at.connect(url, hall.token("admin", "ann")) as made:
        yield made


def with_model(hall, run: str, *, framed: bool = True) -> None:
    """The run's model in the registry, as a codec message or a safetensors file."""
    if framed:
        blob = hall.store.blobs.put(b"".join(encode(Message("params", {}, {"params": PARAMS}))))
    else:
        from safetensors.numpy import save

        blob = hall.store.blobs.put(save({k: np.ascontiguousarray(v) for k, v in PARAMS.items()}))
    hall.store.model_add(run, "heart", blob, b"{}", {"accuracy": 0.8})


def test_connect_says_who_one_is(fed) -> None:
    about = fed.about()
    assert (about["name"], about["caller"], about["role"]) == ("reef", "ann", "admin")


@pytest.mark.parametrize("framed", [True, False])
def test_a_finished_run_is_a_run(hall, fed, framed: bool, tmp_path: Path) -> None:
    id = finished(hall.store)
    with_model(hall, id, framed=framed)
    hall.office.about = lambda _: {"features": 3, "outputs": 2, "names": {"0": "north", "1": "east"}}
    remote = fed.run(id)
    run = remote.wait()
    assert isinstance(run, Run)
    assert dict(run.params).keys() == dict(PARAMS).keys()
    assert all((run.params[name] == PARAMS[name]).all() for name in PARAMS)
    assert run.metrics == record(3)["metrics"]
    assert set(run.sites) == {0, 1, 2}
    assert run.sites[2]["accuracy"] == record(3)["sites"]["2"]["accuracy"]
    assert run.history[1]["failed"] == {1: "Gone: left"}
    assert (run.traffic.up, run.traffic.down, run.seed, run.stopped) == (600, 900, 7, "")
    assert run.job.algorithm.name == "fedprox"
    assert run.learner.features == 3
    assert remote.names == {0: "north", 1: "east"}
    assert run.export(tmp_path / "m.safetensors").exists()
    assert fed.export("heart", tmp_path / "again.safetensors").exists()
    with pytest.raises(ConfigError, match=r"safetensors or \.onnx"):
        fed.export("heart", tmp_path / "model.pt")


def test_waiting_sees_each_round_once_and_ends(hall, fed) -> None:
    id = fed.submit(JOB).id
    journal, seen = hall.store.journal(id), []
    steps = iter(range(4))

    def watch(round: dict) -> None:
        seen.append(round["round"])
        on()

    def on() -> None:  # the engine does its next step once the last one was seen
        number = next(steps, None)
        if number is not None:
            journal.note(number, record(number))
        elif hall.store.run(id)["state"] == "running":
            hall.store.move(id, "done", frm=("running",))

    hall.store.move(id, "running", frm=("queued",))
    on()
    run = fed.run(id).wait(watch=watch, timeout=60)
    assert seen == [0, 1, 2, 3]
    assert [r["round"] for r in run.history] == seen


def test_a_failed_run_raises_what_ended_it(hall, fed) -> None:
    id = finished(hall.store, state="failed", reason="QuorumError: nobody contributed in round 2")
    with pytest.raises(QuorumError, match=f"{id} failed: nobody contributed"):
        fed.run(id).wait()
    assert fed.run(id).result().history[-1]["round"] == 3
    assert isinstance(failure("r1", "SystemExit: no"), PeerError)
    assert isinstance(failure("r1", "os: no"), PeerError)


def test_a_stopped_run_comes_as_far_as_it_got(hall, fed) -> None:
    id = fed.submit(JOB).id
    fed.run(id).stop()
    run = fed.run(id).wait()
    assert run.stopped == "stopped by ann"
    assert not run.history


def test_a_wait_may_end_and_the_run_goes_on(fed) -> None:
    remote = fed.submit(JOB)
    with pytest.raises(Gone, match=r"still queued after 0\.05 seconds; it goes on"):
        remote.wait(timeout=0.05)
    assert remote.state == "queued"


def test_a_job_from_python_travels_as_names_and_values(hall, fed) -> None:
    job = at.Job(at.softmax(lr=0.3), at.fedprox(mu=0.1), cohort=at.sample(0.5), rounds=4, name="digits")
    id = fed.submit(job, data="digits", seed=5).id
    row = hall.store.run(id)
    assert row["table"]["learner"] == {"name": "softmax", "lr": 0.3}
    assert (row["table"]["data"], row["seed"], row["name"]) == ("digits", 5, "digits")
    assert fed.run(id).result().job.describe() == job.describe()


def test_code_does_not_travel(fed) -> None:
    class Own:
        def init(self, rng): ...
        def fit(self, params, data, ctx): ...
        def evaluate(self, params, data, ctx): ...

    with pytest.raises(ConfigError, match=r"\$\.learner: no installed learner makes this Own"):
        fed.submit(at.Job(Own()), data="x")
    with pytest.raises(ConfigError, match=r"\$\.algorithm"):
        fed.submit(at.Job(at.linear(), at.chain(at.adam(), at.mean())), data="x")


def test_a_job_file(fed, tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('rounds = 2\ndata = "heart"\nlearner = "logistic"\n', encoding="utf-8")
    record = fed.submit(file).record
    assert (record["of"], record["data"]) == (2, "heart")
    assert fed.submit(str(file), data="lungs").record["data"] == "lungs"


def test_ids_that_are_not_there(fed) -> None:
    with pytest.raises(MisuseError, match="no such run"):
        fed.run("r0000-000000")
    with pytest.raises(MisuseError, match="no such node"):
        fed.drain("nobody")
    with pytest.raises(MisuseError, match="no such model"):
        fed.model("none")


def test_every_other_verb(hall, fed) -> None:
    id = finished(hall.store)
    hall.store.node_seen("site", "client", {})
    hall.store.log_add(id, "site", "error", "MemoryError")
    assert fed.run(id).logs()[0]["fix"]
    assert fed.nodes()[0]["name"] == "site"
    assert fed.drain("site")["drained"]
    assert not fed.drain("site", on=False)["drained"]
    assert fed.revoke("site")["revoked"]
    assert not fed.readmit("site")["revoked"]
    hall.store.judged(id, {"site": ({"rounds": 3}, 0.9, 0)}, ["site"])
    assert fed.nodes()[0]["quarantined"] and fed.nodes()[0]["score"] == 0.9
    assert not fed.reinstate("site")["quarantined"] and not fed.nodes()[0]["quarantined"]
    token = fed.token("viewer", "vera", hours=1)
    (row,) = [t for t in fed.tokens() if t["name"] == "vera"]
    with at.connect(fed._rest.url, token) as vera:
        assert vera.about()["role"] == "viewer"
        fed.forget(row["id"])
        with pytest.raises(at.Refused, match="valid token"):
            vera.runs()
    assert fed.audit()["ok"]
    assert fed.health()["ok"]
    assert fed.overview()["runs"][0]["id"] == id
    assert Path(fed.backup()["path"]).exists()
    assert fed.prune(0)["runs"] == 1
    events, end = fed.events()
    assert events[-1]["seq"] == end


def test_what_needs_no_federation_there(hall, fed, tmp_path: Path) -> None:
    id = finished(hall.store)
    hall.store.backup(tmp_path / "b.tar")
    assert at.restore(tmp_path / "b.tar", tmp_path / "again") == tmp_path / "again"
    with Store.open("", tmp_path / "again") as store:
        assert store.run(id)["state"] == "done"
    with pytest.raises(StateError):
        at.restore(tmp_path / "b.tar", tmp_path / "again")
    found = at.doctor(folder=tmp_path / "again")
    assert {one.what: one.level for one in found}["schema"] == "ok"


def test_null_is_no_number_and_clients_are_numbers() -> None:
    plain = {"round": 1, "metrics": {"loss": None}, "sites": {"10": {"loss": 0.5}}, "failed": {"2": "Gone"}}
    found = restored(plain)
    assert math.isnan(found["metrics"]["loss"])
    assert found["sites"] == {10: {"loss": 0.5}}
    assert found["failed"] == {2: "Gone"}


def test_where_the_token_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"HOME": str(tmp_path / "home")}
    with pytest.raises(ConfigError, match="--url"):
        places.where(env=env)
    with pytest.raises(ConfigError, match="--token"):
        places.where("https://hub", env=env)
    home = tmp_path / "home" / ".config" / "atoll" / "operator.json"
    places.write(home, places.Where("https://home", "atoll1.h"))
    assert places.where(env=env) == ("https://home", "atoll1.h")
    places.write(Path("federation/operator.json"), places.Where("https://up", "atoll1.u"))
    assert places.where(env=env).url == "https://up"
    both = env | {"ATOLL_URL": "https://env", "ATOLL_TOKEN": "atoll1.e"}
    assert places.where(env=both) == ("https://env", "atoll1.e")
    assert places.where("https://given", "atoll1.g", env=both) == ("https://given", "atoll1.g")
    assert places.where("https://home", env=env).token == "atoll1.h"  # noqa: S105  the file's own URL
    with pytest.raises(ConfigError):  # a token is not given to a server it was not written down for
        places.where("https://elsewhere", env=env)


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "operator.json"
    places.write(file, places.Where("https://hub", "atoll1.x"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    with pytest.raises(PrivacyError, match="chmod 600"):
        places.read(file)
    file.chmod(0o600)
    file.write_text(json.dumps(["no"]))
    with pytest.raises(StateError, match="damaged"):
        places.read(file)


@pytest.mark.parametrize("exchange", [at.secure_sum(bits=16, least=3), at.encrypted_sum(plain=16, members=8)])
def test_a_job_from_python_keeps_its_exchange(exchange) -> None:
    """It is a promise to clients, who would send in the open what was to be hidden."""
    job = at.Job(at.softmax(lr=0.5), at.fedavg(), exchange=exchange)
    assert build("exchange", restate.table(job)["exchange"]) == exchange
    assert "exchange" not in restate.table(job.replace(exchange=at.plain_sum()))


def test_a_job_from_python_keeps_every_value() -> None:
    own = {"rounds": 3, "every": 2, "deadline": 4.0, "wait": 5.0, "max_weight": 6.0, "sites": False}
    job = at.Job(at.softmax(lr=0.5), exchange=at.secure_sum(), name="mine", crypto="gm", **own)
    assert restate.table(job).items() >= {**own, "name": "mine", "crypto": "gm"}.items()
    assert "compression" not in restate.table(job)  # "none" is left to those who know the key
    assert restate.table(at.Job(at.softmax(), compression="auto"))["compression"] == "auto"
    plain = {f.name for f in fields(job)} - {"exchange", "privacy", "compression", *restate._PARTS}
    assert plain == set(restate._VALUES)


def test_a_promise_from_python_keeps_who_adds_the_noise() -> None:
    job = at.Job(at.softmax(lr=0.5), at.fedavg(), sites=False)
    job = job.private(epsilon=8.0, delta=1e-4, clip=1.0, exchange=at.secure_sum())
    table = restate.table(job)
    assert (table["exchange"], table["privacy"]["noise"]) == ({"name": "secure_sum"}, "distributed")
