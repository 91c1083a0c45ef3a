"""Requests that wait together run together: in order, each with its own answer or its own error."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import DataError, StateError
from atoll.serve.batch import ROWS, Batches, together


def test_what_waits_while_threads_are_busy_runs_as_one_batch() -> None:
    gate, runs = threading.Event(), []

    def run(key: str, items: list[int]) -> list[int | Exception]:
        runs.append((key, items))
        gate.wait(5)
        return [DataError("odd") if item % 2 else item * 10 for item in items]

    async def talk() -> list[Any]:
        batches: Batches[str, int, int] = Batches(run, threads=1, most=4)
        first = asyncio.ensure_future(batches.answer("a", 0))
        await asyncio.sleep(0)
        assert runs or batches.waiting == 0  # the first one waits for nobody
        rest = [asyncio.ensure_future(batches.answer(key, n)) for n, key in enumerate("aabaaaa", 1)]
        rest.append(asyncio.ensure_future(batches.answer("a", 8, alone=True)))
        await asyncio.sleep(0)
        assert batches.waiting == 8
        gate.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        batches.close()
        assert (batches.items, batches.runs) == (9, len(runs))
        return found

    found = asyncio.run(talk())
    assert runs == [("a", [0]), ("a", [1, 2, 4, 5]), ("b", [3]), ("a", [8]), ("a", [6, 7])]
    assert [one if isinstance(one, int) else type(one) for one in found] == [
        *(0, DataError, 20, DataError, 40, DataError, 60, DataError, 80)
    ]


def test_a_caller_that_goes_and_a_bug_in_the_run_harm_nobody_else() -> None:
    gate = threading.Event()

    def run(key: str, items: list[int]) -> list[int | Exception]:
        gate.wait(5)
        if key == "bug":
            raise ZeroDivisionError
        return list(items)

    async def talk() -> None:
        batches: Batches[str, int, int] = Batches(run, threads=1)
        held, gone, stays, bug = (
            asyncio.ensure_future(batches.answer(key, n)) for n, key in enumerate(["x", "a", "a", "bug"])
        )
        await asyncio.sleep(0)
        gone.cancel()
        gate.set()
        assert await asyncio.gather(held, stays) == [0, 2]
        with pytest.raises(ZeroDivisionError):
            await bug
        assert await batches.answer("a", 7) == 7
        batches.close()

    asyncio.run(talk())


class Doubles:
    """A model of rows that knows how often it ran; rows that hold 13 make it fail."""

    def __init__(self, *, many: bool = True, mixes: bool = False) -> None:
        self.many, self.mixes, self.runs = many, mixes, 0

    def run(self, x: Any) -> dict[str, Any]:
        self.runs += 1
        if (x == 13).any():
            raise StateError("the model failed")
        return {"y": 2 * x, "all": x.sum()} if self.mixes else {"y": 2 * x, "first": x[:, 0]}


@given(st.lists(st.tuples(st.integers(1, 150), st.integers(1, 2)), max_size=12))
def test_together_is_each_alone(shapes: list[tuple[int, int]]) -> None:
    xs = [np.full((n, width), at, np.float32) for at, (n, width) in enumerate(shapes, 20)]
    model = Doubles()
    found = together(model, xs)  # type: ignore[arg-type]
    assert len(found) == len(xs)
    for x, answers in zip(xs, found, strict=True):
        np.testing.assert_array_equal(answers["y"], 2 * x)  # type: ignore[index]
        np.testing.assert_array_equal(answers["first"], x[:, 0])  # type: ignore[index]
    assert model.runs <= sum(n for n, _ in shapes) / ROWS * 2 + 4


def test_what_fails_alone_fails_alone_and_what_cannot_be_told_apart_is_not_joined() -> None:
    xs = [np.full((2, 3), value, np.float32) for value in (1, 13, 2)]
    found = together(Doubles(), xs)  # type: ignore[arg-type]
    assert isinstance(found[1], StateError)
    assert found[2]["y"].tolist() == [[4] * 3] * 2  # type: ignore[index]
    mixed = together(Doubles(mixes=True), [xs[0], xs[2]])  # type: ignore[arg-type]
    assert [one["all"] for one in mixed] == [6, 12]  # type: ignore[index]
    single = Doubles(many=False)
    together(single, [xs[0], xs[2]])  # type: ignore[arg-type]
    assert single.runs == 2


def test_a_model_for_one_row_at_a_time_is_known(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from atoll.serve.model import Model

    for rows, many in (("n", True), (1, False)):
        value = onnx.helper.make_tensor_value_info
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        graph = onnx.helper.make_graph([node], "m", [value("x", 1, [rows, 2])], [value("y", 1, [rows, 2])])
        opset = [onnx.helper.make_opsetid("", 17)]
        made = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        assert Model(made.SerializeToString()).many is many
