"""What a client does with an ask, beside its rows: what a private job may not ask is refused there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.control.engine.learning import Learning
from atoll.control.engine.parcels import keep_frames, read_frames
from atoll.control.engine.work import opened, signed
from atoll.control.settings import Client
from atoll.core.edge import Task
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
        other: float = 0.0,
    ) -> Update | None:  # fmt: skip
        table: dict[str, Any] = {k: v for k, v in TABLE.items() if private or k != "privacy"}
        if local:
            table["privacy"] = {**TABLE["privacy"], "sigma": 20.0, "noise": "local"}
        values = {
            "run": f"r{private}{local}",
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


def test_noise_of_a_site_s_own_is_on_one_answer_a_round(ask: Any, tmp_path: Path) -> None:
    """A slightly other model each time would give as many answers, each with fresh noise, as one asks for."""
    first = ask(local=True)
    assert first is not None and ask(local=True) == first, "asked again, after a lost answer say"
    for other in (1e-6, 1.0):
        with pytest.raises(Refused, match="round 1 was answered for another model"):
            ask(local=True, other=other)
    assert ask(local=True, round=1, other=1.0) is not None
    assert ask(local=True) == first
    (tmp_path / "runs" / "rTrueTrue.coins").unlink(missing_ok=True)
    for coins in (tmp_path / "runs").glob("*.coins"):
        coins.unlink()
    assert ask(other=1.0) is not None, "the coordinator's own noise is another matter"


def test_without_the_coins_of_its_noise_a_round_is_answered_no_more(ask: Any, tmp_path: Path) -> None:
    assert ask(local=True) is not None
    (coins,) = (tmp_path / "runs").glob("*.coins")
    coins.unlink()
    ask(private=False)  # another run, so that nothing of the first is in memory
    with pytest.raises(Refused, match="answered for another model"):
        ask(local=True)
