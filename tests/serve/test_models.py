"""The shelf of models: signed ones are kept, served after a restart, and only ever replaced by newer ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.core.errors import IntegrityError, MisuseError, ProtocolError, StateError
from atoll.learn.dense import linear
from atoll.serve.models import Shelf

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def model(tmp_path: Path, slope: float = 1.0) -> bytes:
    """y = slope * x."""
    learner = linear(1, 1)
    params = learner.init(np.random.default_rng(0)).map(lambda b: np.array([slope, 0.0], np.float32))
    learner.export(params, tmp_path / "made.onnx", np.zeros((2, 1)))
    return (tmp_path / "made.onnx").read_bytes()


def signed(data: bytes, version: int, name: str = "heart", **more: Any) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    return json.dumps({"name": name, "version": version, "sha256": digest, "by": "us", **more}).encode()


def opened(manifest: bytes, above: int | None) -> Any:
    """What privacy/models.py promises, without its cryptography."""
    fields = json.loads(manifest)
    if fields["by"] != "us":
        raise ProtocolError("not signed by a coordinator of this federation")
    if above is not None and not (fields["version"] > above or above <= fields.get("takes_back", 0)):
        raise ProtocolError(f"model {fields['name']} is at {above} here: it only rises")
    return fields


def slope(shelf: Shelf, name: str = "") -> float:
    served = shelf.get(name)
    assert served is not None
    return float(served.model.run(np.ones((1, 1), np.float32))["y"][0, 0])


def test_the_newest_is_served_again_after_a_restart(tmp_path: Path) -> None:
    place, first, second = tmp_path / "models", model(tmp_path, 1.0), model(tmp_path, 2.0)
    shelf = Shelf(place, opened)
    assert shelf.get() is None
    shelf.take(signed(first, 1), first)
    before = shelf.get()
    shelf.take(signed(second, 2), second)
    assert slope(shelf) == 2.0
    assert before is not None and before.model.run(np.ones((1, 1), np.float32))["y"][0, 0] == 1.0
    again = Shelf(place, opened)
    assert again.problems == {}
    assert (slope(again), again.get().version) == (2.0, 2)  # type: ignore[union-attr]
    assert len(list((place / "heart").glob("*.onnx"))) == 1


def test_older_versions_are_refused_also_after_a_restart_unless_taken_back_by_a_signature(
    tmp_path: Path,
) -> None:
    one, two = model(tmp_path, 1.0), model(tmp_path, 2.0)
    shelf = Shelf(tmp_path / "models", opened)
    shelf.take(signed(two, 2), two)
    for again in (shelf, Shelf(tmp_path / "models", opened)):
        for version in (1, 2):
            with pytest.raises(ProtocolError, match="it only rises"):
                again.take(signed(one, version), one)
        assert slope(again) == 2.0
    shelf.take(signed(one, 1, takes_back=2), one)
    assert (slope(shelf), shelf.get().version) == (1.0, 1)  # type: ignore[union-attr]
    for again in (shelf, Shelf(tmp_path / "models", opened)):  # what was taken back stays so
        with pytest.raises(ProtocolError, match="it only rises"):
            again.take(signed(two, 2), two)


def test_what_is_not_what_was_signed_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    good = model(tmp_path)
    shelf = Shelf(tmp_path / "models", opened)
    shelf.take(signed(good, 1), good)
    with pytest.raises(IntegrityError, match="not those that were signed"):
        shelf.take(signed(good, 2), good[:-1] + b"\x00")
    with pytest.raises(ProtocolError, match="not signed by a coordinator"):
        shelf.take(signed(good, 2, by="them"), good)
    with pytest.raises(StateError, match="not an ONNX model"):
        shelf.take(signed(b"rubbish", 2), b"rubbish")
    for name in ("../up", "", "a/b", "Upper"):
        with pytest.raises(StateError, match="name is lower-case"):
            shelf.take(signed(good, 2, name), good)
    assert (slope(shelf), shelf.get().version) == (1.0, 1)  # type: ignore[union-attr]
    assert slope(Shelf(tmp_path / "models", opened)) == 1.0
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["heart"]


def test_a_damaged_model_is_named_and_the_others_are_served(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "models", opened)
    for name in ("good", "cut", "forged", "moved"):
        data = model(tmp_path, len(name))
        shelf.take(signed(data, 1, name), data)
    place = tmp_path / "models"
    file = next((place / "cut").glob("*.onnx"))
    file.write_bytes(file.read_bytes()[:-1])
    manifest = place / "forged" / "signed.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"us"', b'"me"'))
    (place / "moved").rename(place / "elsewhere")
    (place / "empty").mkdir()
    again = Shelf(place, opened)
    assert [one.name for one in again] == ["good"]
    assert again.problems.keys() == {"cut", "forged", "elsewhere", "empty"}
    assert "IntegrityError" in again.problems["cut"]
    fresh = model(tmp_path, 9.0)
    again.take(signed(fresh, 2, "cut"), fresh)
    assert slope(again, "cut") == 9.0
    assert "cut" not in again.problems


def test_ones_own_models_need_no_signature_and_are_not_kept(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.put("mine", 3, model(tmp_path))
    shelf.put("other", 1, model(tmp_path, 4.0))
    assert shelf.get() is None  # there are two
    assert slope(shelf, "other") == 4.0
    with pytest.raises(MisuseError, match="trusts nobody's signature"):
        shelf.take(b"{}", b"")
    with pytest.raises(MisuseError, match="name is lower-case"):
        shelf.put("No", 1, model(tmp_path))
