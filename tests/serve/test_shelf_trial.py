"""Candidates behind the prediction service: every request is answered, a bad one goes, a good one stays."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from atoll.core.errors import ProtocolError, StateError
from atoll.learn.dense import linear, softmax
from atoll.privacy.keys import Authority, new_key, open_model, request, sign_model
from atoll.serve import models as shelves
from atoll.serve import predict
from atoll.serve.model import Model
from atoll.serve.models import Shelf
from atoll.serve.shadow import ROOM, Copy, Shadow
from atoll.serve.strict import Strict

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NOW = 1_800_000_000.0
OURS = Authority.new("lagoon", now=NOW)
KEY = new_key()
CHAIN = OURS.sign(request(KEY, "lagoon", "client", "any"), role="coordinator", name="hub", now=NOW)
QUICK = {"least": 40, "error": 0.02, "disagreement": 0.3, "latency": None, "drift": None}
TRY = {"stage": "canary", "share": 0.5, "gates": QUICK}


def line(tmp_path: Path, slope: float, offset: float = 0.0) -> bytes:
    learner = linear(2, 1)
    params = learner.init(np.random.default_rng(0)).map(lambda b: np.array([slope, 0.0, offset], np.float32))
    learner.export(params, tmp_path / "line.onnx", np.zeros((1, 2)))
    return (tmp_path / "line.onnx").read_bytes()


def classes(tmp_path: Path, turn: int) -> bytes:
    """The class is the larger of two columns, or the smaller."""
    learner = softmax(features=2, outputs=2)
    sign = 1.0 if not turn else -1.0
    weights = np.array([sign, -sign, -sign, sign, 0.0, 0.0], np.float32)
    params = learner.init(np.random.default_rng(0)).map(lambda b: weights)
    learner.export(params, tmp_path / "classes.onnx", np.ones((1, 2)))
    return (tmp_path / "classes.onnx").read_bytes()


class Site:
    """A shelf that trusts a real coordinator's signature, and the clock of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.number = folder, NOW, 0
        self.moves: list[tuple[int, str]] = []
        self.shelf = self.open()

    def open(self) -> Shelf:
        shelf = Shelf(self.folder, self._opened, clock=lambda: self.now)
        shelf.moved.append(lambda name, move, figures: self.moves.append((move.version, move.stage)))
        return shelf

    def _opened(self, manifest: bytes, above: int | None) -> Mapping[str, Any]:
        if above is None:
            return open_model(manifest, OURS.root, now=None)
        return open_model(manifest, OURS.root, now=self.now, above=above)

    def signed(self, version: int, data: bytes, order: Any = None, takes_back: int = 0) -> bytes:
        fields = {"federation": "lagoon", "run": "r1", "name": "m", "version": version, "created": NOW}
        digest = hashlib.sha256(data).hexdigest()
        more = {}
        if order is not None:
            self.number += 1
            more = {"order": {"number": self.number, **order}}
        return sign_model(KEY, CHAIN, {**fields, "sha256": digest, "takes_back": takes_back, **more})

    def take(self, version: int, data: bytes, order: Any = None, takes_back: int = 0) -> None:
        self.shelf.take(self.signed(version, data, order, takes_back), data)

    def talk(self, requests: int, rows: Any = None, truth: Any = None) -> list[int]:
        """Ask that often over HTTP; the versions that answered, each with 200."""

        async def run() -> list[int]:
            seen = []
            async with TestClient(TestServer(predict.app(self.shelf))) as client:
                for i in range(requests):
                    row = [float(i % 7), float(i % 5)] if rows is None else rows(i)
                    asked = {"rows": [row], "ticket": f"{self.number}-{i}"}
                    async with client.post("/v1/predict", json=asked) as answer:
                        assert answer.status == 200, await answer.text()
                        told = await answer.json()
                    assert told["ticket"] == asked["ticket"]
                    seen.append(told["model"]["version"])
                    self.shelf.settle()
                    if truth is not None:
                        said = {"ticket": told["ticket"], "labels": [truth(row)]}
                        async with client.post("/v1/feedback", json=said) as answer:
                            assert answer.status == 200
            return seen

        return asyncio.run(run())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "serving")


def test_a_bad_model_is_taken_back_in_canary_and_no_request_is_lost(site: Site, tmp_path: Path) -> None:
    site.take(1, classes(tmp_path, 0))
    site.take(2, classes(tmp_path, 1), TRY)
    seen = site.talk(150, truth=lambda row: int(row[1] > row[0]))
    assert site.moves == [(1, "served"), (2, "canary"), (2, "back")]
    assert 5 < seen.count(2) < 60 and seen[100:] == [1] * 50
    again = site.open()
    found = again.line("m")
    assert found is not None and (found.champion, found.candidate) == (1, None)
    assert "answers differ" in found.back[2] or "wrong more often" in found.back[2]


