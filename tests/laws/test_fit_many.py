"""Laws of the dense learners: a batch of clients is its clients one by one, in bytes where promised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import ConfigError, DataError, MisuseError
from atoll.core.message import Contribution, FitContext, Learner, Pull
from atoll.core.registry import build
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.learn import kernel
from atoll.learn.dense import Dense, linear, logistic, mlp, softmax
from atoll.learn.task import Work

ENGINES = [
    "numpy",
    pytest.param("c", marks=pytest.mark.skipif(kernel.level() < 0, reason="no compiled kernel")),
]
needs_kernel = pytest.mark.skipif(kernel.level() < 0, reason="no compiled kernel")


@dataclass
class Rows:
    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def rows_for(learner: Dense, n: int, seed: int = 0) -> Rows:
    """n rows that suit the learner, half of the features zero."""
    rng = np.random.default_rng([seed, n])
    x = rng.normal(size=(n, learner.features)) * (rng.random((n, learner.features)) < 0.5)
    if learner.loss == "squared":
        return Rows(x.astype(learner.dtype), rng.normal(size=(n, learner.outputs)).astype(learner.dtype))
    return Rows(
        x.astype(learner.dtype), rng.integers(0, 2 if learner.loss == "logistic" else learner.outputs, n)
    )


def jitter(params: Update, seed: int, size: float = 0.2) -> Update:
    noise = np.random.default_rng(seed).normal(0, size, params.layout.size)
    return Update(params.layout, params.buffer + noise.astype(params.buffer.dtype))


def scene(
    learner: Dense, counts: list[int], *, pulled: bool = False
) -> tuple[Update, list[Rows], list[FitContext]]:
    params = jitter(learner.init(np.random.default_rng(0)), 1)
    ctxs = []
    for k in range(len(counts)):
        pull = Pull(0.1 * k, jitter(params, k), jitter(params, k + 50)) if pulled else None
        moves = (lambda name: name != "layer0.bias") if pulled and k % 2 else None
        ctxs.append(FitContext(Rng.of(k), round=k % 3, client=k, pull=pull, moves=moves))
    return params, [rows_for(learner, n, k) for k, n in enumerate(counts)], ctxs


def buffers(answers: list[Contribution]) -> list[bytes]:
    return [answer.update.buffer.tobytes() for answer in answers]


learners = st.builds(
    mlp,
    hidden=st.lists(st.integers(1, 37), max_size=3).map(tuple),
    activation=st.sampled_from(["relu", "tanh"]),
    loss=st.sampled_from(["squared", "logistic", "softmax"]),
    features=st.integers(1, 40),
    lr=st.just(0.002),
    epochs=st.integers(1, 3),
    batch_size=st.one_of(st.none(), st.integers(1, 20)),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    decay=st.sampled_from([1.0, 0.5]),
).flatmap(lambda a: st.integers(1, 20).map(lambda n: replace(a, outputs=1 if a.loss == "logistic" else n)))


@needs_kernel
@settings(max_examples=1500, deadline=None)
@given(learners, st.lists(st.integers(0, 45), min_size=1, max_size=5), st.booleans(), st.integers(0, 2))
def test_the_kernel_does_what_numpy_does(learner: Dense, counts: list[int], pulled: bool, isa: int) -> None:
    params, datas, ctxs = scene(learner, counts, pulled=pulled)
    plain = replace(learner, kernel="numpy").fit_many(params, datas, ctxs)
    tasks = learner._tasks([(data.x, _y(learner, data)) for data in datas], ctxs)
    batch = learner.batch_size or max(1, *counts)
    sgd = (learner.epochs, batch, learner.momentum, learner.weight_decay)
    work = Work(
        (learner.features, *learner.hidden, learner.outputs),
        learner.loss,
        learner.activation,
        *sgd,
        params.buffer,
    )
    deltas = np.empty((len(tasks), params.layout.size), np.float32)
    tally = kernel.train(work, tasks, deltas, isa=min(isa, kernel.level()))
    for answer, delta, loss in zip(plain, deltas, tally.loss, strict=True):
        np.testing.assert_allclose(delta, answer.update.buffer, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            loss / max(1, answer.weight * learner.epochs), answer.metrics["loss"], atol=1e-4
        )


def _y(learner: Dense, data: Rows) -> np.ndarray:
    return np.ascontiguousarray(data.y if learner.loss == "squared" else data.y.astype(np.int64))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=15, deadline=None)
@given(learners, st.lists(st.integers(0, 45), min_size=2, max_size=6), st.booleans())
def test_one_by_one_is_the_batch_byte_for_byte(
    engine: str, learner: Dense, counts: list[int], pulled: bool
) -> None:
    learner = replace(learner, kernel=engine)
    params, datas, ctxs = scene(learner, counts, pulled=pulled)
    together = learner.fit_many(params, datas, ctxs)
    alone = [learner.fit(params, data, ctx) for data, ctx in zip(datas, ctxs, strict=True)]
    backwards = learner.fit_many(params, datas[::-1], ctxs[::-1])[::-1]
    if learner.batch_size is None:  # a batch of all rows is each client's own
        assert [a.steps for a in alone] == [learner.epochs * bool(n) for n in counts]
    assert buffers(together) == buffers(backwards) == buffers(alone)
    assert [a.weight for a in together] == counts
    assert [(a.metrics, a.steps) for a in together] == [(a.metrics, a.steps) for a in alone]


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_byte(threads: int) -> None:
    learner = mlp((60, 20), features=50, outputs=7, epochs=3, batch_size=8, kernel="c")
    params, datas, ctxs = scene(learner, [60, 10, 0, 33] * 6)
    expected = buffers(learner.fit_many(params, datas, ctxs, threads=1))
    assert 3 * params.layout.size * sum(len(d) for d in datas) > kernel.SMALL, "too small to use threads"
    with ThreadPoolExecutor(2) as pool:
        assert buffers(learner.fit_many(params, datas, ctxs, pool, threads)) == expected
    assert buffers(learner.fit_many(params, datas, ctxs, threads=threads)) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_updates_are_views_of_one_array(engine: str) -> None:
    learner = softmax(9, 3, kernel=engine)
    answers = learner.fit_many(*scene(learner, [5, 8]))
    assert answers[0].update.buffer.base is answers[1].update.buffer.base


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_read_where_they_lie(engine: str) -> None:
    """Strided, wider, other-typed and image-shaped rows train as their plain copies do."""
    learner = softmax(6, 3, kernel=engine, batch_size=4)
    params, [plain], [ctx] = scene(learner, [20])
    wide = np.zeros((40, 9), np.float32)
    wide[::2, 1:7] = plain.x
    forms = [
        Rows(wide[::2, 1:7], plain.y), Rows(plain.x.astype(np.float64), plain.y.astype(np.uint8)),
        Rows(np.asfortranarray(plain.x), plain.y), Rows(plain.x.reshape(20, 2, 3), plain.y),
    ]  # fmt: skip
    expected = learner.fit(params, plain, ctx).update
    assert all(learner.fit(params, form, ctx).update == expected for form in forms)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_divergence_is_answered_and_bad_data_refused(engine: str, activation: str) -> None:
    learner = mlp((8,), activation, "squared", features=4, outputs=2, lr=1e30, epochs=3, kernel=engine)
    params, [good], [ctx] = scene(learner, [40])
    assert not learner.fit(params, good, ctx).update.finite()
    good.x[17, 2] = np.nan
    with pytest.raises(DataError, match="client 0: x holds NaN or infinity in column 2"):
        replace(learner, lr=0.01).fit(params, good, ctx)
    with pytest.raises(DataError, match="these data: x holds NaN"):
        learner.evaluate(params, good)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("label", [-1, 3, 2**62])
def test_a_label_out_of_range_is_refused_without_its_value(engine: str, label: int) -> None:
    learner = softmax(4, 3, kernel=engine)
    params, datas, ctxs = scene(learner, [5, 5])
    datas[1].y[3] = label
    with pytest.raises(DataError, match="client 1: y has a label outside") as caught:
        learner.fit_many(params, datas, ctxs)
    assert str(label) not in str(caught.value).replace("client 1", "")
    with pytest.raises(DataError):
        learner.evaluate(params, datas[1])


def _wrong(x: Any, y: Any, learner: Dense) -> str:
    params = learner.init(np.random.default_rng(0))
    with pytest.raises(DataError) as caught:
        learner.fit(params, Rows(np.asarray(x), np.asarray(y)), FitContext(Rng.of(0)))
    return str(caught.value)


def test_data_of_another_shape_are_refused() -> None:
    two, three = np.zeros((4, 2)), np.zeros((4, 3))
    assert "reads 3 features" in _wrong(two, [0] * 4, softmax(3, 2))
    assert "4 rows and y has 3" in _wrong(three, [0] * 3, softmax(3, 2))
    assert "whole number" in _wrong(three, [0.5] * 4, softmax(3, 2))
    assert "must hold numbers" in _wrong(three.astype(str), [0] * 4, softmax(3, 2))
    assert "answers 2 numbers" in _wrong(three, np.zeros((4, 1)), linear(3, 2))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_client_answers_nothing_with_weight_zero(engine: str) -> None:
    learner = softmax(3, 2, kernel=engine)
    params = learner.init(np.random.default_rng(0))
    for x in (np.zeros((0, 3)), np.zeros(0)):
        answer = learner.fit(params, Rows(x, np.zeros(0)), FitContext(Rng.of(0)))
        assert (answer.weight, answer.steps, answer.update.norm()) == (0, 0, 0)
    assert learner.fit_many(params, [], []) == []
    assert learner.evaluate(params, Rows(np.zeros((0, 3)), np.zeros(0)))["accuracy"] == 0


def test_params_of_another_model_are_refused() -> None:
    params = softmax(3, 2).init(np.random.default_rng(0))
    with pytest.raises(MisuseError, match="params must have this model's leaves"):
        softmax(4, 2).fit(params, Rows(np.zeros((1, 4)), np.zeros(1, int)), FitContext(Rng.of(0)))


def test_sizes_are_filled_and_must_agree() -> None:
    assert logistic().sized(30, 2) == logistic(30, 1) == logistic(30, 1).sized(30, 1)
    assert isinstance(mlp(), Learner)
    with pytest.raises(ConfigError, match="has 4 features, the data 5"):
        softmax(4).sized(5, 3)
    with pytest.raises(ConfigError, match="widths are open"):
        softmax().init(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="logistic knows two classes"):
        logistic().sized(4, 3)


def test_parts_build_from_values_and_name_the_bad_one() -> None:
    assert build("learner", {"name": "mlp", "hidden": [20, 10], "lr": 1}) == mlp((20, 10), lr=1)
    for values in (
        {"lr": 0.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"dtype": "int8"},
        {"decay": 0.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(values))):
            build("learner", {"name": "softmax", **values})


def test_an_engine_says_what_it_is_and_why() -> None:
    assert softmax(dtype="float64").engine == "numpy (float64 is asked for)"
    assert softmax(kernel="numpy").engine == "numpy (asked for)"
    assert softmax().engine.startswith("c (" if kernel.level() >= 0 else "numpy (this installation")
