"""The same module, rewritten to run faster: channels_last, and linear layers that update themselves.

`torch.fx` traces the module; only a module it can trace in full is rewritten, so nothing rests on
luck or timing. What changes, and why (measured on the FedAvg paper's CNN, B = 10, one core):

- convolutions and pooling run channels_last: 1.1x;
- a big linear layer used once adds its own gradient to its weight while going backward, so the
  gradient, as big as the weight, is never stored and read again (plain SGD only): 1.1x;
- relu then max-pool becomes max-pool then relu, the same numbers on a quarter of the cells: 1.04x;
- dropout draws from a generator of its own, so clients can run in threads and stay deterministic.

Lost: NCHW with slices for the pooling (0.95x), updating convolutions in backward (no gain).
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

BIG = 1 << 16  # weights from here on do not stay in the second-level cache beside their gradient

# Leaf modules known to be pure functions of input and parameters (dropout is rewritten).
PLAIN: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.LayerNorm, nn.GroupNorm,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Hardswish,
    nn.Softmax, nn.LogSoftmax, nn.Embedding,
)  # fmt: skip
IMAGE: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Knobs:
    """What the rewritten layers read at each step: rate, decay, whether to update, randomness."""

    def __init__(self, device: torch.device) -> None:
        self.fused, self.lr, self.weight_decay = False, 0.0, 0.0
        self.noise = torch.Generator(device=device)
        # A linear layer first in the net has no input that asks for a gradient; this asks.
        self.token = torch.zeros((), device=device, requires_grad=True)


class _UpdatingLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, layer: UpdatingLinear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        layer, knobs = ctx.layer, ctx.layer.knobs
        g = grads[0].reshape(-1, grads[0].shape[-1])
        back = (g @ layer.weight).reshape(x.shape) if ctx.needs_input_grad[0] else None
        keep = 1 - knobs.lr * knobs.weight_decay
        layer.weight.addmm_(g.t(), x.reshape(-1, x.shape[-1]), beta=keep, alpha=-knobs.lr)
        if layer.bias is not None:
            layer.bias.mul_(keep).add_(g.sum(0), alpha=-knobs.lr)
        return back, None, None


class UpdatingLinear(nn.Module):
    """A linear layer that takes its own SGD step in backward while `knobs.fused`.

    `weight` and `bias` are the inner layer's.
    """

    def __init__(self, layer: nn.Linear, knobs: Knobs) -> None:
        super().__init__()
        self.layer, self.knobs = layer, knobs

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.knobs.fused:
            return _UpdatingLinear.apply(x, self.knobs.token, self)  # type: ignore[no-any-return, no-untyped-call]
        return F.linear(x, self.weight, self.bias)


class _ReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, where: tuple[Any, ...]) -> Tensor:
        y, places = torch.ops.aten.max_pool2d_with_indices(x, *where)
        y.relu_()
        ctx.save_for_backward(x, y, places)
        ctx.where = where
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, y, places = ctx.saved_tensors
        cl = x.is_contiguous(memory_format=torch.channels_last)
        g = grads[0].contiguous(memory_format=torch.channels_last if cl else torch.contiguous_format)
        g = torch.ops.aten.threshold_backward(g, y, 0)
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *ctx.where, places), None


class ReluPool(nn.Module):
    """max_pool2d(relu(x)) as relu(max_pool2d(x))."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        sizes: tuple[Any, ...] = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        self.where = (*([v, v] if isinstance(v, int) else list(v) for v in sizes), pool.ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return _ReluPool.apply(x, self.where)  # type: ignore[no-any-return, no-untyped-call]


class Dropout(nn.Module):
    """Dropout whose draws come from `knobs.noise`."""

    def __init__(self, p: float, knobs: Knobs) -> None:
        super().__init__()
        self.p, self.knobs = p, knobs

    def forward(self, x: Tensor) -> Tensor:
        if self.p in (0.0, 1.0):
            return x * (1 - self.p)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.knobs.noise).div_(1 - self.p)


class Traced:
    """What tracing told about a module: `graph`, or None where it could not be traced.

    Tracing changes `nn.Module` for the whole process while it lasts, so it happens when a learner is
    made and never again: working copies are made in threads.
    """

    def __init__(self, module: nn.Module) -> None:
        hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())
        self.graph = None if hooked else _trace(module)  # fx would drop hooks of containers
        names = called(self.graph) if self.graph is not None else ()
        self.parts = [module.get_submodule(name) for name in names]

    @property
    def drops(self) -> bool:
        """Whether dropout is among what it calls."""
        nodes = self.graph.nodes if self.graph is not None else ()
        return any(isinstance(m, nn.Dropout) for m in self.parts) or any(n.target is F.dropout for n in nodes)

    def known(self, kinds: tuple[type[nn.Module], ...]) -> bool:
        """Whether it is traced, calls only modules of these very types, and draws nothing at random."""
        if self.graph is None:
            return False
        return all(type(m) in kinds for m in self.parts) and not any(_random(n) for n in self.graph.nodes)


