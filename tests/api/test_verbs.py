"""Each verb over REST: what it does to the store, what it answers, and its errors in one sentence."""

import json
import math

import pytest

from atoll.control.desk.values import finite
from atoll.data.contract import Contract
from tests.api.conftest import JOB, finished, record


def test_submit_queue_stop(hall) -> None:
    operator = hall.as_("operator")
    made = operator.post("/v1/runs", json={"job": JOB, "seed": 11})
    assert made.status_code == 201
    run = made.json()["run"]
    assert (run["state"], run["seed"], run["algorithm"], run["learner"]) == (
        "queued",
        11,
        "fedprox",
        "logistic",
    )
    assert run["table"] == JOB
    second = operator.post("/v1/runs", json={"job": JOB}).json()["run"]
    rows = operator.get("/v1/runs").json()["runs"]
    assert [(r["id"], r["place"]) for r in rows] == [(second["id"], 2), (run["id"], 1)]
    assert operator.get("/v1/runs", params={"state": "done"}).json()["runs"] == []
    stopped = operator.post(f"/v1/runs/{run['id']}/stop").json()["run"]
    assert (stopped["state"], stopped["reason"]) == ("stopped", "stopped by the-operator")
    again = operator.post(f"/v1/runs/{run['id']}/stop").json()["run"]
    assert again == stopped
    assert operator.get("/v1/runs").json()["runs"][0]["place"] == 1


def test_columns_of_a_contract_in_a_job_keep_their_order(hall) -> None:
    """Features are handed to the model in this order, also by who reads the job once it was signed."""
    columns = {"wear": {"low": 0.0}, "air": {"unit": "K"}, "fails": {"kind": "flag"}}
    data = {"name": "heart", "contract": {"name": "press", "label": "fails", "columns": columns}}
    made = hall.as_("operator").post("/v1/runs", json={"job": {**JOB, "data": data}})
    assert made.status_code == 201
    kept = hall.store.run(made.json()["run"]["id"])["table"]["data"]["contract"]
    signed = json.loads(json.dumps(kept, sort_keys=True))
    assert Contract.of(signed).features == ("wear", "air")
    assert Contract.of(signed) == Contract.of(data["contract"])


def test_a_running_run_is_asked_to_stop(hall) -> None:
    run = hall.store.submit(JOB, 1, "ann", name="heart")
    hall.store.move(run, "running", frm=("queued",))
    assert hall.as_("operator").post(f"/v1/runs/{run}/stop").json()["run"]["state"] == "stopping"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"learner": {"name": "logistik"}}, "$.learner.name"),
        ({"rounds": 0}, "$.rounds"),
        ({"data": ""}, "$.data.name"),
        ({"data": {"clients": 3}}, "$.data.name"),
        ({"world": {"loss": 0.1}}, "$.world"),
        ({"novelty": 1}, "$.novelty"),
        ({"name": "../../etc"}, "$.name"),
        ({"learner": {"name": "logistic", "lr": "x" * 5000}}, "$.learner.lr"),
    ],
)
def test_a_wrong_job_is_refused_with_its_path(hall, change, path: str) -> None:
    answer = hall.as_("operator").post("/v1/runs", json={"job": {**JOB, **change}})
    assert answer.status_code == 422
    assert answer.json()["error"]["kind"] == "ConfigError"
    assert answer.json()["error"]["message"].startswith(f"{path}: ")
    assert hall.store.runs() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"job": 3}',
        b'{"job": {}, "other": 1}',
        b'{"job": {}, "seed": 1.5}',
        b'{"job": {}, "seed": 9223372036854775808}',
        b'{"job": {"rounds": NaN}}',
        b'{"job": ' + b'{"a":' * 50 + b"1" + b"}" * 51,
        b'{"job": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff\xfe",
    ],
)
def test_a_wrong_body_is_refused_without_repeating_it(hall, body: bytes) -> None:
    head = {"content-type": "application/json"}
    answer = hall.as_("operator").post("/v1/runs", content=body, headers=head)
    assert answer.status_code in (400, 422)
    assert set(answer.json()["error"]) == {"kind", "message"}
    assert len(answer.text) < 400


def test_deep_tables_name_the_limit(hall) -> None:
    deep: dict = {}
    job = {**JOB, "learner": deep}
    for _ in range(20):
        deep["name"] = {}
        deep = deep["name"]
    message = hall.as_("operator").post("/v1/runs", json={"job": job}).json()["error"]["message"]
    assert "at most 12" in message


