"""A client's sources: from its settings to windows, and to the rows that jobs learn from."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

import atoll as at
from atoll.control import config
from atoll.control.engine import sensing
from atoll.control.engine.datasets import sensed
from atoll.control.engine.learning import Learning
from atoll.control.engine.parcels import keep_frames, read_frames
from atoll.control.engine.safe import opened as vault_of
from atoll.control.engine.work import opened, signed
from atoll.control.settings import Client, Policy, make, read
from atoll.core.edge import Task
from atoll.core.errors import ConfigError, DataError, Refused
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.data.contract import Contract
from atoll.data.pipeline import by_range
from atoll.learn.figures import Figures
from atoll.learn.rounds import Plan, update_points
from atoll.privacy.keys import Authority
from atoll.sense.reading import Reading
from atoll.wire import body
from tests.wire.pki import member

NOW = time.time()
CONTRACT = """
name = "press"
label = "fails"
[columns.heat]
unit = "degC"
low = -40
high = 150
[columns.load]
low = 0
high = 100
missing = true
[columns.fails]
kind = "flag"
"""
SETTINGS = """
[sources.press]
contract = "press.toml"
folder = { path = "in", every = 0.01 }
window = { size = 4, step = 2 }
[data.press]
source = "press"
holdout = 0.25
"""


@pytest.fixture
def settings(tmp_path: Path) -> Client:
    (tmp_path / "press.toml").write_text(CONTRACT)
    (tmp_path / "client.toml").write_text(SETTINGS)
    return read(tmp_path / "client.toml", Client)


def said(i: int, device: str = "a", load: float | None = 5.0, fails: bool | None = None) -> Reading:
    values = {"heat": float(i), "load": load, "fails": i % 2 == 0 if fails is None else fails}
    return Reading(device, NOW - 1000 + i, f"{i}", values)


def stored(settings: Client, readings: list[Reading]) -> None:
    intake = sensing.intake(settings, vault_of(settings))
    intake.feeds["press"].store.take(readings, NOW)
    asyncio.run(intake.stop())


def test_files_become_windows(settings: Client, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [f"{NOW - 100 + i},a,{i},5,{i % 2}\n" for i in range(9)]
    (tmp_path / "in" / "a.csv").write_text("at,source,heat,load,fails\n" + "".join(lines))

    async def main() -> list[Any]:
        intake = sensing.intake(settings, vault_of(settings))
        intake.start()
        found = []
        async for window in intake.windows("press"):
            found.append(window)
            if len(found) == 3:
                break
        await intake.stop()
        return found

    found = asyncio.run(main())
    assert [w.rows[:, 0].tolist() for w in found] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert found[0].labels.tolist() == [0, 1, 0, 1]


def test_rows_of_a_source_are_split_by_time(settings: Client) -> None:
    vault = vault_of(settings)
    held = sensed("press", settings.data["press"], settings, vault)
    assert (len(held.train), held.about()["shape"], held.about()["classes"]) == (0, [2], ["0", "1"])
    readings = [said(i, "ab"[i % 2]) for i in range(8)]
    stored(
        settings, [*reversed(readings), Reading("a", NOW, "9", {"heat": 9.0, "load": 1.0})]
    )  # no label yet
    held = sensed("press", settings.data["press"], settings, vault)
    assert held.train.x[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert held.test is not None
    assert held.test.x[:, 0].tolist() == [6, 7]
    assert held.train.y.tolist() == [1, 0, 1, 0, 1, 0]
    assert held.columns == ("heat", "load")


def test_a_row_may_be_a_window_of_one_device(settings: Client) -> None:
    stored(settings, [said(i, "ab"[i % 2]) for i in range(12)])
    held = sensed("press", {"source": "press", "windows": True, "holdout": 0}, settings, vault_of(settings))
    assert held.test is None
    assert held.train.x.shape == (6, 4, 2)
    assert held.train.x[:, :, 0].tolist()[:2] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert held.train.y.tolist() == [1, 0, 1, 0, 1, 0]


LATE = """
[sources.press.labels]
column = "result"
folder = { path = "results", device = "a", every = 0.01 }
"""


def test_labels_that_come_later_make_rows_of_readings_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "press.toml").write_text(CONTRACT)
    (tmp_path / "client.toml").write_text(SETTINGS + LATE)
    settings = read(tmp_path / "client.toml", Client)
    vault = vault_of(settings)
    (tmp_path / "in").mkdir()
    (tmp_path / "results").mkdir()
    lines = [f"{NOW - 100 + i},a,{i},5,{i}\n" for i in range(8)]
    (tmp_path / "in" / "a.csv").write_text("at,source,heat,load,id\n" + "".join(lines))

    async def main() -> tuple[list[Any], list[Any]]:
        intake = sensing.intake(settings, vault)
        intake.start()
        windows = []
        async for window in intake.windows("press"):
            windows.append(window)
            if len(windows) == 3:
                break
        held = await asyncio.to_thread(sensed, "press", settings.data["press"], settings, vault)
        assert len(held.train) == 0, "no label came yet"
        results = [f"{i},{'yes' if i % 2 else 'no'},{i}\n" for i in (6, 1, 4, 3)]
        (tmp_path / "results" / "lab.csv").write_text("id,result,sequence\n" + "".join(results))
        lots: list[Any] = []
        async for lot in intake.labelled("press"):
            lots.append(lot)
            if sum(map(len, lots)) == 4:
                break
        await intake.stop()
        return windows, lots

    windows, lots = asyncio.run(main())
    assert [w.labels for w in windows] == [None] * 3
    assert np.concatenate([lot.rows[:, 0] for lot in lots]).tolist() == [6, 1, 4, 3]
    assert np.concatenate([lot.labels for lot in lots]).tolist() == [0, 1, 0, 1]
    assert [t for lot in lots for t in lot.tickets] == ["a/6", "a/1", "a/4", "a/3"]
    held = sensed("press", settings.data["press"], settings, vault)
    assert held.test is not None
    assert held.train.x[:, 0].tolist() + held.test.x[:, 0].tolist() == [1, 3, 4, 6]
    assert held.train.y.tolist() + held.test.y.tolist() == [1, 1, 0, 0]


def test_newest_counts_the_readings_that_have_their_label(tmp_path: Path) -> None:
    (tmp_path / "press.toml").write_text(CONTRACT)
    (tmp_path / "client.toml").write_text(SETTINGS + LATE)
    settings = read(tmp_path / "client.toml", Client)
    store, _ = sensing.opened(settings, "press", vault_of(settings))
    with store:
        store.take([Reading("a", NOW - 100 + i, str(i), {"heat": i, "load": 5}) for i in range(60)], NOW)
        store.label([Reading("a", NOW, str(i), {"result": i % 2}) for i in (2, 5, 9, 12)], NOW)

    def rows(**data: Any) -> list[float]:
        table = {"source": "press", "holdout": 0, **data}
        return sensed("press", table, settings, vault_of(settings)).train.x[..., 0].tolist()

    assert rows(newest=3) == [5, 9, 12]
    assert rows(newest=2) == [], "more than 20 times as many came since"
    assert rows(newest=100) == [2, 5, 9, 12]
    assert rows(newest=2, labels=False) == [58, 59]
    bare = sensed("press", {"source": "press", "labels": False}, settings, vault_of(settings))
    assert (len(bare.train), bare.classes, bare.columns) == (48, (), ("heat", "load"))
    assert bare.contract is not None
    assert (bare.contract.label, tuple(bare.contract.columns)) == ("", ("heat", "load"))
    assert rows(newest=100, windows=True) == [[2, 3, 4, 5], [6, 7, 8, 9], [9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "say how labels come"),
        ({"tolerance": 3}, 'for labels by = "time"'),
        ({"by": "time", "tolerance": -1}, "from 0"),
        ({"wait": 0}, "above 0"),
        ({"column": "sequence"}, "no sequence"),
        ({"push": {"token_file": "t", "listen": "here"}}, r"labels\.push\.listen"),
    ],
)
def test_wrong_labels_are_refused_at_the_start(
    settings: Client, tmp_path: Path, labels: dict[str, Any], words: str
) -> None:
    way = {} if not labels else {"folder": {"path": "results"}}
    table = {"contract": "press.toml", "labels": {**way, **labels}}
    with pytest.raises(ConfigError, match=words):
        sensing.intake(
            make(Client, {"folder": str(tmp_path), "sources": {"press": table}}), vault_of(settings)
        )


def test_labels_need_a_contract_that_names_one(settings: Client, tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text(CONTRACT.replace('label = "fails"\n', ""))
    table = {"contract": "bare.toml", "labels": {"folder": {"path": "results"}}}
    with pytest.raises(ConfigError, match=r"\$\.sources\.press\.labels.*contract names none"):
        sensing.intake(
            make(Client, {"folder": str(tmp_path), "sources": {"press": table}}), vault_of(settings)
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "pres"}, "did you mean 'press'"),
        ({"source": "press", "hold": 1}, r"\$\.data\.press\.hold"),
        ({"source": "press", "holdout": 1}, "holdout is a share"),
        ({"source": "press", "newest": 0}, "newest"),
    ],
)
def test_wrong_values_are_named(settings: Client, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sensed("press", change, settings, vault_of(settings))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"contract": "gone.toml"}, r"\$\.sources\.press\.contract: there is no contract"),
        ({"contract": "press.toml", "mqtt": {"url": "mqtt://x", "topic": "#"}}, "topic"),
        ({"contract": "press.toml", "push": {"token_file": "t", "listen": "here"}}, "host:port"),
        ({"contract": "press.toml", "window": {"size": 3, "seconds": 1}}, "one of them"),
        ({"contract": "press.toml", "windw": {}}, "windw"),
        ({"contract": "press.toml", "quota": 0}, "above 0"),
    ],
)
def test_a_wrong_source_is_refused_at_the_start(
    settings: Client, tmp_path: Path, source: dict[str, Any], words: str
) -> None:
    table = {"folder": str(tmp_path), "sources": {"press": source}}
    with pytest.raises(ConfigError, match=words):
        sensing.intake(make(Client, table), vault_of(settings))


def test_taking_readings_in_needs_no_numpy() -> None:
    code = "import sys, atoll.control.engine.sensing, atoll.sense.mqtt, atoll.sense.push, atoll.sense.sql\n"
    code += "print(*{'numpy', 'polars', 'pyarrow', 'PIL', 'sqlalchemy'} & sys.modules.keys())"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "\n"
    )
    code = code.replace("import sys", "import sys, numpy")
    assert (
        "numpy"
        in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )


# -- jobs ---------------------------------------------------------------------------------------------------


def table(**data: Any) -> dict[str, Any]:
    return {"rounds": 2, "learner": {"name": "softmax"}, "data": {"name": "press", **data}}


@pytest.fixture
def ask(settings: Client, tmp_path: Path) -> Any:
    authority = Authority.new("test", now=NOW)
    usual = Learning(settings)
    identity = member(authority, "coordinator", "hub", now=NOW)
    model = tmp_path / "model"

    def asked(run: str, changed: dict[str, Any] | None = None, row: Any = 2, **data: Any) -> Update:
        learning = Learning(structs.replace(settings, **changed)) if changed else usual
        values = {"run": run, "table": table(**data), "seed": 7, "data": "press"}
        values |= {"features": row, "outputs": 2}
        job = signed({**values, "classes": ["0", "1"], "federation": "test"}, identity)
        work = opened(job, authority.root, "test", now=NOW)
        params = Update.of(work.learner.init(Rng.of(1).generator()))
        keep_frames(model, body.params_message(params))
        points = update_points(Plan(work.learner, work.job.trained, {"c": (0,)}, 2), params, 4)
        task = Task(0, Rng.of(0), (0,), (-1,), params, points, (0, 1, 2, 3), "fit")
        head = {"ask": f"{run}.main.0", "params": "model", "job": job, "task": body.ask_head(task)}
        to = tmp_path / "answer"
        learning._orders = None
        learning.answer(head, model, to, sound=False, roots=authority.root, federation="test")
        (tmp_path / "plain").write_bytes(learning._vault.read(to))
        answer = body.read_answer(read_frames(tmp_path / "plain"))
        return answer.replies[0][1].update

    return asked


def test_a_site_trains_on_what_has_come_since(ask: Any, settings: Client) -> None:
    with pytest.raises(Refused, match="no rows of 'press' here yet"):
        ask("r1")
    stored(settings, [said(i) for i in range(40)])
    assert ask("r2").norm() > 0


def test_a_contract_is_kept_or_refused_with_the_reason(ask: Any, settings: Client, tmp_path: Path) -> None:
    stored(settings, [said(i) for i in range(40)])
    mine = Contract.read(tmp_path / "press.toml").table()
    assert ask("r1", contract=mine).norm() > 0
    for change, words in (
        ({"unit": "degF"}, "column 'heat' has another unit"),
        ({"high": 100}, "column 'heat' has a wider range"),
    ):
        columns = [c | change if c["name"] == "heat" else c for c in mine["columns"]]
        with pytest.raises(Refused, match=f"do not keep the job's contract 'press': {words}"):
            ask(f"r {words}", contract={**mine, "columns": columns})


def test_a_job_carries_its_pipeline(ask: Any, settings: Client, tmp_path: Path) -> None:
    stored(settings, [said(i, load=None if i % 3 else 50.0) for i in range(40)])
    mine = Contract.read(tmp_path / "press.toml")
    with pytest.raises(Refused, match="missing cells, and the job has no pipeline"):
        ask("r1", contract=mine.table())
    by_name = ask("r2", contract=mine.table(), pipeline="range")
    by_value = ask("r2b", contract=mine.table(), pipeline=by_range(mine).table())
    assert by_name.norm() == by_value.norm() > 0


def test_a_job_of_windows_fits_and_carries_its_pipeline(ask: Any, settings: Client, tmp_path: Path) -> None:
    stored(settings, [said(i, load=None if i % 3 else 50.0) for i in range(40)])
    mine = Contract.read(tmp_path / "press.toml")
    windows = {"data": {"press": {"source": "press", "windows": True, "holdout": 0}}}
    held = sensed("press", windows["data"]["press"], settings, vault_of(settings)).train
    assert held.x.shape == (37, 4, 2)
    look = ask("r1", windows, [4, 2], contract=mine.table(), pipeline={"fill": "mean"})
    learner = Figures(2, median=False)
    params = Update.of(learner.init(Rng.of(1).generator()))
    want = learner.fit(params, held.x.reshape(-1, 2), FitContext(Rng.of(0))).update
    assert look == want, "of each sensor, over all readings that windows hold"
    made = at.fit_pipeline([held], mine)
    pipeline = made.table()
    assert ask("r2", windows, [4, 2], contract=mine.table(), pipeline=pipeline).norm() > 0
    with pytest.raises(Refused, match="missing cells, and the job has no pipeline"):
        ask("r3", windows, [4, 2], contract=mine.table())


def test_figures_are_asked_for_under_the_sites_own_policy(ask: Any, settings: Client, tmp_path: Path) -> None:
    stored(settings, [said(i, load=None if i % 3 else 50.0) for i in range(40)])
    mine = Contract.read(tmp_path / "press.toml")
    values = {"contract": mine.table(), "pipeline": {"fill": "mean"}}
    look = ask("r1", **values)
    assert set(look) == {"pairs", "half", "product"}  # no model is trained yet
    budget = {"press": {**settings.data["press"], "budget": "press-2026"}}
    for changed, words in (
        ({"policy": Policy(min_cohort=5)}, "rounds of at least 5, this one has 4"),
        ({"policy": Policy(secure_sum=True)}, "shows its updates to nobody"),
        ({"policy": Policy(max_epsilon=4.0)}, "the job has no privacy bound"),
        ({"data": budget}, "have a privacy budget"),
    ):
        with pytest.raises(Refused, match=words):
            ask("r1", changed, **values)


def test_a_job_file_names_a_contract_and_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "press.toml").write_text(CONTRACT)
    rng = np.random.default_rng(0)
    rows = [
        f"{rng.normal(60, 10):.3f},{'' if i % 3 == 0 else i % 50},{'AB'[i % 2]},{i % 2}" for i in range(60)
    ]
    (tmp_path / "rows.csv").write_text("heat,load,line,fails\n" + "\n".join(rows) + "\n")
    data = f'name = "csv"\npath = "{tmp_path}/rows.csv"\ntarget = "fails"\nsite = "line"\nholdout = 0\n'
    text = f'rounds = 1\nlearner = "softmax"\n[data]\n{data}contract = "press.toml"\n'
    (tmp_path / "job.toml").write_text(text + 'pipeline = { scale = "standard" }\n')
    job = config.read(tmp_path / "job.toml")
    assert job.contract == Contract.read(tmp_path / "press.toml")
    assert Contract.of(config.parse(job.table).table["data"]["contract"]) == job.contract  # it travels
    sites = job.sites()
    assert sites.columns == ("heat", "load")
    assert abs(float(sites.x[:, 0].mean())) < 1e-6
    assert not math.isnan(float(sites.x.sum()))
    (tmp_path / "job.toml").write_text(text)
    (tmp_path / "press.toml").write_text(CONTRACT.replace("high = 150", "high = 70"))
    with pytest.raises(DataError, match="site 'A' does not keep the contract 'press': column 'heat' has"):
        config.read(tmp_path / "job.toml").sites()
    for line, words in (
        ('pipeline = "best"', r"\$\.data\.pipeline"),
        ("pipeline = { steps = [] }", r"\$\.data\.pipeline\.steps"),
        ('pipeline = { fil = "mean" }', r"\$\.data\.pipeline\.fil: .*'fill'"),
        ('pipeline = { fill = "mode" }', r"\$\.data\.pipeline\.fill"),
        (
            "pipeline = {}\n[privacy]\nepsilon = 8.0\ndelta = 1e-4\nclip = 1.0",
            "promises privacy, and no noise",
        ),
    ):
        (tmp_path / "job.toml").write_text(text + line + "\n")
        with pytest.raises(ConfigError, match=words):
            config.read(tmp_path / "job.toml")
