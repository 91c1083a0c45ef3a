"""A plan as a file, and the gate before ONNX Runtime: every refusal says why, and the good one passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from atoll.adapt.plan import HEAD, Plan
from atoll.adapt.plan_gate import memory
from atoll.adapt.plan_learner import PlanLearner, plan_learner
from atoll.core.errors import MisuseError, ProtocolError, StateError
from atoll.core.message import FitContext
from atoll.core.rng import Rng
from atoll.wire.onnx import read_graph
from tests.serve.plans import FILE, Labelled, golden, spoilt

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_the_same_plan_gives_the_same_bytes(tmp_path: Any) -> None:
    data = FILE.read_bytes()
    plan = Plan.read(data)
    assert plan.dump() == data
    assert Plan.read(plan.save(tmp_path / "a.plan")).dump() == data
    assert plan.bare().sha256 == plan.sha256  # named by how it learns, not by where it begins
    assert Plan.read(plan.bare().dump()).first is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no plan"),
        (b"PK\3\4" + bytes(60), "no plan"),
        (FILE.read_bytes()[:8] + b"\7\0" + FILE.read_bytes()[10:], "format 7"),
        (FILE.read_bytes()[: HEAD.size + 9], "head cannot be read"),
        (FILE.read_bytes()[:-1], "parts have"),
        (FILE.read_bytes() + b"\0", "parts have"),
        (FILE.read_bytes()[:-4] + np.array([np.nan], "<f4").tobytes(), "NaN"),
    ],
)
def test_damaged_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        Plan.read(data)


def test_every_cut_and_every_flipped_byte_of_the_head_is_refused_or_read_whole() -> None:
    data = FILE.read_bytes()
    for at in range(0, len(data), 501):
        with pytest.raises(ProtocolError):
            Plan.read(data[:at])
    for at in range(HEAD.size, HEAD.size + 400, 3):
        try:
            Plan.read(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        except ProtocolError:
            continue


def _op(model: Any) -> None:
    model.graph.node[3].op_type = "Loop"


def _domain(model: Any) -> None:
    model.graph.node[3].domain = "com.microsoft"


def _opset(model: Any) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def _constant(model: Any) -> None:
    tensor = onnx.TensorProto(dims=[1], data_type=1, name="c", data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def _subgraph(model: Any) -> None:
    inner = onnx.helper.make_graph([], "inner", [], [])
    model.graph.node[3].attribute.append(onnx.helper.make_attribute("body", inner))


def _function(model: Any) -> None:
    model.functions.add(name="f", domain="mine")


def _huge(model: Any) -> None:
    for value in model.graph.value_info:
        if value.name == model.graph.node[1].output[0]:
            value.type.tensor_type.shape.dim[0].dim_value = 1 << 40


def _silent(model: Any) -> None:
    del model.graph.value_info[:]


def _input(model: Any) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("secret", 1, [4]))


def _output(model: Any) -> None:
    del model.graph.output[0]


def test_control_the_plan_itself_passes() -> None:
    assert Plan.read(spoilt(lambda model: None)).about.batch == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_op, "operator Loop"),
        (_domain, "operator com.microsoft"),
        (_opset, "operators of 'com.microsoft'"),
        (_external, "other files"),
        (_constant, "other files"),
        (_subgraph, "a graph within"),
        (_function, "functions of its own"),
        (_huge, "bytes of memory"),
        (_silent, "does not say how large"),
        (_input, "'secret'"),
        (_output, "does not give 'new/"),
    ],
)
def test_what_may_not_run_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        Plan.read(spoilt(change))


def test_a_site_sets_its_own_limits(tmp_path: Any) -> None:
    data = FILE.read_bytes()
    need = max(memory(read_graph(graph), 8) for graph in golden().graphs.values())
    assert Plan.read(data, bytes=len(data), memory=need, nodes=200)
    for limits, message in (
        ({"bytes": len(data) - 1}, "bytes here"),
        ({"memory": need - 1}, "bytes of memory"),
        ({"nodes": 10}, "operators, allowed are 10"),
    ):
        with pytest.raises(ProtocolError, match=message):
            Plan.read(data, **limits)
    with pytest.raises(StateError, match="expected a plan"):
        Plan.read(tmp_path / "none.plan")


def test_shapes_that_lie_end_in_the_runtime_and_not_in_memory() -> None:
    """A graph that says 3 and makes 30: found when it is loaded, before it runs."""

    def lie(model: Any) -> None:
        shape = onnx.numpy_helper.from_array(np.array([1 << 20, 8], np.int64), "shape")
        model.graph.initializer.append(shape)
        zeros = onnx.helper.make_node("ConstantOfShape", ["shape"], ["many"])
        model.graph.node.insert(0, zeros)
        model.graph.value_info.append(onnx.helper.make_tensor_value_info("many", 1, [1, 8]))

    plan = Plan.read(spoilt(lie))  # by its own word it is small
    with pytest.raises(StateError, match="does not run here"):
        plan_learner(plan).fit(golden().first, Labelled(9), FitContext(Rng.of(0)))


def test_a_step_that_takes_too_long_ends() -> None:
    plan = golden()
    slow = PlanLearner(plan, plan.sha256, epochs=200, seconds=1e-7)
    with pytest.raises(StateError, match="its limit here"):
        slow.fit(plan.first, Labelled(4000), FitContext(Rng.of(0)))


def test_a_plan_that_was_not_brought_says_so() -> None:
    plan = golden()
    named = PlanLearner(None, plan.sha256)
    with pytest.raises(MisuseError, match="has not been brought"):
        named.fit(plan.first, Labelled(4), FitContext(Rng.of(0)))
    assert named.given(plan.bare()).lr == 0.1
    with pytest.raises(MisuseError, match="first values"):
        named.given(plan.bare()).init(np.random.default_rng(0))
    with pytest.raises(MisuseError, match="the job's plan is"):
        named.given(replace(plan, about=replace_batch(plan)))


def replace_batch(plan: Plan) -> Any:
    import msgspec

    return msgspec.structs.replace(plan.about, batch=4)