def test_history_comes_in_pages(hall) -> None:
    run = finished(hall.store, rounds=5)
    viewer = hall.as_("viewer")
    first = viewer.get(f"/v1/runs/{run}/history", params={"limit": 4}).json()
    assert [r["round"] for r in first["rounds"]] == [0, 1, 2, 3]
    assert first["next"] == 3
    last = viewer.get(f"/v1/runs/{run}/history", params={"limit": 4, "after": 3}).json()
    assert [r["round"] for r in last["rounds"]] == [4, 5]
    assert last["next"] is None
    assert last["rounds"][-1] == record(5)
    row = viewer.get(f"/v1/runs/{run}").json()["run"]
    assert (row["round"], row["of"], row["up"], row["down"]) == (5, 3, 1000, 1500)
    assert (row["metric"], row["value"]) == ("accuracy", 1.0)


@pytest.mark.parametrize("run", ["r0001-999999", "..%2F..%2Fetc", "%00", "%F0%9F%90%A0", "x" * 3000, "'; --"])
def test_an_unknown_run_is_404_whatever_it_is_called(hall, run: str) -> None:
    finished(hall.store)
    operator = hall.as_("operator")
    for path in ("", "/history", "/logs"):
        assert operator.get(f"/v1/runs/{run}{path}").status_code == 404
    assert operator.post(f"/v1/runs/{run}/stop").status_code == 404


def test_another_federations_run_is_as_unknown_as_any(hall, halls) -> None:
    theirs = finished(halls("other").store)
    mine = hall.as_("admin").get(f"/v1/runs/{theirs}")
    none = hall.as_("admin").get("/v1/runs/r9999-000000")
    assert (mine.status_code, mine.json()) == (none.status_code, none.json()) == (404, none.json())


def test_what_belongs_to_no_run_is_shown_to_operators(hall) -> None:
    hall.store.log_add("", "clinic-a", "warning", "a second session of this identity")
    hall.store.log_add(finished(hall.store), "clinic-b", "error", "MemoryError")
    rows = hall.as_("operator").get("/v1/logs").json()["logs"]
    assert [(row["node"], row["level"]) for row in rows] == [("clinic-a", "warning")]


def test_logs_say_site_cause_and_fix(hall) -> None:
    run = finished(hall.store)
    trace = (
        'Traceback (most recent call last):\n  File "fit.py", line 3\nMemoryError: <script>alert(1)</script>'
    )
    hall.store.log_add(run, "hospital-a", "error", trace)
    hall.store.log_add(run, "hospital-b", "info", "serves heart version 2")
    first, second = hall.as_("operator").get(f"/v1/runs/{run}/logs").json()["logs"]
    assert (first["node"], first["text"]) == ("hospital-a", trace)
    assert first["cause"].startswith("MemoryError")
    assert "smaller batch" in first["fix"]
    assert "cause" not in second


def test_nodes_drain_and_revoke(hall) -> None:
    hall.store.node_seen("plant", "edge", {"address": "10.0.0.7", "version": "0.1", "transport": "grpc"})
    hall.store.node_seen("line-1", "client", {"parent": "plant"})
    hall.token("edge", "plant")
    hall.live = {"line-1": {"phase": "training", "run": "r1", "up": 10, "down": 20}}
    admin = hall.as_("admin")
    rows = {n["name"]: n for n in admin.get("/v1/nodes").json()["nodes"]}
    assert rows["plant"]["address"] == "10.0.0.7"
    assert rows["line-1"]["live"]["phase"] == "training"
    assert admin.post("/v1/nodes/line-1/drain").json() == {"name": "line-1", "drained": True}
    assert admin.post("/v1/nodes/line-1/drain", json={"on": False}).json()["drained"] is False
    assert admin.post("/v1/nodes/plant/revoke").json() == {"name": "plant", "revoked": True}
    assert hall.cuts == [("plant", "revoked")]
    assert admin.get("/v1/audit").json()["ok"]
    states = {n["name"]: n["state"] for n in admin.get("/v1/nodes").json()["nodes"]}
    assert states == {"plant": "revoked", "line-1": "online"}
    assert admin.post("/v1/nodes/plant/readmit").json()["revoked"] is False
    hall.store.judged("r1", {"line-1": ({"rounds": 3}, 0.9, 0)}, ["line-1"])
    row = {n["name"]: n for n in admin.get("/v1/nodes").json()["nodes"]}["line-1"]
    assert (row["quarantined"], row["score"], row["state"]) == (True, 0.9, "online")
    done = admin.post("/v1/nodes/line-1/reinstate").json()
    assert done == {"name": "line-1", "quarantined": False, "score": 0.0}
    (event,) = [e for e in hall.store.events(limit=1000) if e["kind"] == "node.reinstated"]
    assert (event["node"], event["actor"] != "") == ("line-1", True)
    assert admin.get("/v1/audit").json()["ok"]
    for verb in ("drain", "revoke", "readmit", "reinstate"):
        assert admin.post(f"/v1/nodes/nobody/{verb}").status_code == 404


