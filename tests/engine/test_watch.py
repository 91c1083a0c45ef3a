"""A node that watches, renews its model within its quota, and goes on after kill -9 at each of its states."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from atoll.control.engine import tuning
from atoll.control.engine.parcels import keep_frames
from atoll.control.settings import Policy
from atoll.core.errors import ProtocolError, Refused
from atoll.core.rng import Rng
from atoll.serve.quota import Amount
from atoll.wire import failpoint
from tests.engine.watching import CHANGE, TABLE, VALUES, VAULT, Node, node, params, parcel, window
from tests.wire.pki import member


def played(made: Node, until: int) -> Node:
    asyncio.run(made.play(until))
    return made


def test_a_change_is_noticed_renewed_and_served_as_the_nodes_own(tmp_path: Path) -> None:
    made = played(node(tmp_path), CHANGE)
    assert made.events() == [("calibrated", "")]
    before = made.error()
    played(made, CHANGE + 12)
    heard = [kind for kind in made.events() if kind[1] == "error"]
    assert heard[:2] == [("raised", "error"), ("cleared", "error")]
    assert ("renewed", "tune") in made.events()
    took = [t.event.figures for t in made.watch.known.told if t.event.what == "tune"]
    assert all(figures["joules_estimate"] == pytest.approx(10 * figures["cpu_seconds"]) for figures in took)
    served = made.shelf.get("line")
    assert served is not None
    assert (served.version, served.own > 0) == (3, True), "never a version of the federation's"
    assert made.error() < 0.3 * before
    kinds = {kind for kind, _ in made.sent}
    assert kinds == {"watch"}
    last = made.sent[-1][1]
    assert last["model"] == {"name": "line", "version": 3, "own": served.own}
    again = node(tmp_path)
    again.watch.begin()
    held = again.shelf.get("line")
    assert held is not None
    assert held.own == served.own
    assert again.error() == pytest.approx(made.error())


def test_a_newer_version_of_the_federation_takes_the_nodes_own_place(tmp_path: Path) -> None:
    made = played(node(tmp_path), CHANGE + 12)
    assert made.shelf.get("line").own > 0  # type: ignore[union-attr]
    made.shelf.put("line", 4, (tmp_path / "line.onnx").read_bytes())
    served = made.shelf.get("line")
    assert served is not None
    assert (served.version, served.own) == (4, 0)
    again = node(tmp_path)
    again.shelf.put("line", 4, (tmp_path / "line.onnx").read_bytes())
    again.watch.begin()
    assert again.shelf.get("line").own == 0  # type: ignore[union-attr]


def test_nothing_is_renewed_without_reason_and_no_win_is_no_swap(tmp_path: Path) -> None:
    made = played(node(tmp_path, cron="0 * * * *", drift=False), CHANGE)
    assert made.events().count(("kept", "tune")) >= 3, "the model fits this world already"
    assert made.shelf.get("line").own == 0  # type: ignore[union-attr]


def test_the_quota_holds_and_says_so(tmp_path: Path) -> None:
    made = played(node(tmp_path, quota={"cpu_minutes": 0.0}), CHANGE + 12)
    assert made.shelf.get("line").own == 0  # type: ignore[union-attr]
    why = {told.event.why for told in made.watch.known.told if told.event.kind == "kept"}
    assert any("too few" in text for text in why)
    assert made.watch.known.quota.spent.cpu_minutes == 0


def test_a_fine_tune_counts_the_energy_that_was_measured(tmp_path: Path) -> None:
    made = node(tmp_path)
    tune = made.watch._tune

    async def metered(*files: Any) -> Any:
        return {**await tune(*files), "joules": 7.2, "source": "rapl"}

    made.watch._tune = metered  # type: ignore[assignment]
    found = [t.event.figures for t in played(made, 23).watch.known.told if t.event.what == "tune"]
    assert found
    assert all(figures["joules_rapl"] == 7.2 and figures["cpu_seconds"] > 0 for figures in found)
    assert made.watch.known.quota.spent.energy_wh == pytest.approx(7.2 * len(found) / 3600)


def test_a_federated_run_is_asked_for_until_a_newer_version_comes(tmp_path: Path) -> None:
    made = played(node(tmp_path, action="ask", run={"bytes": 10}, quota={"bytes": 15}), CHANGE + 8)
    assert made.watch.known.asked == 3
    assert made.watch.known.quota.spent == Amount(bytes=10), "asked for once"
    assert made.sent[-1][1]["asked"] == 3
    made.shelf.put("line", 4, (tmp_path / "line.onnx").read_bytes())
    played(made, CHANGE + 9)
    assert made.watch.known.asked == 0


def test_what_goes_up_holds_no_reading(tmp_path: Path) -> None:
    made = played(node(tmp_path), CHANGE + 6)
    readings = {float(v) for n in range(CHANGE + 6) for v in window(n).rows.ravel()}

    def figures(value: object) -> set[float]:
        if isinstance(value, dict):
            return set().union(*map(figures, value.values()), set())
        if isinstance(value, (list, tuple)):
            return set().union(*map(figures, value), set())
        return {float(value)} if isinstance(value, (int, float)) else set()

    found = set().union(*(figures(head) for _, head in made.sent))
    assert len(found) > 20
    assert not found & readings


def test_its_files_show_no_reading(tmp_path: Path) -> None:
    played(node(tmp_path), CHANGE)
    cells = window(2).rows[:4].tobytes()
    files = [f for f in (tmp_path / "watch").rglob("*") if f.is_file()]
    assert len(files) > 5
    assert not any(cells in f.read_bytes() for f in files)


POINTS = (
    *("watch.rows.after", "watch.state.before", "watch.state.after", "watch.reserved", "watch.tuned"),
    *("watch.own.before", "watch.own.model", "watch.own.after"),
)


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_it_goes_on_and_serves_a_whole_model(point: str, tmp_path: Path) -> None:
    assert point in failpoint.NAMES
    node(tmp_path)  # its identity
    times = CHANGE + 3 if point.startswith(("watch.rows", "watch.state")) else 1
    environment = {**os.environ, failpoint.VARIABLE: f"{point}:{times}:kill"}
    command = [sys.executable, "-m", "tests.engine.watching", str(tmp_path), str(CHANGE + 12)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    made = node(tmp_path)
    made.watch.begin()
    number, at = made.watch.known.number, made.watch.known.cursor
    assert made.error() < 5, "something whole serves"
    assert made.watch.known.triggers.open == ""
    assert made.watch.known.quota.open == {}
    if point == "watch.reserved":
        assert made.watch.known.quota.spent.cpu_minutes > 0, "what was reserved is spent"
    served = made.shelf.get("line")
    assert served is not None
    if point.startswith("watch.own"):
        assert (served.own > 0) is (point == "watch.own.after")
    played(made, max(at, CHANGE) + 14)
    assert made.shelf.get("line").own > 0  # type: ignore[union-attr]
    assert made.watch.known.number >= number
    assert made.watch.known.cursor == max(at, CHANGE) + 14


def test_a_full_disk_stops_a_swap_and_not_the_watch(tmp_path: Path) -> None:
    made = played(node(tmp_path), CHANGE)
    failpoint.arm("watch.own.before:1:full")
    try:
        played(made, CHANGE + 12)
    finally:
        failpoint.arm("")
    why = [told.event.why for told in made.watch.known.told if told.event.kind == "kept"]
    assert any(text.startswith("the disk does not take it: No space left on device") for text in why)
    assert ("renewed", "tune") in made.events(), "the next one is taken"


def test_a_parcel_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    made = node(tmp_path)
    work, found = tuning.read(tmp_path / "parcel", made.roots, "lagoon", Policy())
    assert work.run == "r1"
    assert found == params()
    with pytest.raises(ProtocolError):
        tuning.read(tmp_path / "parcel", made.roots, "another", Policy())
    from atoll.privacy.keys import Authority

    stranger = member(Authority.new("lagoon", now=time.time()), "coordinator", "hub")
    with pytest.raises(ProtocolError):
        tuning.read(parcel(stranger, tmp_path / "strange"), made.roots, "lagoon", Policy())


def test_a_parcel_of_another_run_is_refused_and_fetched_again(tmp_path: Path) -> None:
    from atoll.privacy.keys import Authority
    from atoll.privacy.models import open_model, sign_model
    from atoll.serve.models import Shelf

    made = node(tmp_path)
    identity = member(Authority.new("lagoon", now=time.time()), "coordinator", "hub")
    graph = (tmp_path / "line.onnx").read_bytes()
    manifest = {"federation": "lagoon", "run": "r1", "name": "line", "version": 3, "created": time.time()}
    signed = sign_model(
        identity.key, identity.chain, {**manifest, "sha256": hashlib.sha256(graph).hexdigest()}
    )
    shelf = Shelf(tmp_path / "shelf", lambda data, above: open_model(data, identity.roots, now=None))
    shelf.take(signed, graph)
    assert (shelf.run("line"), shelf.run("other"), made.shelf.run("line")) == ("r1", "", "")
    made.roots, made.shelf, made.watch._shelf = identity.roots, shelf, shelf
    made.watch.based("line", 3, parcel(identity, tmp_path / "foreign", run="r2"))
    assert not made.watch.lacks("line", 3)
    played(made, CHANGE + 4)
    why = [told.event.why for told in made.watch.known.told if told.event.kind == "kept"]
    assert why[0] == "the model to fine-tune is of run r2, the one that serves of r1"
    assert made.watch.lacks("line", 3), "another is asked for"
    made.watch.based("line", 3, parcel(identity, tmp_path / "own", run="r1"))
    played(made, CHANGE + 16)
    assert ("renewed", "tune") in made.events()
    shelf.close()


def test_a_plan_is_fine_tuned_by_the_graph_that_came_with_its_job(tmp_path: Path) -> None:
    from atoll.adapt.plan import Plan
    from atoll.control.engine.work import Work, signed
    from atoll.privacy.keys import Authority
    from atoll.serve.model import Model
    from tests.serve.plans import FILE

    plan = Plan.read(FILE.read_bytes())
    identity = member(Authority.new("lagoon", now=time.time()), "coordinator", "hub")
    table = {**TABLE, "learner": {"name": "plan", "sha256": plan.sha256, "blob": "0" * 64}}
    classes = ["a", "b", "c"]
    values = {**VALUES, "table": table, "features": 4, "outputs": 3, "classes": classes}
    letter = signed({**values, "federation": "lagoon"}, identity)
    work = Work(letter["text"], plan=plan)
    first = work.learner.init(np.random.default_rng(0))
    keep_frames(tmp_path / "base", tuning.parcel(work, letter, first, identity))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.float64) + (x[:, 1] > 0)
    VAULT.write(tmp_path / "rows", msgspec.msgpack.encode(tuning.Rows.of(x, y)))
    asked = {"seconds": 60.0, "passes": 5, "reach": 1.0, "seed": 1}
    files = tmp_path / "base", tmp_path / "rows", tmp_path / "new"
    whose = {"vault": VAULT, "roots": identity.roots, "federation": "lagoon"}
    with pytest.raises(Refused, match="plans = true"):
        tuning.tune(*files, asked, policy=Policy(), **whose)
    took = tuning.tune(*files, asked, policy=Policy(plans=True), **whose)
    assert took["pieces"] == 20, "five times each of four"

    def right(data: bytes) -> float:
        return float((Model(data).run(x)["label"] == y).mean())

    work.learner.export(first, tmp_path / "old.onnx", x[:8])
    before = right((tmp_path / "old.onnx").read_bytes())
    assert right(VAULT.read(tmp_path / "new")) > max(0.6, before + 0.2)


def test_a_fine_tune_comes_as_far_as_its_time_allows() -> None:
    from atoll.data import Examples

    class Slow:
        """A learner that takes a second for a hundred rows."""

        now = 0.0

        def fit(self, start, data, ctx):
            from atoll.core.message import Contribution

            self.now += len(data) / 100
            assert ctx.round == 3
            return Contribution(start.zeros(), len(data))

    rows = Examples(np.zeros((10_000, 2), np.float32), np.zeros(10_000))

    def tuned(seconds: float, rows: Examples = rows) -> tuning.Tuned:
        learner = Slow()
        more = {"seconds": seconds, "passes": 2, "round": 3}
        found = tuning.tuned(learner, params(), rows, Rng.of(1), clock=lambda: learner.now, **more)
        assert found.seconds == learner.now
        return found

    for seconds, why, pieces in ((1000.0, "rows", 40), (150.0, "seconds", 30), (57.0, "seconds", 11)):
        found = tuned(seconds)
        assert (found.stopped, found.pieces) == (why, pieces)
        assert found.seconds <= seconds
    for seconds, few in ((0.0, rows), (-1.0, rows), (9.0, rows[:49])):
        with pytest.raises(Refused, match="too few"):
            tuned(seconds, few)
