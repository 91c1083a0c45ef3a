"""A PyTorch learner as a plan: its step, loss and predictions as ordinary ONNX graphs.

This is the half that needs PyTorch; `adapt.plan_learner` follows what it makes. Functions are traced with
torch.func and make_fx (torch_plan_graph.py), backward operators are rewritten into standard ones
(torch_backward.py), and what remains without an ONNX form is refused by name. Before a plan is given away
it has learnt beside its source. Why this way: docs/decisions/0004-training-plan.md.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.errors import ConfigError
from ..core.message import FitContext, Pull
from ..core.rng import Rng
from ..core.update import Update
from .plan import About, Plan, Training
from .plan_gate import Limits, admit
from .plan_learner import PlanLearner
from .plan_run import Steps
from .rows import CLASSES

if TYPE_CHECKING:
    from .torch import TorchLearner

Gives = Mapping[str, Mapping[str, str]]
TOLERANCE = 1e-4  # between a plan, or a model exported for serving, and its source
STACK = 64 << 20  # bytes of single rows' gradients held at once


def export_plan(learner: TorchLearner, row: tuple[int, ...], batch: int, seed: int) -> Plan:
    """The learner as a plan for rows of shape `row`. Raises ConfigError: which parts have no form."""
    import torch

    from . import torch_plan_graph as graphs
    from .torch_vmap import refusal

    _exportable(learner)
    net, network = learner.net, graphs.Network(learner)
    first = net.init(Rng.of(seed).at("plan").generator())
    with torch.no_grad():
        out = network.still(torch.zeros(1, *row))
    shapes = net.layout.shapes
    given = {name: torch.from_numpy(np.array(first[name])) for name in first}
    given |= {name: torch.zeros(shapes[leaf]) for name, leaf in network.memory}
    for name in network.trained:
        given |= {"anchor/" + name: given[name].clone(), "slope/" + name: torch.zeros(shapes[name])}
    given |= {
        name: torch.tensor(value) for name, value in (("lr", 0.1), ("t", 1.0), ("mu", 0.0), ("norm", 1.0))
    }
    given["moves"] = torch.ones(len(network.trained))

    def traced(made: Any, rows: int) -> dict[str, bytes]:
        run, takes, gives = made
        sample = given | _batch(learner.loss, rows, row, tuple(out.shape[1:]))
        return _traced(run, [sample[name] for name in takes], takes, gives)

    found = traced(graphs.learn(network), batch)
    found |= _predict(graphs.Predict(network), torch.randn(3, *row), [given[n] for n in network.leaves])
    if not refusal(learner):
        found |= traced(graphs.clipped(network), max(1, min(batch, STACK // (4 * net.layout.size))))
    about = About(
        leaves=tuple(shapes.items()),
        trained=network.trained,
        statistics=network.statistics,
        memory=tuple((name, shapes[leaf]) for name, leaf in network.memory),
        batch=batch,
        row=tuple(row),
        out=tuple(out.shape[1:]),
        loss=str(learner.loss),
        training=Training(
            optimizer=learner.optimizer,
            lr=learner.lr,
            epochs=learner.epochs,
            momentum=learner.momentum,
            schedule=cast("str | None", learner.schedule),
            betas=learner.betas,
            clip=learner.clip,
            decay=learner.decay,
        ),
        head=tuple(sorted(net.head_leaves())),
        norms=tuple(sorted(net.norm_leaves())),
    )
    plan = Plan(found, about, first)
    admit(plan, Limits())
    _agrees(plan, learner)
    return plan


def _exportable(learner: TorchLearner) -> None:
    if callable(learner.loss):
        raise ConfigError("a plan takes a loss by name: short batches are masked row by row")
    if callable(learner.schedule):
        raise ConfigError("a plan takes a schedule by name, and functions do not travel")
    if learner.net.numpy_dtype is not np.float32 or learner.moon is not None:
        raise ConfigError("a plan takes float32 and no contrastive term")


def _batch(loss: str, n: int, row: tuple[int, ...], out: tuple[int, ...]) -> dict[str, Any]:
    import torch

    y = torch.zeros(n, *out[1:], dtype=torch.int64) if loss in CLASSES else torch.zeros(n, *out)
    return {"x": torch.zeros(n, *row), "y": y, "mask": torch.ones(n)}


def _traced(run: Any, inputs: Sequence[Any], takes: list[str], gives: Gives) -> dict[str, bytes]:
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from .torch_backward import rules

    with _plain():
        traced = make_fx(torch.func.functionalize(run), decomposition_table=rules())(*inputs)
    calls = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    _refuse(sorted(filter(_foreign, calls)))
    return _to_onnx(traced.eval(), tuple(inputs), takes, gives)


@contextmanager
def _plain() -> Iterator[None]:
    """Layers in the operators they are made of, not in one of a library of this processor's."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    switch: Any = torch.backends.mkldnn.set_flags
    before = switch(False)[0]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        switch(before)


def _foreign(name: str) -> bool:
    random = any(word in name for word in ("dropout", "bernoulli", "rand", "normal_"))
    return name.startswith("aten.") and (name.split(".")[1].endswith("_backward") or random)