def test_models(hall) -> None:
    run = finished(hall.store)
    blob = hall.store.blobs.put(b"model bytes")
    hall.store.model_add(run, "heart", blob, b'{"manifest": {"version": 1}}', {"accuracy": 0.9})
    viewer, operator = hall.as_("viewer"), hall.as_("operator")
    (row,) = viewer.get("/v1/models").json()["models"]
    assert (row["name"], row["version"], row["run"], row["metrics"]) == ("heart", 1, run, {"accuracy": 0.9})
    assert viewer.get("/v1/models", params={"run": "other"}).json()["models"] == []
    assert viewer.get("/v1/models/heart/latest").json()["manifest"]["manifest"]["version"] == 1
    assert operator.get("/v1/models/heart/1/file").content == b"model bytes"
    for path in ("heart/2", "heart/%2E%2E", "lungs/latest", "heart/-1", "heart/1e0"):
        assert operator.get(f"/v1/models/{path}").status_code == 404


def test_events_wait_for_news(hall) -> None:
    viewer = hall.as_("viewer")
    end = viewer.get("/v1/events", params={"after": -1}).json()["next"]
    waiting = viewer.begin("GET", "/v1/events", params={"after": end, "wait": 30, "run": "r-other"})
    other = viewer.begin("GET", "/v1/events", params={"after": end, "wait": 30})
    run = hall.store.submit(JOB, 1, "ann", name="heart")
    found = other.result(20).json()
    assert [(e["kind"], e["run"], e["actor"]) for e in found["events"]] == [("run.submitted", run, "ann")]
    assert found["next"] == end + 1
    assert not waiting.done()
    waiting.cancel()


def test_the_audit_names_an_altered_row(hall) -> None:
    finished(hall.store)
    admin = hall.as_("admin")
    good = admin.get("/v1/audit").json()
    assert good["ok"]
    assert good["events"] == good["head"]["seq"] > 2
    seen = f"{good['head']['seq']}:{good['head']['hash']}"
    assert admin.get("/v1/audit", params={"seen": seen}).json()["ok"]
    assert "was cut" in admin.get("/v1/audit", params={"seen": f"2:{'0' * 64}"}).json()["fault"]
    assert admin.get("/v1/audit", params={"seen": "x"}).status_code == 422
    from sqlalchemy import text

    with hall.store.engine.connect() as conn, conn.begin():
        conn.execute(text("UPDATE events SET actor = 'eve' WHERE seq = 2"))
    bad = admin.get("/v1/audit").json()
    assert (bad["ok"], bad["seq"]) == (False, 2)
    assert "event 2" in bad["fault"]


def test_a_backup_stays_where_it_is_made(hall) -> None:
    made = hall.as_("admin").post("/v1/backups").json()
    (path,) = (hall.office.folder / "backups").iterdir()
    assert made["path"] == str(path)
    assert made["bytes"] > 0


def test_prune(hall) -> None:
    run = finished(hall.store)
    done = hall.as_("admin").post("/v1/prune", json={"keep_days": 0, "keep_runs": 0})
    assert done.json()["runs"] == 1
    assert hall.as_("admin").get(f"/v1/runs/{run}").status_code == 404
    assert hall.as_("admin").post("/v1/prune", json={"keep_days": -1}).status_code == 422


def test_health_and_readiness(hall) -> None:
    nobody = hall.as_()
    assert nobody.get("/healthz").json() == {"alive": True}
    assert nobody.get("/readyz").json() == {"ready": True}
    full = hall.as_("viewer").get("/v1/health").json()
    assert full["ok"]
    assert full["schema"]["found"] == full["schema"]["expected"]
    hall.office.busy = lambda: "the engine is starting"
    assert nobody.get("/readyz").status_code == 503
    assert "starting" not in nobody.get("/readyz").text  # reasons are for those who may look
    assert hall.as_("viewer").get("/v1/health").json()["reason"] == "the engine is starting"