def test_control_without_gates_the_bad_model_becomes_champion(site: Site, tmp_path: Path) -> None:
    site.take(1, classes(tmp_path, 0))
    site.take(2, classes(tmp_path, 1), {**TRY, "gates": {**dict.fromkeys(QUICK), "least": 40}})
    site.talk(200, truth=lambda row: int(row[1] > row[0]))
    assert site.moves[-1] == (2, "served")


def test_a_good_model_is_served_by_everybody_in_the_end(site: Site, tmp_path: Path) -> None:
    site.take(1, line(tmp_path, 1.0))
    site.take(2, line(tmp_path, 1.0, 0.01), {**TRY, "stage": "shadow", "shadow": 40})
    seen = site.talk(260)
    assert [stage for _, stage in site.moves] == ["served", "shadow", "canary", "all", "served"]
    assert seen[:40] == [1] * 40 and seen[-1] == 2
    assert [p.suffix for p in (site.folder / "m").iterdir()].count(".onnx") == 1


def test_the_same_ticket_is_answered_by_the_same_model(site: Site, tmp_path: Path) -> None:
    site.take(1, line(tmp_path, 1.0))
    site.take(2, line(tmp_path, 1.0), TRY)
    first = [site.shelf.pick("m", str(i)) for i in range(200)]
    assert [site.shelf.pick("m", str(i)) for i in range(200)] == first
    assert site.open().pick("m", "7") is not None
    assert 60 < sum(one is not None and one.trial for one in first) < 140


def test_what_answers_nothing_finite_is_never_tried(site: Site, tmp_path: Path) -> None:
    site.take(1, line(tmp_path, 1.0))
    for order in (None, TRY):
        with pytest.raises(StateError, match="answers no plain row with finite numbers"):
            site.take(2, line(tmp_path, float("nan")), order)
    assert site.talk(3) == [1, 1, 1]
    assert site.moves == [(1, "served"), (2, "back")]  # whoever ordered it hears so
    found = site.open().line("m")
    assert found is not None and (found.champion, found.number) == (1, 1) and "no plain row" in found.back[2]


def test_what_reads_other_rows_is_refused_before_anybody_asks_it(site: Site, tmp_path: Path) -> None:
    site.take(1, line(tmp_path, 1.0))
    learner = linear(3, 1)
    params = learner.init(np.random.default_rng(0)).map(lambda b: b * 0 + 1.0)
    learner.export(params, tmp_path / "wide.onnx", np.zeros((1, 3)))
    wide = (tmp_path / "wide.onnx").read_bytes()
    for order in (TRY, {"stage": "all"}):
        with pytest.raises(StateError, match=r"rows of shape \[3\], and those of version 1 have \[2\]"):
            site.take(1 + site.number + 1, wide, order)
    assert site.talk(20) == [1] * 20
    site.take(9, wide)  # control: for all at once, as who signs it wants it
    assert site.shelf.get("m").model.row == (3,)  # type: ignore[union-attr]


def test_a_model_that_breaks_on_some_rows_is_answered_for_and_taken_back(site: Site, tmp_path: Path) -> None:
    """1e38 times 9 is no float32: such a row comes once in seven."""
    site.take(1, line(tmp_path, 1.0))
    site.take(2, line(tmp_path, 2e38), {**TRY, "share": 1.0, "gates": {**QUICK, "disagreement": None}})
    seen = site.talk(40, rows=lambda i: [1.0 if i < 20 else 9.0, 0.0])
    assert seen == [2] * 20 + [1] * 20
    assert site.moves[-1] == (2, "back")
    found = site.shelf.line("m")
    assert found is not None and found.back == {2: "the model answered with numbers that are not finite"}


def test_an_older_unsigned_or_changed_order_is_refused(site: Site, tmp_path: Path) -> None:
    one, two = line(tmp_path, 1.0), line(tmp_path, 1.0, 0.01)
    site.take(1, one)
    old = site.signed(2, two, {**TRY, "share": 1.0})
    site.take(2, two, TRY)
    with pytest.raises(ProtocolError, match="order 1 came, and 2 was obeyed already"):
        site.shelf.take(old, two)
    forged = site.signed(2, two, TRY).replace(b'"share":0.5', b'"share":1.0')
    with pytest.raises(ProtocolError, match="not signed by"):
        site.shelf.take(forged, two)
    stranger = Authority.new("lagoon", now=NOW)
    chain = stranger.sign(request(KEY, "lagoon", "client", "x"), role="coordinator", name="hub", now=NOW)
    fields = {"federation": "lagoon", "run": "r", "name": "m", "version": 9, "created": NOW}
    fields |= {"sha256": hashlib.sha256(two).hexdigest(), "order": {"number": 9, **TRY}}
    with pytest.raises(ProtocolError):
        site.shelf.take(sign_model(KEY, chain, fields), two)
    with pytest.raises(ProtocolError, match="registered and not rolled out"):
        site.shelf.take(site.signed(3, one, {"stage": "held"}), one)
    found = site.shelf.line("m")
    assert found is not None and (found.champion, found.number) == (1, 2)
    assert set(site.talk(20)) == {1, 2}


