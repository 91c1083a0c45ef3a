"""The watch of windows: rows of the data set, answered, judged, learnt from; none twice when killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from atoll.adapt.plan_learner import plan_learner
from atoll.control.engine.tuning import Rows
from atoll.control.settings import Client, make, watched
from atoll.core.errors import ConfigError
from atoll.sense.reading import Reading
from atoll.sense.window import labelled
from atoll.wire import failpoint
from tests.engine.watching import MIDNIGHT, VAULT
from tests.engine.windowed import DATA, SOURCE, Node, plan
from tests.serve.test_shelf_trial import QUICK, TRY, Site


def test_windows_are_answered_judged_by_their_newest_reading_and_learnt_from(tmp_path: Path) -> None:
    made = Node(tmp_path)
    made.parcel()
    made.play()
    state = made.watch.known.monitor
    assert state is not None
    assert [c.name for c in state.columns] == ["u", "v", "answer 0", "answer 1", "answer 2"]
    told = [(t.event.kind, t.event.what) for t in made.watch.known.told]
    assert told[0] == ("calibrated", "")
    assert ("raised", "error") in told and ("renewed", "tune") in told and ("cleared", "error") in told
    assert not {"u", "v"} & {what for kind, what in told if kind == "raised"}, "they are as they were"
    served, rows = made.shelf.get("line"), made.learnt_from()
    assert served is not None and served.own > 0
    x, y = rows.x[-300:], rows.y[-300:]
    assert (served.model.run(x)["label"] == y).mean() > 0.9


def test_a_pipeline_in_the_models_graph_sees_what_is_said_and_so_does_the_watch(tmp_path: Path) -> None:
    made = Node(tmp_path, piped=True)
    made.parcel()
    made.play()
    told = [(t.event.kind, t.event.what) for t in made.watch.known.told]
    assert ("raised", "error") in told and ("renewed", "tune") in told and ("cleared", "error") in told
    assert not {"u", "v"} & {what for kind, what in told if kind == "raised"}, "they are as they were"
    state = made.watch.known.monitor
    assert state is not None
    seen = np.frombuffer(b"".join([*state.waiting, state.pending]), np.float32).reshape(-1, 5)
    assert np.nanstd(seen[:, :2], axis=0) == pytest.approx([100, 0.1], rel=0.3)
    assert np.isnan(seen[:, 1]).any() and np.isfinite(seen[:, 2:]).all()
    assert any(np.isnan(np.frombuffer(x, np.float32)).any() for x, _ in kept(made)), "and learns from it"
    served, rows = made.shelf.get("line"), made.learnt_from()
    assert served is not None and served.own > 0
    assert abs(rows.x[..., 0].mean() - 500) < 20
    assert (served.model.run(rows.x[-300:])["label"] == rows.y[-300:]).mean() > 0.9


def kept(made: Node) -> list[tuple[bytes, float]]:
    found = [
        msgspec.msgpack.decode(VAULT.read(f), type=Rows).examples(classes=False) for f in made.watch._files()
    ]
    return [(x.tobytes(), y) for part in found for x, y in zip(part.x, part.y, strict=True)]


@pytest.mark.parametrize("point", ["watch.rows.after", "watch.state.before", "watch.state.after"])
def test_killed_anywhere_no_row_is_counted_twice(point: str, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    more = {"drift": False, "recent": 10_000, "n": 60}
    whole = Node(tmp_path / "whole", **more).play()
    rows = whole.learnt_from()
    final = rows.x[: len(kept(whole))]
    assert len(final) > 150
    assert {x for x, _ in kept(whole)} <= {x.tobytes() for x in rows.x}, "bit for bit what is learnt from"
    Node(tmp_path / "killed", **more).store.close()
    environment = {**os.environ, failpoint.VARIABLE: f"{point}:4:kill"}
    command = [sys.executable, "-m", "tests.engine.windowed", str(tmp_path / "killed")]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    again = Node(tmp_path / "killed", **more)
    assert 0 < again.watch.known.cursor < whole.watch.known.cursor
    again.play()
    assert again.watch.known.monitor == whole.watch.known.monitor
    assert sorted(kept(again)) == sorted(kept(whole))
    assert len(set(kept(whole))) == len(kept(whole))


def test_windows_whose_labels_come_later_are_judged_by_them_and_learnt_from(tmp_path: Path) -> None:
    made = Node(tmp_path, late=True)
    made.parcel()
    made.play()
    assert made.watch.known.monitor is not None
    assert made.watch.known.monitor.errors is None, "no label came yet"
    assert kept(made) == []
    made.play(late=True)
    told = [(t.event.kind, t.event.what) for t in made.watch.known.told]
    kinds = [("raised", "error"), ("renewed", "tune"), ("cleared", "error")]
    assert [told.index(kind) for kind in kinds] == sorted(told.index(kind) for kind in kinds)
    assert not {"u", "v"} & {what for kind, what in told if kind == "raised"}
    served, rows = made.shelf.get("line"), made.learnt_from()
    assert served is not None and served.own > 0
    assert (served.model.run(rows.x[-300:])["label"] == rows.y[-300:]).mean() > 0.9


def test_a_model_on_trial_hears_what_was_true_of_the_windows_it_was_asked_about(tmp_path: Path) -> None:
    made, site = Node(tmp_path, n=60, late=True, drift=False), Site(tmp_path / "serving")
    site.take(1, (tmp_path / "model.onnx").read_bytes())
    learner = plan_learner(plan())
    learner.export(learner.init(np.random.default_rng(0)), tmp_path / "worse.onnx")
    site.take(2, (tmp_path / "worse.onnx").read_bytes(), {**TRY, "gates": {**QUICK, "disagreement": None}})
    made.watch._shelf = site.shelf
    lot = labelled(made.store.due(2, most=1000)[1], made.form, 0)
    assert lot is not None and len(lot) > 150
    champion = site.shelf.get("m")
    assert champion is not None
    for x, ticket in zip(lot.rows[:100], lot.tickets[:100], strict=True):
        site.shelf.seen(champion, ticket, x[None])
        site.shelf.settle()
    assert site.moves[-1] != (2, "back")
    made.play(late=True)
    assert site.moves[-1] == (2, "back"), "the champion is right"


def test_killed_with_its_rows_kept_and_not_noted_no_label_of_a_window_is_heard_twice(tmp_path: Path) -> None:
    more = {"drift": False, "recent": 10_000, "n": 100, "late": True}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        Node(tmp_path / name, **more).store.close()
    whole = Node(tmp_path / "whole", **more).play(late=True)
    environment = {**os.environ, failpoint.VARIABLE: "watch.rows.after:1:kill"}
    command = [sys.executable, "-m", "tests.engine.windowed", str(tmp_path / "killed"), "late"]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    again = Node(tmp_path / "killed", **more)
    assert (again.watch.known.cursor, again.watch.known.heard_windows) == (whole.watch.known.cursor, 0)
    again.store.label([Reading("d0", 0.0, "60", {"moves": "odd", "sequence": 3})], MIDNIGHT)  # corrected now
    again.play(late=True)
    state, other = again.watch.known.monitor, whole.watch.known.monitor
    assert state is not None and other is not None
    assert state.columns == other.columns
    learnt = again.learnt_from()
    rows = sorted((x.tobytes(), float(y)) for x, y in zip(learnt.x, learnt.y, strict=True))
    found = sorted(kept(again))
    assert len(found) == len(set(found)) > 270
    assert set(found) <= set(rows), "bit for bit what is learnt from"
    assert len(found) == len(kept(whole))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"watch": {"source": "engine", "data": "other"}}, "no data set 'other' of 'engine'"),
        ({"data": {"engine": {**DATA, "newest": 1}}}, "at most `newest`"),
        ({"data": {"engine": {**DATA, "newest": "all"}}}, "newest is a number"),
        ({"sources": {"engine": {**SOURCE, "window": {"seconds": 5}}}}, "windows of a size"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_the_start(change: dict[str, object], words: str) -> None:
    table = {"sources": {"engine": SOURCE}, "data": {"engine": DATA}, "predict": "127.0.0.1:0"}
    table |= {"watch": {"source": "engine", "data": "engine"}}
    watched(make(Client, table))
    with pytest.raises(ConfigError, match=words):
        watched(make(Client, {**table, **change}))
