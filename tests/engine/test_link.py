"""What a client's compression is chosen by: its link as it was when the run began, over a kill as well."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from atoll.control.engine.learning import Learning
from atoll.control.engine.parcels import keep_frames, read_frames
from atoll.control.engine.work import opened, signed
from atoll.control.settings import Client
from atoll.core.edge import Task
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.learn.rounds import Plan, update_points
from atoll.privacy.keys import Authority
from atoll.wire import body
from atoll.wire.coded import Coded
from tests.wire.pki import member

ROWS = "x,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20))
TABLE: dict[str, Any] = {
    "rounds": 3,
    "learner": {"name": "mlp", "hidden": [256, 256]},
    "data": {"name": "rows"},
    "compression": "auto",
}
FAST = 1e9  # bytes a second


class Site:
    """A client that is asked, and may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.new("test", now=time.time())
        self.identity = member(self.authority, "coordinator", "hub", now=time.time())
        (folder / "rows.csv").write_text(ROWS)
        data = {"rows": {"train": "rows.csv", "target": "label"}}
        self.settings = Client(folder=str(folder), data=data)
        self.start()

    def start(self) -> None:
        self.learning = Learning(self.settings)

    def ask(self, rate: float, *, round: int = 0, used: int = -1, run: str = "r") -> bytes | None:
        """The compact bytes of an answer, None of one in plain numbers."""
        values = {"run": run, "table": TABLE, "seed": 7, "data": "rows", "features": 1, "outputs": 2}
        job = signed({**values, "classes": ["a", "b"], "federation": "test"}, self.identity)
        work = opened(job, self.authority.root, "test", now=time.time())
        params = Update.of(work.learner.init(Rng.of(1).generator()))
        model, to = self.folder / "model", self.folder / "answer"
        keep_frames(model, body.params_message(params))
        points = update_points(Plan(work.learner, work.job.trained, {"c": (0,)}, 3), params, 4)
        task = Task(round, Rng.of(round), (0,), (used,), params, points, (0, 1, 2, 3), "fit")
        head = {"ask": f"{run}.main.{round}", "params": "model", "job": job, "task": body.ask_head(task)}
        root = self.authority.root
        self.learning.answer(head, model, to, sound=False, roots=root, federation="test", rate=rate)
        plain = self.folder / "plain"
        plain.write_bytes(self.learning._vault.read(to))
        update = body.read_answer(read_frames(plain)).replies[0][1].update
        return update.packed.tobytes() if isinstance(update, Coded) and update.code.bits else None


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_slow_link_is_sent_less_than_a_fast_one(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "atoll.client")
    assert site.ask(FAST) is None
    site.ask(FAST, round=1, used=0)
    small = site.ask(FAST / 10_000, run="s")
    assert small is not None and len(small) < 256 * 256
    said = [r.getMessage() for r in caplog.records if "updates travel" in r.getMessage()]
    assert [text.partition(", ")[0] for text in said] == [
        "r: updates travel as they are: 1e+03 MB/s up",
        "s: updates travel as int4: 0.1 MB/s up",
    ]


def test_a_client_that_is_killed_answers_the_same_bytes(site: Site) -> None:
    """Killed before its first answer left, it has the link that it chose by, and not the state."""
    first = site.ask(0.0)
    assert first is not None
    (site.folder / "runs" / "r.state").unlink()
    site.start()
    assert site.ask(FAST) == first


def test_a_choice_that_was_used_is_kept_though_the_link_is_another(site: Site) -> None:
    assert site.ask(0.0) is not None
    site.ask(0.0, round=1, used=0)
    (site.folder / "runs" / "r.link").unlink()
    site.start()
    assert site.ask(FAST, round=2, used=1) is not None


def test_a_link_that_cannot_be_read_is_measured_again(site: Site) -> None:
    assert site.ask(FAST) is None
    (site.folder / "runs" / "r.link").write_bytes(b"?")
    (site.folder / "runs" / "r.state").unlink()
    site.start()
    assert site.ask(FAST / 1000) is not None