def _refuse(names: Iterable[str]) -> None:
    names = [*names]
    if names:
        raise ConfigError(f"this step has operators without a standard ONNX form: {', '.join(names)}")


def _predict(module: Any, x: Any, leaves: list[Any]) -> dict[str, bytes]:
    import torch

    shapes = ({0: torch.export.Dim("rows")}, [None for _ in leaves])
    gives = {"predict": {name: name for name in module.gives}}
    return _to_onnx(
        module.eval(), (x, leaves), ["x", *module.network[0].leaves], gives, dynamic_shapes=shapes
    )


def _to_onnx(
    module: Any, inputs: tuple[Any, ...], takes: list[str], gives: Gives, **more: Any
) -> dict[str, bytes]:
    import onnx
    import torch

    from .torch_plan_cut import cut

    try:
        with _plain(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter to its own authors
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                input_names=takes,
                output_names=[name for names in gives.values() for name in names],
                verbose=False,
                optimize=True,
                **more,
            )
    except torch.onnx.OnnxExporterError as error:
        _refuse(sorted(set(re.findall(r"aten\.\w+(?:\.\w+)?", str(error)))) or ["unknown"])
        raise
    model = onnx.shape_inference.infer_shapes(program.model_proto)  # type: ignore[union-attr]
    _refuse(sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")}))
    del model.metadata_props[:]
    parts: list[Any] = [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""  # traces hold paths of the machine that exported
    return {name: cut(model, names) for name, names in gives.items()}


def _agrees(plan: Plan, learner: TorchLearner) -> None:
    """Raise ConfigError unless the plan learns, clips and answers as its source does, on rows made up.

    One whole batch and a short one show whether rows are apart. Of Adam the gradient is compared: where one
    is rounding alone, as that of a bias before BatchNorm, its step is as large as any.
    """
    import torch

    about, first = plan.about, plan.first
    assert first is not None  # noqa: S101  an exported plan has its first values
    rng = np.random.default_rng(0)
    n = about.batch + max(1, about.batch // 2)
    x = rng.normal(size=(n, *about.row)).astype(np.float32)
    y = (
        rng.integers(0, about.out[0], (n, *about.out[1:]))
        if about.loss in CLASSES
        else rng.random((n, *about.out))
    )
    data, ctx = SimpleNamespace(x=x, y=y), FitContext(Rng.of(0))
    mine, source = (
        PlanLearner(plan, plan.sha256, epochs=1),
        replace(learner, batch_size=about.batch, engine="plain", epochs=1),
    )
    if learner.optimizer == "sgd":
        for pull in (None, Pull(mu=0.1)):
            terms = replace(ctx, pull=pull)
            a, b = mine.fit(first, data, terms), source.fit(first, data, terms)
            _near("step", a.update.buffer, b.update.buffer, 1e-3)
    else:
        decay = learner.weight_decay if learner.optimizer == "adam" else 0.0
        plain: dict[str, Any] = {
            "optimizer": "sgd",
            "lr": 1.0,
            "schedule": None,
            "decay": 1.0,
        }
        for rows in (about.batch, n - about.batch):
            part = SimpleNamespace(x=x[:rows], y=y[:rows])
            want = replace(source, weight_decay=decay, **plain).fit(first, part, ctx).update
            got = Steps(plan, first, mine.seconds).gradients(*mine.rows(part))
            for name in about.trained:
                _near(f"gradient of {name!r}", got[name], -want[name], 1e-3, floor=1e-4 * want.norm())
    told = mine.evaluate(first, data)
    _near("loss", [*told.values()], [*source.evaluate(first, data, ctx).values()], 1e-4)
    if "clipped" in plan.graphs:
        want = source.clipped(first, data, 0.5)
        _near("clipped gradients", mine.clipped(first, data, 0.5).buffer, want.buffer, 1e-3)
    with torch.no_grad():
        out = learner.net.loaded(first).eval()(torch.from_numpy(x)).numpy()
    answers = mine.answers(first, x)
    _near(
        "prediction",
        answers["probabilities" if len(answers) > 1 else "y"],
        _answered(about.loss, out),
        TOLERANCE,
    )


def _answered(loss: str, out: Any) -> Any:
    if loss == "cross_entropy":
        e = np.exp(out - out.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)
    return np.exp(out) if loss == "nll" else 1 / (1 + np.exp(-out)) if loss == "bce_with_logits" else out


def _near(what: str, got: Any, want: Any, tolerance: float, floor: float = 1e-7) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    gap, size = float(np.linalg.norm(got - want)), float(np.linalg.norm(want))
    if not gap <= tolerance * size + floor:
        raise ConfigError(
            f"the exported {what} differs from PyTorch's by {gap / max(size, 1e-30):.1e} of it on rows made"
            " up: does a layer mix the rows of a batch?"
        )


def export_model(learner: TorchLearner, params: Update, path: Path, example: np.ndarray[Any, Any]) -> None:
    """Write the model for serving, any number of rows; nothing is written if it differs from PyTorch."""
    import onnxruntime as ort
    import torch

    from .rows import features
    from .torch_loss import loaded

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