def called(graph: fx.Graph) -> Counter[str]:
    """How often the graph calls each submodule, by name."""
    return Counter(str(n.target) for n in graph.nodes if n.op == "call_module")


def _trace(module: nn.Module) -> fx.Graph | None:
    """The module's graph, or None: what it drew or made while tracing would be the same for ever."""
    with torch.random.fork_rng(devices=[]):
        before = torch.random.get_rng_state(), random.getstate()
        try:
            graph = fx.Tracer().trace(module)
        except Exception:  # noqa: BLE001  a module may fail to trace in any way; it then runs as it is
            return None
        drew = not torch.equal(before[0], torch.random.get_rng_state()) or before[1] != random.getstate()
    made = any(n.op == "get_attr" and str(n.target).startswith("_tensor_constant") for n in graph.nodes)
    return None if drew or made else graph


def _random(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.target is F.dropout:
        return False  # rewritten
    return any(word in name for word in ("rand", "dropout", "bernoulli", "normal", "uniform", "multinomial"))


def rewrite(module: nn.Module, graph: fx.Graph, knobs: Knobs) -> tuple[fx.GraphModule, list[str]]:
    """The module for training, sharing its parameters, and which linear layers may update themselves.

    `graph`: of a copy of it, traced in training mode.
    """
    graph, parts = copy.deepcopy(graph), dict(module.named_modules())
    run = fx.GraphModule(module, graph)
    fused = [name for name in called(graph) if _fusible(name, graph, module)]
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target) in fused:
            _swap(run, node, UpdatingLinear(parts[str(node.target)], knobs))
        elif node.op == "call_module" and type(parts[str(node.target)]) is nn.Dropout:
            _swap(run, node, Dropout(parts[str(node.target)].p, knobs))
        elif node.target is F.dropout:
            _dropout(run, node, knobs)
        else:
            _pool(run, node, parts)
            _reshape(node)
    graph.lint()
    run.recompile()
    return run, fused


def infer(module: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The module for evaluation, safe for channels_last memory; `graph` traced in evaluation mode."""
    graph = copy.deepcopy(graph)
    for node in graph.nodes:
        _reshape(node)
    return fx.GraphModule(module, graph)


def _reshape(node: fx.Node) -> None:
    """`view` becomes `reshape`: a view of channels_last memory may not exist."""
    if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
        node.target = "reshape"


def _fusible(name: str, graph: fx.Graph, module: nn.Module) -> bool:
    layer = module.get_submodule(name)
    if type(layer) is not nn.Linear or called(graph)[name] != 1 or layer.weight.numel() < BIG:
        return False
    owners = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
    read = any(n.op == "get_attr" and str(n.target).startswith(f"{name}.") for n in graph.nodes)
    return not read and all(owners[id(p)] == 1 and p.requires_grad for p in layer.parameters())


def _swap(run: fx.GraphModule, node: fx.Node, new: nn.Module) -> None:
    name = "lean_" + node.name
    run.add_submodule(name, new)
    node.target, node.kwargs = name, {}


def _dropout(run: fx.GraphModule, node: fx.Node, knobs: Knobs) -> None:
    values: dict[str, Any] = {"p": 0.5, "training": True}
    values |= dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
    node.op, node.args = "call_module", (values["input"],)
    _swap(run, node, Dropout(float(values["p"]) if values["training"] else 0.0, knobs))


def _pool(run: fx.GraphModule, node: fx.Node, parts: dict[str, nn.Module]) -> None:
    pool = _max_pool(node, parts)
    before = node.args[0] if node.args else None
    if pool is None or not isinstance(before, fx.Node) or len(before.users) != 1 or not _relu(before, parts):
        return
    _swap(run, node, ReluPool(pool))
    node.op, node.args = "call_module", (before.args[0],)
    node.graph.erase_node(before)


def _max_pool(node: fx.Node, parts: dict[str, nn.Module]) -> nn.MaxPool2d | None:
    pool = None
    if node.op == "call_module" and type(parts[str(node.target)]) is nn.MaxPool2d:
        pool = parts[str(node.target)]
    elif node.target is F.max_pool2d:
        pool = nn.MaxPool2d(*node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "input"})  # type: ignore[arg-type]
    return pool if isinstance(pool, nn.MaxPool2d) and not pool.return_indices else None


def _relu(node: fx.Node, parts: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(parts[str(node.target)]) is nn.ReLU
    return node.target in (F.relu, torch.relu, "relu") and len(node.args) == 1