def test_metrics_for_prometheus(hall) -> None:
    run = hall.store.submit(JOB, 1, "ann", name="heart")
    hall.store.move(run, "running", frm=("queued",))
    shown = {"suspects": [0, 2], "aside": [0], "scores": {"0": 0.9, "2": 0.8}}
    hall.store.journal(run).note(2, {**record(2), **shown})
    hall.store.node_seen("a", "client", {})
    hall.store.judged(run, {"a": ({"rounds": 3}, 0.9, 0)}, ["a"])
    power = {"held": "it rests", "rule": "duty", "since": hall.now - 5, "until": hall.now + 60}
    hall.store.node_seen("a", "client", {"power": power})
    began = hall.office.clock() - 0.1
    told = {"since": hall.office.clock() - 30, "of": 1, "held": 1, "rules": {"duty": 1}}
    hall.office.about = lambda _: {"waiting": told}
    hall.live = {"a": {"joint": {"asked": 9, "late": 2}}}
    viewer = hall.as_("viewer")
    (row,) = viewer.get("/v1/nodes").json()["nodes"]
    assert row["holds"] == {"rule": "duty", "since": hall.now - 5, "until": hall.now + 60}
    assert viewer.get(f"/v1/runs/{run}").json()["run"]["waiting"] == told
    assert viewer.get("/v1/runs").json()["runs"][0]["waiting"] == told
    text = viewer.get("/metrics").text
    assert 'atoll_nodes_holding_back{rule="duty"} 1.0' in text
    assert 'atoll_nodes_holding_back{rule="battery"} 0.0' in text
    seconds = text.partition(f'atoll_run_waiting_seconds{{run="{run}"}} ')[2].split()[0]
    assert 30 <= float(seconds) < 30 + hall.office.clock() - began
    assert 'atoll_edge_rows{node="a",what="late"} 2.0' in text
    assert 'atoll_runs{state="running"} 1.0' in text
    assert f'atoll_run_round{{run="{run}"}} 2.0' in text
    assert f'atoll_run_suspects{{run="{run}"}} 2.0' in text
    assert "atoll_nodes_quarantined 1.0" in text
    assert f'atoll_run_metric{{metric="accuracy",run="{run}"}} 0.7' in text
    assert 'atoll_nodes{role="client",state="online"} 1.0' in text
    assert "atoll_store_writable 1.0" in text
    from prometheus_client.parser import text_string_to_metric_families

    assert len(list(text_string_to_metric_families(text))) > 6


def test_numbers_that_are_none_are_null(hall) -> None:
    run = hall.store.submit(JOB, 1, "ann", name="heart")
    hall.store.journal(run).note(0, {"round": 0, "metrics": {"loss": math.nan, "auc": math.inf}})
    (only,) = hall.as_("viewer").get(f"/v1/runs/{run}/history").json()["rounds"]
    assert only["metrics"] == {"loss": None, "auc": None}
    assert finite({1: (math.nan, b"\x01")}) == {"1": [None, "01"]}


def test_a_full_disk_is_said_and_nothing_is_half_done(hall, monkeypatch) -> None:
    reason = "the disk is full: the store is read-only; free some space"
    operator = hall.as_("operator")
    monkeypatch.setattr(hall.store.disk, "_reason", reason)
    monkeypatch.setattr(hall.store.disk, "_healed", lambda: False)
    answer = operator.post("/v1/runs", json={"job": JOB})
    assert answer.status_code == 503
    assert answer.json()["error"] == {"kind": "StateError", "message": reason}
    assert hall.as_().get("/readyz").status_code == 503
    assert operator.get("/v1/runs").json()["runs"] == []


def test_openapi_describes_every_route(hall) -> None:
    found = hall.as_("viewer").get("/v1/openapi.json").json()
    assert found["info"]["title"] == "Atoll"
    for path, methods in found["paths"].items():
        for method, about in methods.items():
            assert about.get("description"), f"{method} {path} says nothing"


def test_overview(hall) -> None:
    finished(hall.store, state="failed", reason="QuorumError: nobody")
    run = hall.store.submit(JOB, 1, "ann", name="heart")
    hall.store.move(run, "running", frm=("queued",))
    for number in range(4):
        hall.store.journal(run).note(number, record(number))
    hall.office.about = lambda _: {"names": {"0": "a"}, "features": 3, "outputs": 2}
    seen = hall.as_("viewer").get("/v1/overview").json()
    assert seen["run"]["id"] == run
    assert seen["run"]["names"] == {"0": "a"}
    assert [r["round"] for r in seen["rounds"]] == [0, 1, 2, 3]
    assert seen["rounds"][-1]["failed"] == 1
    assert seen["sites"]["failed"] == {"1": "Gone: left"}
    assert set(seen["sites"]["metrics"]) == {"0", "1", "2"}
