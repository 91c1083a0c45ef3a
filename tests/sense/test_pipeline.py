"""The pipeline: rows in numpy are rows in the graph, figures are of pooled rows, a model takes raw rows."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import atoll as at
from atoll.core.errors import ConfigError, DataError
from atoll.data.contract import Contract
from atoll.data.pipeline import Pipeline, Step, breaks, by_range
from atoll.serve.model import Model
from atoll.statistics import fit_pipeline
from atoll.wire.graph import Answer, Node, write_graph
from tests.sense.plant import contract

NUMBERS = st.floats(-1e6, 1e6, width=32)
POSITIVE = st.floats(2**-10, 2**10, width=32)


@st.composite
def pipelines(draw) -> Pipeline:
    steps = []
    for j in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            steps.append(Step(f"c{j}", -1.0, hot=draw(st.integers(1, 4))))
            continue
        low = draw(st.none() | NUMBERS)
        high = draw(st.none() | st.floats(low or 0.0, 2e6, width=32))
        steps.append(Step(f"c{j}", draw(NUMBERS), low, high, draw(NUMBERS), draw(POSITIVE)))
    return Pipeline(tuple(steps))


def passing(tmp_path, *row: int) -> bytes:
    """A model that answers its rows."""
    path = tmp_path / "passing.onnx"
    write_graph(path, row, [Node("Identity", ("x",), "y")], {}, [Answer("y", "float32", row)])
    return path.read_bytes()


@given(st.data())
def test_rows_are_those_of_the_graph(tmp_path_factory, data) -> None:
    pipeline = data.draw(pipelines())
    places = st.sampled_from([-2.0, 0.0, 1.0, 2.0, 3.0, 0.5, math.nan])
    size = data.draw(st.just(()) | st.tuples(st.integers(1, 3)))  # of windows
    shape = (data.draw(st.integers(1, 5)), *size, len(pipeline.steps))
    raw = data.draw(arrays(np.float32, shape, elements=NUMBERS.map(np.float32) | places | st.just(math.inf)))
    with np.errstate(invalid="ignore", over="ignore"):
        rows = pipeline.rows(raw)
    folder = tmp_path_factory.getbasetemp()
    frozen = pipeline.frozen(passing(folder, *size, len(pipeline.names)))
    found = Model(frozen, "frozen").run(raw)["y"]
    assert rows.dtype == found.dtype == np.float32
    assert rows.shape == found.shape == (len(raw), *size, len(pipeline.names))
    np.testing.assert_allclose(found, rows, rtol=1e-6, atol=0)
    assert Pipeline.of(pipeline.table()) == pipeline


def test_each_step_by_hand() -> None:
    pipeline = Pipeline(
        (Step("heat", 20.0, 0.0, 100.0, 50.0, 0.1), Step("state", -1.0, hot=2), Step("door", 0.25))
    )
    assert pipeline.names == ("heat", "state=0", "state=1", "door")
    raw = [[60, 1, 1], [math.nan, 0, math.nan], [1000, math.nan, 0], [-math.inf, 7, 1]]
    assert pipeline.rows(raw) == pytest.approx(
        np.array([[1, 0, 1, 1], [-3, 1, 0, 0.25], [5, 0, 0, 0], [-5, 0, 0, 1]]), abs=1e-6
    )
    with pytest.raises(DataError, match=r"3 columns, got \(1, 2\)"):
        pipeline.rows([[1, 2]])


def raw(n: int, seed: int = 0) -> np.ndarray:
    """Rows of the press: heat, load with gaps, state."""
    rng = np.random.default_rng(seed)
    load = rng.exponential(3.0, n)
    load[rng.random(n) < 0.2] = math.nan
    return np.column_stack([rng.normal(60, 12, n).clip(-40, 150), load, rng.integers(0, 2, n)]).astype(
        np.float32
    )


@pytest.mark.parametrize("fill", ["mean", "median"])
def test_figures_are_those_of_pooled_rows(fill) -> None:
    parts = [raw(40, 1), raw(25, 2), raw(60, 3)]
    pool = np.concatenate(parts).astype(np.float64)
    pipeline = fit_pipeline(parts, contract(), fill=fill)
    heat, load, state = pipeline.steps
    assert heat.centre == pytest.approx(pool[:, 0].mean(), rel=1e-9)
    assert 1 / heat.unit == pytest.approx(pool[:, 0].std(), rel=1e-9)
    assert (heat.low, heat.high) == (-40.0, 150.0)
    assert load.fill == pytest.approx(getattr(np, f"nan{fill}")(pool[:, 1]), rel=1e-9)
    assert (state.hot, state.fill) == (2, -1.0)
    rows = pipeline.rows(pool)
    assert np.isfinite(rows).all()
    assert rows[:, 0].std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("fill", ["mean", "median"])
def test_figures_of_windows_are_those_of_all_readings_that_they_hold(fill) -> None:
    parts = [np.lib.stride_tricks.sliding_window_view(raw(n, n), 4, axis=0).swapaxes(1, 2) for n in (40, 25)]
    sites = at.Sites.of({f"s{k}": (x, np.zeros(len(x), np.int64)) for k, x in enumerate(parts)})
    flat = [x.reshape(-1, 3) for x in parts]
    made = fit_pipeline(sites, contract(), fill=fill)
    assert made == fit_pipeline(flat, contract(), fill=fill)
    assert 1 / made.steps[0].unit == pytest.approx(np.concatenate(flat)[:, 0].astype(float).std(), rel=1e-9)
    assert [breaks(site, ("0",), contract()) for site in sites] == ["", ""]
    assert "other columns" in breaks(at.Examples(parts[0][..., :2], np.zeros(len(parts[0]))), (), contract())
    hot = parts[0].copy()
    hot[3, 1, 0] = 999
    assert breaks(at.Examples(hot, np.zeros(len(hot))), (), contract()) == (
        "column 'heat' has 1 cells out of its range"
    )
    with pytest.raises(DataError, match="names for 2 columns"):
        fit_pipeline([x[..., :2] for x in parts], contract())


def test_a_model_of_windows_takes_raw_windows(tmp_path) -> None:
    parts = {}
    for k in range(3):
        x = raw(60 * 4, k).reshape(60, 4, 3)
        parts[f"site{k}"] = x, (x[:, -1, 0] > x[:, 0, 0]).astype(np.int64)
    sites = at.Sites.of(parts)
    pipeline = fit_pipeline(sites, contract())
    ready = pipeline.sites(sites)
    assert (ready.x.shape, ready.columns) == ((180, 4, 4), ())
    run = at.simulate(at.Job(at.softmax(), rounds=3), ready)
    path = run.export(tmp_path / "model.onnx")
    frozen = Model(pipeline.frozen(path.read_bytes()), "frozen")
    answers = run.learner.answers(run.params, ready.x)
    assert np.isnan(sites.x).any()
    assert np.abs(frozen.run(sites.x)["probabilities"] - answers["probabilities"]).max() <= 1e-6
    with pytest.raises(ConfigError, match="4 columns"):
        pipeline.frozen(passing(tmp_path, 4, 3))
    with pytest.raises(ConfigError, match="4 columns"):
        pipeline.frozen(passing(tmp_path, 2, 4, 4))


def test_other_scales_and_codes() -> None:
    parts = [raw(40, 1), raw(25, 2)]
    none = fit_pipeline(parts, contract(), scale="none", encode="ordinal")
    assert [(s.centre, s.unit, s.hot) for s in none.steps] == [(0.0, 1.0, 0)] * 3
    with pytest.raises(ConfigError, match=r"\$\.columns\.load"):  # it has no bounds
        fit_pipeline(parts, contract(), scale="range")
    with pytest.raises(ConfigError, match="expected one of mean, median, middle, got 'mode'"):
        fit_pipeline(parts, contract(), fill="mode")
    with pytest.raises(DataError, match="names for 2 columns"):
        fit_pipeline([p[:, :2] for p in parts], contract())
    bounded = Contract.of({"name": "b", "columns": {"a": {"low": 10, "high": 30}, "f": {"kind": "flag"}}})
    made = by_range(bounded)
    assert made == fit_pipeline([np.array([[12, 1], [20, 0]])], bounded, scale="range", fill="middle")
    assert made.rows([[10, 0], [30, 1], [math.nan, math.nan], [99, 1]]).tolist() == [
        [-1, -1],
        [1, 1],
        [0, 0],
        [1, 1],
    ]


def test_a_trained_model_takes_raw_rows(tmp_path) -> None:
    parts = {f"site{k}": (raw(80, k), (raw(80, k)[:, 0] > 60).astype(np.int64)) for k in range(3)}
    sites = at.Sites.of(parts, columns=contract().features)
    with pytest.raises(DataError, match="column 'load'"):
        sites.check()  # raw rows have gaps
    pipeline = fit_pipeline(sites, contract())
    ready = pipeline.sites(sites)
    assert ready.columns == ("heat", "load", "state=0", "state=1")
    run = at.simulate(at.Job(at.softmax(), rounds=5), ready)
    path = run.export(tmp_path / "model.onnx")
    inner = Model(path.read_bytes(), "model")
    frozen = Model(pipeline.frozen(path.read_bytes()), "frozen")
    for name, want in inner.run(ready.x).items():
        got = frozen.run(sites.x)[name]
        assert (got == want).all() if want.dtype.kind != "f" else np.abs(got - want).max() <= 1e-6
    with pytest.raises(ConfigError, match="4 columns"):
        pipeline.frozen(passing(tmp_path, 5))


def test_rows_that_break_a_contract_are_named_by_their_column() -> None:
    wanted = contract()
    rows = raw(30)

    def said(x, names=wanted.features, classes=("0", "1")) -> str:
        return breaks(at.Examples(x, np.zeros(len(x), np.int64), names), classes, wanted)

    assert said(rows) == ""
    assert "another order" in said(rows, ("load", "heat", "state"))
    assert said(rows, classes=("0", "maybe")) == "1 classes that the contract does not know"
    for column, value, words in (
        (0, 151.0, "column 'heat' has 1 cells out of its range"),
        (0, math.nan, "column 'heat' has 1 missing cells"),
        (2, 0.5, "column 'state' holds other numbers"),
        (2, 2.0, "column 'state' has 1 cells out of its range"),
    ):
        bad = rows.copy()
        bad[7, column] = value
        assert words in said(bad)
