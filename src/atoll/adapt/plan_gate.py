"""The gate before ONNX Runtime: which graphs a plan may have, found from their bytes alone.

A plan came over the network. It may hold standard operators that compute, on arrays of one file, with all
shapes said, so that the memory it takes is known before it takes any. Nothing that loops, branches, draws
at random or reads another file. A job's signature names it (control/engine/plans.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import MisuseError, ProtocolError
from ..wire.onnx import FLOAT, INT, Graph, Value, read_graph
from .plan import GRAPHS, NEEDED, Plan

OPSETS = range(13, 26)
OPERATORS = frozenset(
    word
    for line in (
        "Abs Add And ArgMax AveragePool BatchNormalization BitwiseNot Cast Ceil Clip Concat Constant",
        "ConstantOfShape Conv ConvTranspose Cos CumSum Div Einsum Elu Equal Erf Exp Expand Flatten Floor GRU",
        "Gather GatherElements Gelu Gemm GlobalAveragePool Greater GreaterOrEqual GroupNormalization",
        "HardSigmoid HardSwish Identity InstanceNormalization LSTM LayerNormalization LeakyRelu Less",
        "LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mod Mul Neg Not Or Pad Pow Range Reciprocal",
        "ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu",
        "Reshape Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Slice Softmax Softplus Split",
        "Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan may cost here: `bytes` of its file, `memory` in bytes of one step, `nodes` of a graph,
    `seconds` of a step. Raises MisuseError unless all are above 0.
    """

    bytes: int = 64 << 20
    memory: int = 1 << 30
    nodes: int = 20_000
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not min(self.bytes, self.memory, self.nodes, self.seconds) > 0:
            raise MisuseError("a plan's limits are above 0")


def admit(plan: Plan, limits: Limits) -> None:
    """Raise ProtocolError, with the reason, for a plan that may not run here."""
    about = plan.about
    for name in (*plan.graphs, *NEEDED):
        if name not in GRAPHS or name not in plan.graphs:
            raise ProtocolError(f"a plan has graphs {', '.join(GRAPHS)}; {name!r} is missing or unknown")
    shapes = dict(about.leaves)
    if not shapes or about.batch < 1 or not {*about.moving, *about.head, *about.norms} <= {*shapes}:
        raise ProtocolError("the plan's leaves, batch and parts do not fit each other")
    if (
        any(n < 0 for _, shape in (*about.leaves, *about.memory) for n in shape)
        or min(about.row, default=1) < 1
    ):
        raise ProtocolError("the plan has a shape with a size below 0")
    for name, data in plan.graphs.items():
        graph = read_graph(data)
        _standard(name, graph, limits)
        _fits(name, graph, plan)
        need = memory(graph, about.batch)
        if need > limits.memory:
            raise ProtocolError(
                f"the plan's {name} needs {need} bytes of memory, allowed are {limits.memory}"
            )


def _standard(name: str, graph: Graph, limits: Limits) -> None:
    """Listed operators of the standard domain and nothing that hides more."""
    if len(graph.nodes) > limits.nodes:
        raise ProtocolError(f"the plan's {name} has {len(graph.nodes)} operators, allowed are {limits.nodes}")
    if graph.opset not in OPSETS:
        raise ProtocolError(f"the plan's {name} is of operator set {graph.opset}, known are 13 to 25")
    odd = [*graph.odd, *(node.holds for node in graph.nodes if node.holds)]
    odd += [f"operator {n.domain}.{n.op}" for n in graph.nodes if n.domain not in ("", "ai.onnx")]
    odd += [f"operator {n.op}" for n in graph.nodes if n.op not in OPERATORS]
    if odd:
        raise ProtocolError(
            f"the plan's {name} has {odd[0]}: only listed operators on its own numbers run here"
        )


def _fits(name: str, graph: Graph, plan: Plan) -> None:
    """It is given what it takes and gives what is taken from it, in type and shape."""
    about = plan.about
    given = {n: Value(FLOAT, shape) for n, shape in (*about.leaves, *about.memory)}
    given |= {n: Value(FLOAT, ()) for n in ("lr", "t", "mu", "norm")}
    given["moves"] = Value(FLOAT, (len(about.trained),))
    for leaf in about.trained:
        given["anchor/" + leaf] = given["slope/" + leaf] = given[leaf]
    for value, found in graph.inputs.items():
        if value in ("x", "y", "mask"):
            rest = {"x": (about.row,), "y": ((), about.out, about.out[1:]), "mask": ((),)}[value]
            fits = found.shape[1:] in rest and (found.kind == FLOAT or (value, found.kind) == ("y", INT))
        else:
            fits = found == given.get(value)
        if not fits:
            raise ProtocolError(
                f"the plan's {name} takes {value[:80]!r} of shape {found.shape}: nobody gives it"
            )
    wanted: dict[str, Value] = {}
    if name in ("step", "pulled"):
        wanted = {"new/" + n: given[n] for n in (*about.moving, *dict(about.memory))}
    elif name == "clipped":
        wanted = {"sum/" + n: given[n] for n in about.trained}
    if name in ("step", "pulled", "evaluate"):
        wanted["loss"] = Value(FLOAT, ())
    for value, shape in wanted.items():
        if graph.outputs.get(value) != shape:
            raise ProtocolError(f"the plan's {name} does not give {value[:80]!r} of shape {shape.shape}")


def memory(graph: Graph, rows: int) -> int:
    """Bytes that a run holds at most at one moment, each value freed after its last reader.

    Raises ProtocolError where an operator's answer has no shape.
    """
    known = graph.values | graph.outputs
    last = {name: at for at, node in enumerate(graph.nodes) for name in node.reads}
    kept, alive = {*graph.outputs}, dict[str, int]()
    live = most = graph.weights + sum(value.bytes(rows) for value in graph.inputs.values())
    for at, node in enumerate(graph.nodes):
        for name in filter(None, node.gives):
            if name not in known:
                raise ProtocolError(
                    f"the plan does not say how large {name[:80]!r} is, which {node.op} gives"
                )
            alive[name] = known[name].bytes(rows)
            live += alive[name]
        most = max(most, live)
        for name in (*node.reads, *node.gives):
            if name not in kept and last.get(name, at) == at:
                live -= alive.pop(name, 0)
    return most
