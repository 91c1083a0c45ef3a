"""The operator's commands against a served API: what they print, as text and JSON, and their exit codes."""

import json
import re
import signal
import threading
import time
from pathlib import Path

import pytest

import atoll as at
from atoll.control import cli, live
from atoll.control.remote import where
from atoll.control.text import ZH
from atoll.privacy.keys import new_key, request
from atoll.privacy.report import report, sign_report
from tests.api.conftest import JOB, finished, hall, record  # noqa: F401  the fixture
from tests.api.roots import authority_of
from tests.api.serving import served
from tests.api.test_sdk import with_model
from tests.exact.quadratic import Quadratic

JOB_TOML = """
name = "heart"
rounds = 3
data = "heart"
learner = { name = "logistic", lr = 0.5 }
algorithm = { name = "fedprox", mu = 0.01 }
"""


@pytest.fixture
def far(hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """A federation that the commands find by operator.json in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("ATOLL_URL", "ATOLL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    Path("job.toml").write_text(JOB_TOML, encoding="utf-8")
    with served(hall) as url:
        where.write(Path(where.FILE), where.Where(url, hall.token("admin", "ann")))
        hall.url = url
        yield hall


def test_submit_runs_stop(atoll, far) -> None:
    said = atoll("submit", "job.toml", "--set", "rounds=5", "--seed", "9")
    assert said.code == 0
    (row,) = far.store.runs()
    assert row["id"] in said.out
    assert "queued, place in the queue 1" in said.out
    assert (row["table"]["rounds"], row["seed"]) == (5, 9)
    listed = atoll("runs")
    assert re.search(rf"{row['id']} +heart +queued \(1\) +fedprox +0/5", listed.out)
    assert json.loads(atoll("runs", "--json").out)["runs"][0]["id"] == row["id"]
    assert json.loads(atoll("runs", "--state", "done", "--json").out) == {"runs": []}
    wrong = atoll("runs", "--state", "nonsense")
    assert (wrong.code, wrong.out) == (2, "") and "'nonsense'" in wrong.err and "queued, running" in wrong.err
    assert f"{row['id']}: stopped" in atoll("stop", row["id"]).out
    assert "停止" in atoll("runs", "--lang", "zh").out


def test_a_wrong_job_exits_with_2_and_its_path(atoll, far) -> None:
    said = atoll("submit", "job.toml", "--set", "learner.name=logistik")
    assert (said.code, said.out) == (2, "")
    assert "$.learner.name" in said.err
    assert "did you mean 'logistic'" in said.err


def test_without_a_federation_it_says_what_to_give(atoll, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    said = atoll("runs")
    assert said.code == 2
    assert "--url" in said.err
    assert "operator.json" in said.err


def test_the_newest_run_is_meant_where_none_is_named(atoll, far) -> None:
    said = atoll("logs")
    assert said.code == 2
    assert "no run yet" in said.err
    finished(far.store)
    run = finished(far.store)
    assert json.loads(atoll("logs", "--json").out) == {"run": run, "logs": []}
    assert atoll("stop", "r0000-000000").code == 2


def test_watch_prints_a_line_for_each_round(atoll, far) -> None:
    run = finished(far.store)
    said = atoll("watch", run)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[3].startswith("round    3/3  accuracy 0.8000")
    assert "2/3 clients  ↑200 B ↓300 B" in said.out
    assert lines[-3] == f"{run} done"
    plain = json.loads(atoll("watch", run, "--json").out)
    assert plain["run"]["state"] == "done"
    assert plain["metrics"]["accuracy"] == record(3)["metrics"]["accuracy"]


def test_a_private_run_says_what_it_costs_and_what_it_has_spent(atoll, far) -> None:
    promise = {"epsilon": 4.0, "delta": 1e-5, "clip": 1.0}
    job = at.Job(Quadratic(), at.fedavg(), rounds=3, sites=False).private(**promise)
    run = finished(far.store, job={**JOB, "algorithm": "fedavg", "privacy": promise})
    unasked = atoll("watch", run)
    assert (unasked.code, "privacy" in unasked.out) == (0, False)  # it has no report
    spent = job.privacy.cost(job.cohort, 2)
    name, key, now = far.office.federation, new_key(), time.time()
    values = {"run": run, "federation": name, "rounds": 2, "ended": now, "spent": spent}
    page = report(job.privacy, job.epsilon(), shows="each", **values)
    csr = request(key, name, "coordinator", "hub")
    chain = authority_of(name).sign(csr, role="coordinator", name="hub", now=now)
    far.store.run_reported(run, sign_report(key, chain, page))
    line = f"privacy of each client: epsilon {spent.epsilon:.4g}, delta 1e-05"
    assert 1 < spent.epsilon < 4
    assert atoll("watch", run).out.splitlines()[-1] == line
    told = atoll("privacy", "report", run).out
    assert f"ended: {time.strftime('%Y-%m-%d %H:%M', time.localtime(now))}\n" in told
    assert json.loads(atoll("privacy", "report", run, "--json").out)["ended"] == round(now)
    submitted = atoll("submit", "job.toml", "--set", "privacy.epsilon=4", "--set", "privacy.delta=1e-5",
                      "--set", "privacy.clip=1", "--set", "algorithm=fedavg")  # fmt: skip
    assert "privacy of each client: epsilon 4, delta 1e-05\n" in submitted.err


def test_watching_a_run_that_fails(atoll, far) -> None:
    run = finished(far.store, state="failed", reason="QuorumError: nobody contributed")
    said = atoll("watch", run)
    assert said.code == 1
    assert "nobody contributed" in said.out
    assert f"atoll logs {run}" in said.out


def test_who_stops_looking_leaves_the_run_going(atoll, far) -> None:
    run = far.store.submit(JOB, 1, "ann", name="heart")

    looks = iter(range(100))

    def about(_id: str) -> dict:
        if next(looks) == 2:  # by then the command looks
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return {}

    far.office.about = about
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs us behind
    try:
        said = atoll("watch", run)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.code == 130
    assert f"{run} goes on" in said.err
    assert f"atoll stop {run}" in said.err
    assert far.store.run(run)["state"] == "queued"


def test_the_live_table(far, atoll) -> None:
    from rich.console import Console

    from atoll.control.remote.sdk import connect

    run = far.store.submit(JOB, 1, "ann", name="heart")
    far.store.move(run, "running", frm=("queued",))
    for number in range(3):
        shown = {"suspects": [0], "aside": [0], "scores": {"0": 0.9}} if number == 2 else {}
        far.store.journal(run).note(number, {**record(number), **shown})
    far.store.node_seen("plant", "edge", {})
    far.store.node_seen("north", "client", {"parent": "plant"})
    far.store.node_seen("east", "client", {"parent": "plant"})
    far.live["north"] = {"phase": "training", "up": 2000, "down": 3_000_000}
    far.office.about = lambda _: {"names": {"0": "north", "1": "east"}}
    found = where.read(Path(where.FILE))
    with connect(*found) as fed:
        seen = fed.overview(run)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(live.picture(seen, lambda text: text))
    console.file.close()
    text = console.export_text()
    assert f"{run}  running  heart" in text
    assert "round 2/3  accuracy 0.7000" in text
    assert "▁▄█" in text or "▁▅█" in text
    assert re.search(r"north +plant +training +2 kB +3 MB +0\.7000 +set aside", text)
    assert re.search(r"east +plant +online +– +– +0\.6900 +Gone: left", text)
    holds = {"rule": "battery", "since": 900.0, "until": None}
    seen["nodes"][0]["holds"], seen["sites"]["failed"], seen["sites"]["suspects"] = holds, {}, {}
    seen["run"]["waiting"] = {"since": 900.0, "of": 2, "held": 1, "rules": {"battery": 1}}
    console = Console(width=120)
    with console.capture() as caught:
        console.print(live.picture(seen, lambda text: text))
    assert "waiting: 1 of 2 hold back (battery)" in caught.get()
    assert "holds back: battery" in caught.get()
    assert "plant  " not in text.splitlines()[-3].split()[0]


def test_why_a_run_waits_is_said(atoll, far) -> None:
    run = far.store.submit(JOB, 1, "ann", name="heart")
    far.store.move(run, "running", frm=("queued",))
    told = {"since": 900.0, "of": 6, "held": 5, "rules": {"battery": 5}}
    far.office.about = lambda _: {"waiting": told}
    assert "waiting: 5 of 6 hold back (battery)" in atoll("runs").out
    told["rules"] = {"battery": 3, "duty": 2}
    assert "hold back (battery 3, duty 2)" in atoll("runs").out
    told |= {"held": 0, "rules": {}}
    assert "waiting for clients" in atoll("runs").out

    looks = iter(range(100))

    def let_go(_id: str) -> dict:
        if next(looks) == 2:  # by then the command looks
            far.store.move(run, "done", frm=("running",))
        return {"waiting": told | {"held": 5, "rules": {"hours": 5}}}

    far.office.about = let_go
    assert "waiting: 5 of 6 hold back (hours)\n" in atoll("watch", run).out


def test_sparkline() -> None:
    assert live.sparkline([0, 1, 2, None, 7]) == "▁▂▃█"
    assert live.sparkline([3, 3]) == "▁▁"
    assert live.sparkline([]) == ""


def test_logs(atoll, far) -> None:
    run = finished(far.store)
    trace = "Traceback (most recent call last):\n  x\nMemoryError: \x1b[31mred\x07"
    far.store.log_add(run, "north", "error", trace)
    said = atoll("logs", run)
    assert "north  error" in said.out
    assert "MemoryError" in said.out
    assert "Traceback" not in said.out
    assert "what helps: use a smaller batch" in said.out
    assert "\x1b" not in said.out
    assert "\x07" not in said.out
    assert "Traceback" in atoll("logs", run, "--all").out
    assert json.loads(atoll("logs", run, "--json").out)["logs"][0]["text"] == trace


def test_what_belongs_to_no_run_is_shown(atoll, far) -> None:
    far.store.log_add("", "north", "warning", "a second session of this identity")
    said = atoll("logs", "--members")
    assert "north  warning" in said.out and "second session" in said.out
    assert len(json.loads(atoll("logs", "--members", "--json").out)["logs"]) == 1


def test_nodes(atoll, far) -> None:
    far.store.node_seen("plant", "edge", {"address": "10.0.0.7", "transport": "grpc"})
    far.store.node_seen("north", "client", {"parent": "plant"})
    far.live["north"] = {"phase": "training"}
    said = atoll("node", "list")
    assert re.search(r"plant +edge +online +– +– +– +– +grpc +10\.0\.0\.7", said.out)
    assert re.search(r"north +client +online +training +– +– +plant", said.out)
    power = {"held": "its battery is below 30%", "rule": "battery", "since": 900.0, "until": 0.0}
    far.store.node_seen("north", "client", {"parent": "plant", "power": power})
    far.live["plant"] = {
        "joint": {"asked": 9, "answered": 7, "passed": 2, "carried": 0, "late": 0, "failed": 0}
    }
    said = atoll("node", "list").out
    assert re.search(
        r"online, holds back: its battery is below 30% \(since \d{4}-\d\d-\d\d \d\d:\d\d\)", said
    )
    assert "rows asked 9, answered 7, passed on 2 " in said
    far.store.node_seen("north", "client", {"parent": "plant"})
    assert atoll("node", "drain", "north").out == "north gets no new work\n"
    assert "online, drained" in atoll("node", "list").out
    assert atoll("node", "drain", "north", "--off").out == "north gets work again\n"
    assert json.loads(atoll("node", "revoke", "north", "--json").out) == {"name": "north", "revoked": True}
    assert far.cuts == [("north", "revoked")]
    assert atoll("node", "readmit", "north").out == "north may enrol again\n"
    assert atoll("node", "drain", "nobody").code == 2
    far.store.judged("r1", {"north": ({"rounds": 3}, 0.914, 0)}, ["north"])
    assert re.search(
        r"north +client +online, quarantined +training +0\.91 +– +plant", atoll("node", "list").out
    )
    assert json.loads(atoll("node", "list", "--json").out)["nodes"][0]["score"] == 0.914
    assert atoll("node", "reinstate", "north").out == "north takes part again\n"
    assert "quarantined" not in atoll("node", "list").out
    assert atoll("node", "reinstate", "nobody").code == 2


def test_models(atoll, far, tmp_path: Path) -> None:
    run = finished(far.store)
    with_model(far, run)
    assert re.search(rf"heart +1 +{run} .* safetensors +accuracy 0\.8000", atoll("model", "list").out)
    assert atoll("model", "list", "none", "--json").out == '{"models": []}\n'
    assert json.loads(atoll("model", "show", "heart", "--json").out)["version"] == 1
    assert run in atoll("model", "show", "heart", "--version", "1").out
    said = atoll("model", "export", "heart", "--to", tmp_path / "m.safetensors", "--json")
    assert Path(json.loads(said.out)["file"]).stat().st_size > 0
    assert atoll("model", "show", "heart", "--version", "7").code == 2


def test_audit(atoll, far) -> None:
    finished(far.store)
    said = atoll("audit", "verify")
    assert said.code == 0
    assert "none altered" in said.out
    from sqlalchemy import text

    with far.store.engine.connect() as conn, conn.begin():
        conn.execute(text("UPDATE events SET kind = 'run.done' WHERE seq = 2"))
    said = atoll("audit", "verify")
    assert said.code == 1
    assert "event 2" in said.out
    assert json.loads(atoll("audit", "verify", "--json").out)["seq"] == 2
    local = atoll("audit", "verify", "--folder", far.office.folder)
    assert (local.code, "event 2" in local.out) == (1, True)
    assert (
        atoll("audit", "verify", "--folder", far.office.folder / "blobs").code == 1
    )  # no store there, none made
    assert not (far.office.folder / "blobs" / "atoll.db").exists()


def test_backup_wipe_restore(atoll, far, tmp_path: Path) -> None:
    run = finished(far.store)
    made = json.loads(atoll("backup", "--json").out)
    assert Path(made["path"]).is_file()
    said = atoll("backup", tmp_path / "b.tar", "--folder", far.office.folder)
    assert said.code == 0
    assert "no coordinator's store" in atoll("backup", tmp_path / "c.tar").err
    assert atoll("backup", "--folder", far.office.folder).code == 2
    assert atoll("restore", tmp_path / "b.tar", "--folder", tmp_path / "again").code == 0
    from atoll.control.store import Store

    with Store.open("", tmp_path / "again") as store:
        assert store.run(run)["state"] == "done"
    assert atoll("restore", tmp_path / "b.tar", "--folder", tmp_path / "again").code == 1  # it holds a store
    assert atoll("restore", tmp_path / "job.toml", "--folder", tmp_path / "other").code == 1


def test_prune(atoll, far) -> None:
    finished(far.store)
    assert "runs 1" in atoll("prune", "--keep-days", "0", "--keep-runs", "0").out


def test_submit_and_watch(atoll, far) -> None:
    def engine(_seq: int) -> None:
        far.store.changed.remove(engine)
        run = far.store.next_queued()
        far.store.move(run, "running", frm=("queued",))
        far.store.journal(run).note(0, record(0))
        far.store.move(run, "done", frm=("running",))

    far.store.changed.append(engine)
    said = atoll("submit", "job.toml", "--watch")
    assert said.code == 0
    assert "round    0/3  accuracy 0.5000" in said.out


def test_every_text_has_its_chinese() -> None:
    asked: set[str] = set()

    def say(text: str) -> str:
        asked.add(text)
        return text

    cli._parser(say)
    assert {text for text in asked if text not in ZH} == set()


def test_what_encryption_costs_is_said_before_a_job_is_queued(atoll, far) -> None:
    said = atoll("submit", "job.toml", "--set", "exchange=encrypted_sum")
    assert said.code == 0
    assert "a million encrypted numbers: 14" in said.err
    assert "one client plus the server reads all" in said.err
    assert "encrypted" not in atoll("submit", "job.toml").err
