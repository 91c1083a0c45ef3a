"""A learner as data: its training step (forward, backward, update) as an ordinary ONNX graph.

This is the half that needs PyTorch; `adapt.onnx` runs what it makes. The step is traced with
torch.func and make_fx, its backward operators are rewritten into standard ones (`torch_backward`),
and what remains without an ONNX form is refused by name. Why this way:
docs/decisions/0004-training-plan.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.update import Update
from .onnx import MEMORY, Plan

if TYPE_CHECKING:
    from .torch import TorchLearner

TOLERANCE = 1e-4  # between a model exported for serving and its source


def export_step(learner: TorchLearner, row: tuple[int, ...], batch: int) -> Plan:
    """The learner's step for rows of shape `row`. Raises ConfigError, with operator names, if it has none."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from .torch_backward import rules

    _exportable(learner)
    net = learner.net
    leaves = tuple(net.layout.slices)
    memory = tuple(MEMORY + name for name in leaves) if learner.momentum else ()
    step = _step_of(learner, leaves)
    params = [torch.zeros(net.layout.shapes[name]) + 0.01 for name in leaves]
    states = [torch.zeros_like(p) for p in params] if memory else []
    x = torch.zeros(batch, *row)
    y = _labels_like(learner, x)
    inputs = (*params, *states, x, y, torch.ones(batch), torch.tensor(0.1))
    traced = make_fx(step, decomposition_table=rules())(*inputs)
    _refuse(
        sorted({str(n.target) for n in traced.graph.nodes if n.op == "call_function" and _foreign(n.target)})
    )
    names = [*leaves, *memory]
    graph = _to_onnx(traced, inputs, [*names, "x", "y", "mask", "lr"], [*("new/" + n for n in names), "loss"])
    return Plan(graph, leaves, memory, batch, tuple(row))


def _exportable(learner: TorchLearner) -> None:
    rule = learner.rule
    if rule.name != "sgd":
        raise ConfigError(f"a plan takes optimizer='sgd' with or without momentum, got {rule.name!r}")
    if callable(learner.loss):
        raise ConfigError("a plan takes a loss by name: short batches are masked row by row")
    if learner.net.numpy_dtype is not np.float32 or learner.moon is not None:
        raise ConfigError("a plan takes float32 and no contrastive term")
    parameters = dict(learner.net.module.named_parameters())
    buffers = [name for name in learner.net.layout.slices if name not in parameters]
    if buffers:
        raise ConfigError(f"a plan takes no running statistics yet, and the module has {', '.join(buffers)}")


def _step_of(learner: TorchLearner, leaves: tuple[str, ...]) -> Callable[..., Any]:
    import copy

    import torch

    from .torch_loss import row_losses

    module, rule, k = copy.deepcopy(learner.net.module).train(), learner.rule, len(leaves)

    def loss_of(params: Any, x: Any, y: Any, mask: Any) -> Any:
        out = torch.func.functional_call(module, params, (x,))
        if learner.loss in (
            "cross_entropy",
            "nll",
        ):  # a gather would come back as a scatter; this is a product
            logs = torch.log_softmax(out, 1) if learner.loss == "cross_entropy" else out
            hot = (y[:, None] == torch.arange(out.shape[1])).to(out.dtype)
            return -((logs * hot).sum(1) * mask).sum() / mask.sum()
        return (row_losses(learner.loss, out, y) * mask).sum() / mask.sum()

    def step(*inputs: Any) -> Any:
        params, states, (x, y, mask, lr) = inputs[:k], inputs[k:-4], inputs[-4:]
        named = dict(zip(leaves, params, strict=True))
        grads, loss = torch.func.grad_and_value(loss_of)(named, x, y, mask)
        g = [grads[name] for name in leaves]
        if rule.clip is not None:
            norm = torch.stack([(one * one).sum() for one in g]).sum().sqrt()
            g = [one * (rule.clip / (norm + 1e-6)).clamp(max=1.0) for one in g]
        if rule.weight_decay:
            g = [one + rule.weight_decay * w for one, w in zip(g, params, strict=True)]
        new = [rule.momentum * m + one for m, one in zip(states, g, strict=True)] if states else []
        if states:
            g = [one + rule.momentum * m for one, m in zip(g, new, strict=True)] if rule.nesterov else new
        return (*(w - lr * one for w, one in zip(params, g, strict=True)), *new, loss)

    return step


def _labels_like(learner: TorchLearner, x: Any) -> Any:
    import torch

    if learner.loss in ("cross_entropy", "nll"):
        return torch.zeros(len(x), dtype=torch.int64)
    with torch.no_grad():
        return torch.zeros_like(learner.net.module(x))


def _foreign(target: Any) -> bool:
    name = str(target)
    random = any(word in name for word in ("dropout", "bernoulli", "rand", "normal_"))
    return name.startswith("aten.") and (name.split(".")[1].endswith("_backward") or random)


def _refuse(names: Iterable[str]) -> None:
    names = [*names]
    if names:
        raise ConfigError(f"this step has operators without a standard ONNX form: {', '.join(names)}")


def _to_onnx(traced: Any, inputs: tuple[Any, ...], names: list[str], outputs: list[str]) -> bytes:
    import onnx
    import torch

    try:
        program = torch.onnx.export(
            traced.eval(),
            inputs,
            dynamo=True,
            input_names=names,
            output_names=outputs,
            verbose=False,
            optimize=True,
        )
    except torch.onnx.OnnxExporterError as error:
        _refuse(sorted(set(re.findall(r"aten\.\w+(?:\.\w+)?", str(error)))) or ["unknown"])
        raise
    model = program.model_proto  # type: ignore[union-attr]
    _refuse(sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")}))
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""  # traces hold paths of the machine that exported
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def export_model(learner: TorchLearner, params: Update, path: Path, example: np.ndarray[Any, Any]) -> None:
    """Write the model for serving, any number of rows; nothing is written if it differs from PyTorch."""
    import onnxruntime as ort
    import torch

    from .torch_loss import features, loaded

    x = features(example, learner.net.numpy_dtype)
    rows = loaded(x, np.arange(len(x)), "cpu")
    module = learner.net.loaded(params).eval()
    with torch.no_grad():
        want = module(rows).numpy()
    many = torch.export.Dim("rows")
    program = torch.onnx.export(
        module,
        (rows,),
        dynamo=True,
        input_names=["x"],
        output_names=["out"],
        dynamic_shapes=({0: many},),
        verbose=False,
    )
    graph = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    (got,) = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    gap = float(np.abs(got - want).max())
    if not gap <= TOLERANCE * max(1.0, float(np.abs(want).max())):
        raise ConfigError(
            f"the exported model differs from PyTorch by {gap:.1e} on the example, more than {TOLERANCE}"
        )
    path.write_bytes(graph)
