"""What a client does with an ask, beside its rows: what a private job may not ask is refused there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.control.engine.learning import Learning
from atoll.control.engine.orders import write
from atoll.control.engine.parcels import keep_frames, read_frames
from atoll.control.engine.work import opened, signed
from atoll.control.settings import Client
from atoll.core.edge import Task, lifted
from atoll.core.errors import Refused
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.learn.rounds import Plan, update_points
from atoll.privacy.keys import Authority
from atoll.wire import body
from tests.wire.pki import member

TABLE: dict[str, Any] = {
    "rounds": 3,
    "learner": {"name": "softmax"},
    "data": {"name": "rows"},
    "privacy": {"epsilon": 8.0, "delta": 1e-4, "clip": 1.0, "sigma": 5.0},
}
ROWS = "x,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20))


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    authority = Authority.new("test", now=time.time())
    (tmp_path / "rows.csv").write_text(ROWS)
    data = {"rows": {"train": "rows.csv", "target": "label"}}
    settings = Client(folder=str(tmp_path), data=data | {"kept": {**data["rows"], "budget": "ours"}})
    learning = Learning(settings)
    identity = member(authority, "coordinator", "hub", now=time.time())
    model = tmp_path / "model"

    def asked(
        private: bool = True, want: str = "fit", round: int = 0, *, rows: str = "rows", local: bool = False,
        other: float = 0.0, run: str = "r",
    ) -> Update | None:  # fmt: skip
        table: dict[str, Any] = {k: v for k, v in TABLE.items() if private or k != "privacy"}
        if local:
            table["privacy"] = {**TABLE["privacy"], "sigma": 20.0, "noise": "local"}
        values = {
            "run": f"{run}{private}{local}",
            "table": {**table, "data": {"name": rows}},
            "seed": 7,
            "data": rows,
            "features": 1,
            "outputs": 2,
        }
        job = signed({**values, "classes": ["a", "b"], "federation": "test"}, identity)
        work = opened(job, authority.root, "test", now=time.time())
        params = Update.of(work.learner.init(Rng.of(1).generator()))
        params = Update(params.layout, params.buffer + np.float32(other))
        keep_frames(model, body.params_message(params))
        plan = Plan(work.learner, work.job.trained, {"c": (0,)}, 3)
        points = update_points(plan, params, 4) if want == "fit" else None
        task = Task(round, Rng.of(round), (0,), (-1,), params, points, (0, 1, 2, 3), want)
        head = {"ask": f"r.main.{round}", "params": "model", "job": job, "task": body.ask_head(task)}
        to = tmp_path / "answer"
        learning._orders = None  # the model is another one
        learning.answer(head, model, to, sound=False, roots=authority.root, federation="test")
        plain = tmp_path / "plain"
        plain.write_bytes(learning._vault.read(to))
        answer = body.read_answer(read_frames(plain))
        return answer.replies[0][1].update if answer.replies else None

    return asked


def test_a_private_job_is_trained_for_within_its_rounds(ask: Any) -> None:
    update = ask()
    assert update is not None and 0 < update.norm() <= 1.0
    assert ask(round=2) is not None
    for round in (3, 100, -1):
        with pytest.raises(Refused, match="is for 3 rounds, and they are over"):
            ask(round=round)


def test_how_a_model_does_is_said_in_an_open_job_only(ask: Any) -> None:
    with pytest.raises(Refused, match="stays here"):
        ask(want="evaluate")
    assert ask(private=False, want="evaluate") is None
    assert ask(private=False, round=100) is not None


def test_rows_with_a_budget_say_nothing_to_a_job_without_a_promise(ask: Any) -> None:
    for want in ("fit", "evaluate"):
        with pytest.raises(Refused, match="have a privacy budget, and the job promises no privacy"):
            ask(private=False, want=want, rows="kept")


def test_noise_of_a_site_s_own_is_on_one_answer_a_round(ask: Any) -> None:
    """A slightly other model each time would give as many answers, each with fresh noise, as one asks for."""
    first = ask(local=True)
    assert first is not None and ask(local=True) == first, "asked again, after a lost answer say"
    for other in (1e-6, 1.0):
        with pytest.raises(Refused, match="round 1 was answered for another model"):
            ask(local=True, other=other)
    assert ask(local=True, round=1, other=1.0) is not None
    assert ask(local=True) == first
    assert ask(other=1.0) is not None and ask(other=2.0) is not None, "the coordinator's noise is its matter"


def test_a_run_in_between_changes_nothing_of_that(ask: Any) -> None:
    """It takes the first one's coins with it: even the same question would get other noise."""
    assert ask(local=True) is not None
    assert ask(local=True, rows="rows", run="other") is not None
    for other in (0.0, 1.0):
        with pytest.raises(Refused, match="answered for another model"):
            ask(local=True, other=other)


SITES = {"one": "x,label\n1,a\n", "many": ROWS + "3.5,a\n" * 300, "others": "x,label\n" + "9.5,b\n" * 300}


@pytest.mark.parametrize(
    ("unit", "algorithm"),
    [("client", "fedavg"), ("client", {"name": "small", "up": "int8"}), ("example", "fedavgm")],
)
@pytest.mark.parametrize("edge", [False, True])
def test_under_a_promise_the_size_of_an_answer_says_nothing_of_the_rows(
    tmp_path: Path, algorithm: Any, unit: str, edge: bool
) -> None:
    """At a site, and of an edge that adds up what one site sent."""
    rows = {"unit": "example", "rate": 0.1, "population": 1000} if unit == "example" else {}
    table = {
        **TABLE,
        "learner": {"name": "mlp", "hidden": [64]},
        "algorithm": algorithm,
        "privacy": {**TABLE["privacy"], **rows},
    }
    authority, sizes, numbers = Authority.new("test", now=time.time()), {}, set()
    identity = member(authority, "coordinator", "hub", now=time.time())
    values = {"run": "r1", "table": table, "seed": 7, "data": "rows", "features": 1, "outputs": 2}
    job = signed({**values, "classes": ["a", "b"], "federation": "test"}, identity)
    work = opened(job, authority.root, "test", now=time.time())
    params = Update.of(work.learner.init(Rng.of(1).generator()))
    points = update_points(Plan(work.learner, work.job.trained, {"c": (0,)}, 3), params, 4)
    task = Task(0, Rng.of(0), (0,), (-1,), params, points, (0, 1, 2, 3))
    head = {"ask": "r.main.0", "params": "model", "job": job, "task": body.ask_head(task)}
    for name, text in SITES.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rows.csv").write_text(text)
        keep_frames(folder / "model", body.params_message(params))
        data = {"rows": {"train": "rows.csv", "target": "label", "classes": ["a", "b"]}}
        learning = Learning(Client(folder=str(folder), data=data))
        to = folder / "answer"
        learning.answer(head, folder / "model", to, sound=False, roots=authority.root, federation="test")
        plain = folder / "plain"
        plain.write_bytes(learning._vault.read(to))
        answer = body.read_answer(read_frames(plain))
        numbers.add(answer.replies[0][1].update.buffer.tobytes())
        if edge:
            aggregator = work.job.trained.rule.at(points, task.cohort, task.key)
            asked = learning._orders.read(head, folder / "model", sound=False, now=time.time())
            write(asked, lifted(aggregator, answer), plain)
        sizes[name] = plain.stat().st_size
    assert len(numbers) == len(SITES)
    assert len(set(sizes.values())) == 1, sizes
