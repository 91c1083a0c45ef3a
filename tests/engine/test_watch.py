"""A node that watches, renews its model within its quota, and goes on after kill -9 at each of its states."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from atoll.control.engine import tuning
from atoll.control.engine.parcels import keep_frames
from atoll.control.engine.watch import Watch
from atoll.control.settings import Policy
from atoll.core.errors import ProtocolError, Refused, StateError
from atoll.core.rng import Rng
from atoll.serve import monitor
from atoll.serve.quota import Amount
from atoll.wire import failpoint
from tests.engine.watching import (
    CHANGE,
    TABLE,
    VALUES,
    VAULT,
    Later,
    Line,
    Node,
    node,
    params,
    parcel,
    settings,
    window,
)
from tests.serve.test_shelf_trial import NOW, QUICK, TRY, Site, line
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


async def played_late(made: Node, until: int, behind: int = 3, few: int = 20) -> None:
    """Windows without labels; those of the window `behind` come by themselves, `few` at a time."""

    async def without(after: int) -> AsyncIterator[Line]:
        async for here in made.windows(after, until):
            yield replace(here, labels=None)
            if here.cursor <= behind:
                continue
            then = window(here.cursor - 1 - behind)
            for begin in range(0, len(then.rows), few):
                part = slice(begin, begin + few)
                assert then.labels is not None
                lot = Later(then.rows[part], then.labels[part], 100 * here.cursor + begin)
                await made.watch.hear(lot)
                await made.watch.idle()

    await made.watch.run(without)
    await made.watch.idle()


def test_rows_with_missing_cells_are_left_out_where_no_pipeline_fills_them(tmp_path: Path) -> None:
    made = node(tmp_path)

    async def some(after: int, until: int) -> AsyncIterator[Line]:
        for number in range(after, until):
            w = window(number)
            w.rows[::10, 0] = np.nan
            yield w
            await made.watch.idle()

    made.windows = some  # type: ignore[method-assign]
    before = made.error()
    asyncio.run(made.play(CHANGE + 12))
    assert ("renewed", "tune") in made.events()
    assert made.error() < 0.3 * before


def test_labels_that_come_later_are_heard_as_errors_and_learnt_from(tmp_path: Path) -> None:
    made = node(tmp_path, cool_down=5400.0)
    asyncio.run(played_late(made, CHANGE + 3))
    assert {kind for kind in made.events() if kind[1] == "error"} == set()
    assert made.watch.known.monitor.errors is not None  # type: ignore[union-attr]
    before = made.error()
    asyncio.run(played_late(made, CHANGE + 12))
    kinds = made.events()
    assert kinds.index(("raised", "error")) < kinds.index(("renewed", "tune"))
    assert made.error() < 0.3 * before
    cursor = made.watch.known.heard
    assert cursor == 100 * (CHANGE + 12) + 60
    again = node(tmp_path)
    assert (again.watch.known.heard, again.watch.known.cursor) == (cursor, CHANGE + 12)


@pytest.mark.parametrize("point", ["watch.state.before", "watch.state.after", "watch.rows.after"])
def test_each_label_is_heard_once_whatever_ends_a_life(point: str, tmp_path: Path) -> None:
    whole, cut = node(tmp_path / "whole"), node(tmp_path / "cut")
    for number in range(8):
        for made in (whole, cut):
            asyncio.run(made.watch.take(replace(window(number), labels=None)))

    def heard(made: Node) -> None:
        for cursor in range(made.watch.known.heard + 1, 16):  # as the store gives them
            w = window(cursor % 8)
            part = slice(40 * (cursor // 8), 40 * (cursor // 8) + 40)
            assert w.labels is not None
            asyncio.run(made.watch.hear(Later(w.rows[part], w.labels[part], cursor)))

    heard(whole)
    for times in (3, 4):
        failpoint.arm(f"{point}:{times}:raise")
        with suppress(StateError, OSError):
            heard(cut)
        failpoint.arm("")
        cut = node(tmp_path / "cut")  # what it knew in memory is gone
    heard(cut)
    assert cut.watch.known == whole.watch.known
    assert cut.watch.known.monitor.errors is not None  # type: ignore[union-attr]
    kept = [sorted(f.name for f in (made.folder / "watch" / "rows").iterdir()) for made in (whole, cut)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 15


def test_windows_and_labels_are_both_taken_from_where_the_state_says(tmp_path: Path) -> None:
    made = node(tmp_path)

    async def labelled(after: int) -> AsyncIterator[Later]:
        for cursor in range(after + 1, after + 4):
            w = window(cursor)
            assert w.labels is not None
            yield Later(w.rows, w.labels, cursor)

    for life in (1, 2):
        asyncio.run(made.watch.run(lambda after: made.windows(after, after + 2), labelled))
        assert (made.watch.known.cursor, made.watch.known.heard) == (2 * life, 3 * life)


def test_readings_that_were_wiped_are_no_longer_what_is_usual(tmp_path: Path) -> None:
    made = played(node(tmp_path), 8)
    assert made.watch.known.monitor.calibrated  # type: ignore[union-attr]
    asyncio.run(made.watch.take(window(0)))  # the source has begun anew
    state = made.watch.known.monitor
    assert state is not None
    assert (state.calibrated, len(state.waiting), made.watch.known.cursor) == (False, 1, 1)


def test_a_few_errors_that_came_later_are_no_window(tmp_path: Path) -> None:
    limits = monitor.USUAL
    state = monitor.begun(("a",))
    right, wrong = np.zeros(limits.least), np.ones(limits.least)
    for _ in range(limits.stable):
        state, _ = monitor.heard(state, right, 0.0)
    assert state.errors is not None
    for error in np.tile(wrong, 4):
        state, _ = monitor.heard(state, np.array([error, np.nan]), 0.0)
    assert state.errors is not None
    assert state.errors.raised
    for _ in range(limits.least * limits.windows - 1):
        state, events = monitor.heard(state, np.zeros(1), 0.0)
        assert events == ()
    state, events = monitor.heard(state, np.zeros(1), 0.0)
    assert [(e.kind, e.what) for e in events] == [("cleared", "error")]


def test_a_label_that_comes_later_reaches_a_model_on_trial_by_its_ticket(tmp_path: Path) -> None:
    site = Site(tmp_path / "serving")
    site.take(1, line(tmp_path, 1.0))
    site.take(2, line(tmp_path, 1.0, 0.5), {**TRY, "gates": {**QUICK, "disagreement": None}})
    watch = Watch(settings(tmp_path), VAULT, site.shelf, node(tmp_path).tune, lambda *_: None, lambda: NOW)
    site.talk(80)  # somebody asks, with tickets of their own: the readings' names
    assert site.moves[-1] != (2, "back")
    rows = np.float32([[i % 7, i % 5] for i in range(80)])
    tickets = tuple(f"1-{i}" for i in range(80))
    asyncio.run(watch.hear(Later(rows, rows[:, 0].astype(float), 80, tickets)))
    assert site.moves[-1] == (2, "back"), "the champion is right, the candidate further off"
