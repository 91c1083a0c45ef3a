"""ADWIN and Page-Hinkley against what river answers on the same streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from atoll.serve.drift.adwin import Adwin
from atoll.serve.drift.page_hinkley import PageHinkley

VECTORS = json.loads(Path(__file__).with_name("drift.json").read_text(encoding="utf-8"))


def stream(kind: str, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    if kind == "bernoulli":
        return (rng.random(7000) < np.where(np.arange(7000) < 5000, 0.2, 0.35)).astype(float).tolist()
    if kind == "uniform":
        return (rng.random(4000) * np.where(np.arange(4000) < 2000, 0.5, 0.8)).round(6).tolist()
    wave = 0.5 + 0.1 * np.sin(np.arange(3000) / 200) + 0.05 * rng.standard_normal(3000)
    return wave.clip(0, 1).round(6).tolist()


def case_id(case: dict[str, Any]) -> str:
    return "-".join(map(str, [*case["stream"], case["delta"]]))


@pytest.mark.parametrize("case", VECTORS["adwin"], ids=case_id)
def test_adwin(case: dict[str, Any]) -> None:
    window = Adwin(delta=case["delta"])
    cuts = [(t, window.n, window.mean) for t, x in enumerate(stream(*case["stream"])) if window.add(x)]
    assert [cut[:2] for cut in cuts] == [tuple(cut[:2]) for cut in case["cuts"]]
    assert [cut[2] for cut in cuts] == pytest.approx([cut[2] for cut in case["cuts"]], rel=1e-9)
    assert window.n == case["width"]
    assert window.mean == pytest.approx(case["mean"], rel=1e-9)
    assert window.spread == pytest.approx(case["variance"], rel=1e-6)


def test_control_the_streams_cut_adwin_and_alarm_page_hinkley() -> None:
    assert sum(len(case["cuts"]) for case in VECTORS["adwin"]) > 10
    assert sum(len(case["alarms"]) for case in VECTORS["page_hinkley"]) > 10


@pytest.mark.parametrize("case", VECTORS["page_hinkley"], ids=case_id)
def test_page_hinkley(case: dict[str, Any]) -> None:
    test = PageHinkley(case["delta"], case["lambda"])
    assert [t for t, x in enumerate(stream(*case["stream"])) if test.add(x)] == case["alarms"]


@pytest.mark.parametrize("made", [Adwin(), PageHinkley()], ids=lambda made: type(made).__name__)
def test_a_detector_is_its_own_record(made: Any) -> None:
    """Written and read again in the midst of a stream, it goes on as if nothing had been."""
    xs = stream("bernoulli", 1)
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=type(made))
    for t, x in enumerate(xs):
        if t % 1000 == 500:
            kept = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=type(made))
        assert kept.add(x) == made.add(x)
    assert kept == made