def test_a_signed_roll_back_ends_a_trial_without_any_bytes(site: Site, tmp_path: Path) -> None:
    one, two = line(tmp_path, 1.0), line(tmp_path, 1.0, 0.01)
    site.take(1, one)
    site.take(2, two, TRY)
    back = site.signed(1, one, {"reason": "complaints"}, takes_back=2)
    assert site.shelf.holds(back)
    site.shelf.take(back)
    found = site.open().line("m")
    assert found is not None and (found.champion, found.candidate, found.back) == (1, None, {2: "complaints"})
    with pytest.raises(StateError, match="its bytes are not here yet"):
        site.shelf.take(site.signed(3, line(tmp_path, 3.0)))


def test_promoted_by_an_order_it_serves_at_once(site: Site, tmp_path: Path) -> None:
    two = line(tmp_path, 1.0, 0.01)
    site.take(1, line(tmp_path, 1.0))
    site.take(2, two, {**TRY, "until": "canary"})
    assert set(site.talk(120)) == {1, 2}  # it waits
    site.shelf.take(site.signed(2, two, {"stage": "all"}))
    assert set(site.talk(20)) == {2} == {one.version for one in site.open()}


def test_a_day_offline_the_last_signed_models_serve(site: Site, tmp_path: Path) -> None:
    """The signer's certificate ends after a day or so: who accepted it serves on, on trial as well."""
    site.take(1, line(tmp_path, 1.0))
    site.take(2, line(tmp_path, 1.0, 0.01), TRY)
    site.now = NOW + 72 * 3600
    site.shelf.close()
    site.shelf = site.open()
    assert site.shelf.problems == {}
    assert set(site.talk(30)) == {1, 2}
    data = line(tmp_path, 5.0)
    with pytest.raises(ProtocolError, match="ended on"):  # control: something new is not believed
        site.take(3, data)
    site.talk(300)
    assert site.shelf.get("m").version == 2  # type: ignore[union-attr]


def test_a_damaged_candidate_is_left_out_and_comes_again(site: Site, tmp_path: Path) -> None:
    two = line(tmp_path, 1.0, 0.01)
    site.take(1, line(tmp_path, 1.0))
    signed = site.signed(2, two, TRY)
    site.shelf.take(signed, two)
    (site.folder / "m" / f"{hashlib.sha256(two).hexdigest()}.onnx").write_bytes(two[:-1])
    site.shelf = site.open()
    assert "a candidate is not tried: IntegrityError" in site.shelf.problems["m"]
    assert set(site.talk(20)) == {1}
    site.shelf.take(signed, two)
    assert set(site.talk(20)) == {1, 2}
    (site.folder / "m" / "rollout.json").write_bytes(b"{")
    assert "cannot be read" in site.open().problems["m"]
    assert site.open().get("m").version == 1  # type: ignore[union-attr]


def test_the_service_never_waits_for_the_comparison(tmp_path: Path, site: Site) -> None:
    """While both models are stuck in the comparison, requests are answered; what is too much is counted."""
    stuck, go = threading.Event(), threading.Event()
    model = Model(line(tmp_path, 1.0))

    class Slow(Strict):
        def run(self, x: Any) -> Any:
            stuck.set()
            go.wait()
            return super().run(x)

    told = []
    shadow = Shadow(lambda copy, found: told.append(found))
    copy = Copy("m", 2, "t", np.ones((1, 2), np.float32), Slow(model), Slow(model), given=False)
    assert shadow.offer(copy)
    stuck.wait()
    assert [shadow.offer(copy) for _ in range(ROOM + 5)] == [True] * ROOM + [False] * 5
    assert shadow.dropped("m") == 5 and shadow.dropped("m") == 0
    go.set()
    shadow.settle()
    assert len(told) == ROOM + 1
    shadow.close()
    assert not shadow.offer(copy)


def test_labels_of_numbers_and_of_requests_nobody_compared(site: Site, tmp_path: Path) -> None:
    site.take(1, line(tmp_path, 1.0))
    assert not site.shelf.feedback("m", "none", [1.0])
    site.take(2, line(tmp_path, 1.0, 0.5), {**TRY, "gates": {**QUICK, "disagreement": None}})
    site.talk(80, truth=lambda row: row[0])  # the champion is right, the candidate further off
    assert site.moves[-1] == (2, "back")
    found = site.shelf.line("m")
    assert found is not None and "wrong more often by 1.000" in found.back[2]
    assert not site.shelf.feedback("m", "none", [1.0])


def test_evidence_lasts_over_a_restart(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "NOTED", 8)
    site.take(1, line(tmp_path, 1.0))
    site.take(2, line(tmp_path, 1.0, 0.01), TRY)
    site.talk(30)
    found = site.open().line("m")
    assert found is not None and found.candidate is not None
    assert found.candidate.seen.n == 24 and found.candidate.starts == 1
