"""A variant that a node made of a signed model serves in its place, on trial or champion; it is not kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from atoll.control.engine.agent import Agent
from atoll.control.settings import Client
from atoll.core.errors import ConfigError, StateError
from atoll.serve.models import Shelf
from tests.serve.shelf_life import TRY, opened, signed
from tests.serve.test_models import model, slope

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_it_serves_in_the_models_place_until_the_next_start(tmp_path: Path) -> None:
    data = model(tmp_path, 1.0)
    shelf = Shelf(tmp_path / "shelf", opened)
    shelf.take(signed(data, 1), data)
    (path,) = shelf.heavy("m").values()
    assert path.read_bytes() == data
    before = shelf.get()
    assert shelf.lighten("m", digest(data), model(tmp_path, 1.01))
    after = shelf.get()
    assert before is not None and after is not None
    assert (before.light, after.light, after.version) == (False, True, 1)
    assert slope(shelf) == pytest.approx(1.01)
    assert shelf.heavy("m") == {}
    again = Shelf(tmp_path / "shelf", opened)
    assert slope(again) == 1.0 and list(again.heavy("m")) == [digest(data)]


def test_a_candidate_is_tried_as_the_variant_that_would_serve(tmp_path: Path) -> None:
    one, two = model(tmp_path, 1.0), model(tmp_path, 2.0)
    shelf = Shelf(tmp_path / "shelf", opened)
    shelf.take(signed(one, 1), one)
    shelf.take(signed(two, 2, order={"number": 1, **TRY, "stage": "canary", "share": 1.0}), two)
    assert shelf.heavy("m").keys() == {digest(one), digest(two)}
    assert shelf.lighten("m", digest(two), model(tmp_path, 2.02))
    tried, champion = shelf.pick("m", "t"), shelf.get("m")
    assert tried is not None and champion is not None
    assert (tried.trial, tried.light, champion.light) == (True, True, False)
    found = tried.model.run(np.ones((1, 1), np.float32))["y"]
    assert float(found[0, 0]) == pytest.approx(2.02)
    shelf.close()


def test_what_is_gone_or_is_no_model_changes_nothing(tmp_path: Path) -> None:
    data = model(tmp_path, 1.0)
    shelf = Shelf(tmp_path / "shelf", opened)
    assert shelf.heavy("m") == {}
    assert not shelf.lighten("m", digest(data), data)
    shelf.take(signed(data, 1), data)
    newer = model(tmp_path, 3.0)
    shelf.take(signed(newer, 2), newer)
    assert not shelf.lighten("m", digest(data), data)
    with pytest.raises(StateError, match="not an ONNX model"):
        shelf.lighten("m", digest(newer), b"rubbish")
    assert slope(shelf) == 3.0
    assert [one.light for one in shelf] == [False]


def test_a_client_says_at_its_start_that_there_are_no_rows_to_calibrate_on(tmp_path: Path) -> None:
    data = {"rows": {"train": "rows.csv", "target": "label"}}
    with pytest.raises(ConfigError, match=r"\$.int8: there is no data set 'row' to calibrate on"):
        Agent(Client(folder=str(tmp_path), data=data, int8="row"))
