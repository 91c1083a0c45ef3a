"""`atoll simulate`: what it prints, what it leaves behind, and how it goes on."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import atoll as at
from atoll.control import config, show
from atoll.simulate import folder as files

FILES = {
    *("job.json", "job.toml", "about.json", "metrics.jsonl", "metrics.csv", "sites.csv"),
    *("model.safetensors", "report.html", "checkpoints"),
}


def model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_prints_its_result_and_leaves_a_whole_folder(atoll, project: Path) -> None:
    said = atoll("simulate", "job.toml", "--out", "a")
    assert said.code == 0
    assert "accuracy" in said.out and "federated" in said.out and "a/report.html" in said.out
    assert said.err.count("round") == 7  # plain lines, where there is no terminal
    assert {p.name for p in Path("a").iterdir()} == FILES
    assert json.loads(Path("a/about.json").read_text())["took"] > 0


def test_without_a_folder_each_run_gets_its_own(atoll, project: Path) -> None:
    for _ in range(2):
        assert atoll("simulate", "job.toml").code == 0
    assert {p.name for p in Path("runs").iterdir()} == {"machines", "machines-2"}
    assert model(Path("runs/machines")) == model(Path("runs/machines-2"))


def test_json_is_one_object_and_nothing_else(atoll, project: Path) -> None:
    said = atoll("simulate", "job.toml", "--out", "a", "--json", "--baselines", "--seed", 3)
    found = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert found["rounds"] == 6 and found["folder"] == "a"
    assert set(found["trained"]) == {"federated", "each_site_alone", "all_data_pooled"}
    assert set(found["metrics"]) == {"accuracy", "loss"}


def test_values_can_be_changed_and_the_folder_says_so(atoll, project: Path) -> None:
    assert atoll("simulate", "job.toml", "--out", "a", "--set", "rounds=2", "algorithm=fedavgm").code == 0
    assert atoll("simulate", "a/job.toml", "--out", "b").code == 0
    assert tomllib.loads(Path("a/job.toml").read_text())["rounds"] == 2
    assert model(Path("a")) == model(Path("b"))


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_run_cut_off_goes_on_to_the_same_bytes(atoll, project: Path, monkeypatch, after: int) -> None:
    atoll("simulate", "job.toml", "--out", "whole")
    cut(monkeypatch, after)
    said = atoll("simulate", "job.toml", "--out", "cut")
    assert said.code == 130
    assert "--resume --out cut" in said.err
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert atoll("simulate", "job.toml", "--out", "cut", "--resume").code == 0
    for name in ("model.safetensors", "metrics.jsonl", "metrics.csv", "sites.csv", "job.json"):
        assert Path("whole", name).read_bytes() == Path("cut", name).read_bytes()


def cut(monkeypatch, after: int) -> None:
    """Ctrl-C once the record of that round is written."""

    def interrupted(job, sites, seed, *, watch, **values):
        def stop(record):
            watch(record)
            if record["round"] == after:
                raise KeyboardInterrupt

        return at.simulate(job, sites, seed, watch=stop, **values)

    monkeypatch.setattr(show, "simulate_job", interrupted)


@pytest.mark.parametrize(
    ("change", "what"),
    [("rounds=9", "another job"), ("seed=1", "another seed and data"), ("data.clients=3", "data")],
)
def test_resuming_something_else_is_refused(atoll, project: Path, change: str, what: str) -> None:
    atoll("simulate", "job.toml", "--out", "a")
    said = atoll("simulate", "job.toml", "--out", "a", "--resume", "--set", change)
    assert said.code == 1
    assert what in said.err


def test_resuming_with_other_data_is_refused(atoll, project: Path) -> None:
    atoll("simulate", "job.toml", "--out", "a")
    path = Path("data/site-east.csv")
    path.write_text(path.read_text().replace("yes", "no", 1))
    said = atoll("simulate", "job.toml", "--out", "a", "--resume")
    assert (said.code, "another data" in said.err) == (1, True)


def test_resume_needs_a_run(atoll, project: Path) -> None:
    assert atoll("simulate", "job.toml", "--resume").code == 2
    said = atoll("simulate", "job.toml", "--resume", "--out", "none")
    assert said.code == 1
    assert "holds no run" in said.err
    assert not Path("none").exists()


def test_a_folder_that_holds_a_run_is_left_alone(atoll, project: Path) -> None:
    atoll("simulate", "job.toml", "--out", "a")
    before = {p.name: p.read_bytes() for p in Path("a").iterdir() if p.is_file()}
    said = atoll("simulate", "job.toml", "--out", "a", "--set", "rounds=1")
    assert said.code == 1
    assert "already holds a run" in said.err
    assert before == {p.name: p.read_bytes() for p in Path("a").iterdir() if p.is_file()}


def test_a_place_that_takes_no_files_is_an_error(atoll, project: Path) -> None:
    for out in ("job.toml", "job.toml/inside"):
        said = atoll("simulate", "job.toml", "--out", out)
        assert said.code == 1
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4, 9, 14, 16, 18, 20, 21])
def test_a_full_disk_leaves_nothing_half_written(atoll, project: Path, monkeypatch, writes: int) -> None:
    left = iter(range(writes))

    def fsync(_: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    said = atoll("simulate", "job.toml", "--out", "a")
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert said.code == 1
    assert "the disk is full" in said.err
    assert not list(Path("a").rglob("*.part"))
    if Path("a/job.json").exists():
        assert atoll("simulate", "job.toml", "--out", "a", "--resume").code == 0
        atoll("simulate", "job.toml", "--out", "whole")
        assert model(Path("a")) == model(Path("whole"))


LIMITED = """
import resource, sys
from atoll.control.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sys.exit(main(["simulate", "job.toml", "--out", "a"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits on Windows")
def test_a_limit_on_file_sizes_is_an_error_and_lines_stay_whole(project: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert not list(Path("a").rglob("*.part"))
    assert all(json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines())


def test_a_world_shows_virtual_time(atoll, project: Path) -> None:
    changes = ("world.compute.name=lognormal", "world.dropout=0.2")
    said = atoll("simulate", "job.toml", "--out", "a", "--json", "--set", *changes)
    assert json.loads(said.out)["seconds"] > 1
    page = Path("a/report.html").read_text()
    assert "virtual time" in page and "dropped out" in page


def test_a_written_job_reads_as_the_same_job(tmp_path: Path) -> None:
    table = {
        "rounds": 3,
        "learner": {"name": "mlp", "hidden": [8, 4]},
        "data": {"by": {"alpha": 0.5}},
        "name": 'a"b',
    }
    (tmp_path / "job.toml").write_text(config.dump(table))
    assert tomllib.loads((tmp_path / "job.toml").read_text()) == table


def test_failures_are_counted_and_named_below_the_result(atoll, project: Path) -> None:
    said = atoll("simulate", "job.toml", "--out", "a", "--set", "world.dropout=0.5", "rounds=12")
    assert said.code == 0
    assert "tasks brought nothing: " in said.out and "evaluations at sites failed: " in said.out
    assert said.out.count("dropped out") == 2
    assert "evaluations at sites failed" in Path("a/report.html").read_text("utf-8")
