"""What a plan's graphs compute, as functions of flat arguments that make_fx can write down.

A step is forward, backward and update in one: torch.func gives gradients as a function, and the optimisers
are those of torch_optim.py, written without memory of their own. Nothing here knows of ONNX.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from .plan import MEMORY
from .rows import CLASSES
from .torch_loss import row_losses
from .torch_masked import Seen, masked
from .torch_optim import EPS, Rule

if TYPE_CHECKING:
    from .torch import TorchLearner

LARGE = 2.0**20  # the exporter takes an addition of 1e-8 for one of nothing, and would divide by zero
Leaves = Mapping[str, Tensor]
Flat = Callable[..., tuple[Tensor, ...]]


class Network:
    """The learner's module as functions of its leaves, by name."""

    def __init__(self, learner: TorchLearner) -> None:
        net = learner.net
        self.loss, self.rule = str(learner.loss), learner.rule
        self.seen = Seen()
        module = copy.deepcopy(net.module).cpu().train()
        if net.bn == "frozen":
            for norm in module.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    norm.eval()
        self.moving = masked(module, self.seen)
        self.still = copy.deepcopy(net.module).cpu().eval()
        self.leaves = tuple(net.layout.slices)
        self.trained = tuple(n for n, p in net.module.named_parameters() if p.requires_grad)
        masks = [m.name for m in self.moving.modules() if hasattr(m, "seen")]
        owned = {f"{name}.{part}".lstrip(".") for name in masks for part in ("running_mean", "running_var")}
        self.statistics = tuple(name for name in self.leaves if name in owned)

    @property
    def memory(self) -> tuple[tuple[str, str], ...]:
        """The optimiser's leaves: their name, and of which leaf they are."""
        kinds = ("m/", "v/") if self.rule.name != "sgd" else ("",) if self.rule.momentum else ()
        return tuple((MEMORY + kind + leaf, leaf) for kind in kinds for leaf in self.trained)

    def mean(self, moving: Leaves, fixed: Leaves, x: Any, y: Any, mask: Any) -> Any:
        """The mean loss of the real rows, and the statistics that BatchNorm leaves."""
        self.seen.mask, self.seen.statistics = mask, {}
        out = functional_call(self.moving, {**fixed, **moving}, (x,))
        loss = (losses(self.loss, out, y) * mask).sum() / mask.sum()
        return loss, dict(self.seen.statistics)

    @property
    def measures(self) -> list[str]:
        """What an evaluation sums up."""
        return ["loss", "hits"] if self.loss in (*CLASSES, "bce_with_logits") else ["loss"]

    def sums(self, leaves: Leaves, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The sum of the rows' losses and, for classifiers, of right predictions."""
        out = functional_call(self.still, dict(leaves), (x,))
        total = (losses(self.loss, out, y) * mask).sum()
        if self.measures == ["loss"]:
            return (total,)
        right = ((out > 0) == (y > 0.5)) if self.loss == "bce_with_logits" else out.argmax(1) == y
        right = right.to(out.dtype)
        return total, ((right.flatten(1).mean(1) if right.dim() > 1 else right) * mask).sum()


def losses(loss: str, out: Tensor, y: Tensor) -> Tensor:
    """One loss per row: (n,). Of class labels as a product: a gather would come back as a scatter."""
    if loss not in CLASSES:
        return row_losses(loss, out, y)
    logs = torch.log_softmax(out, 1) if loss == "cross_entropy" else out
    classes = torch.arange(out.shape[1]).reshape(1, -1, *[1] * (out.dim() - 2))
    found = -(logs * (y.unsqueeze(1) == classes).to(out.dtype)).sum(1)
    return found.flatten(1).mean(1) if found.dim() > 1 else found


def learn(network: Network) -> tuple[Flat, list[str], dict[str, dict[str, str]]]:
    """Step, pulled step and evaluation in one function, which is traced once.

    Also the names of what it takes, and for each graph those of what it gives: here, and in the graph.
    """
    rule, trained, memory = network.rule, network.trained, [name for name, _ in network.memory]
    takes = [*network.leaves, *memory, "x", "y", "mask", "lr"]
    takes += ["t"] if rule.name != "sgd" else []
    takes += ["moves"] if rule.clip is not None else []
    takes += ["mu", *("anchor/" + name for name in trained), *("slope/" + name for name in trained)]
    new = ["new/" + name for name in (*trained, *network.statistics, *memory)]
    gives = {"step": [*new, "loss"], "pulled": [*new, "loss"], "evaluate": network.measures}

    def run(*flat: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(takes, flat, strict=True))
        moving = {name: given[name] for name in trained}
        fixed = {name: given[name] for name in network.leaves if name not in moving}
        mean = grad_and_value(network.mean, has_aux=True)
        grads, (loss, statistics) = mean(moving, fixed, given["x"], given["y"], given["mask"])
        g = [grads[name] for name in trained]
        pulled = [
            one + (given["mu"] * (given[name] - given["anchor/" + name]) + given["slope/" + name])
            for one, name in zip(g, trained, strict=True)
        ]
        seen = [statistics[name] for name in network.statistics]
        found: list[Tensor] = []
        for gradient in (g, pulled):
            params, kept = _moved(network, gradient, given)
            found += [*params, *seen, *kept, loss]
        return (*found, *network.sums({**fixed, **moving}, given["x"], given["y"], given["mask"]))

    return run, takes, {graph: {f"{graph}:{name}": name for name in names} for graph, names in gives.items()}


def _moved(network: Network, g: list[Tensor], given: Leaves) -> tuple[list[Tensor], list[Tensor]]:
    """New params and memory by the gradients `g`, clipped over the leaves that move."""
    rule = network.rule
    if rule.clip is not None:
        squares = torch.stack([(one * one).sum() for one in g])
        factor = (rule.clip / ((squares * given["moves"]).sum().sqrt() + 1e-6)).clamp(max=1.0)
        g = [one * factor for one in g]
    w = [given[name] for name in network.trained]
    memory = [given[name] for name, _ in network.memory]
    return (sgd if rule.name == "sgd" else adam)(rule, w, g, memory, given)


def sgd(
    rule: Rule,
    w: Sequence[Tensor],
    g: Sequence[Tensor],
    memory: Sequence[Tensor],
    given: Leaves,
) -> tuple[list[Tensor], list[Tensor]]:
    """SGD as torch.optim's: the new params, and momentum; before the first step that is zero."""
    if rule.weight_decay:
        g = [one + rule.weight_decay * here for one, here in zip(g, w, strict=True)]
    kept = [rule.momentum * m + one for m, one in zip(memory, g, strict=True)] if memory else []
    if kept:
        g = [one + rule.momentum * m for one, m in zip(g, kept, strict=True)] if rule.nesterov else kept
    return [here - given["lr"] * one for here, one in zip(w, g, strict=True)], kept


def adam(
    rule: Rule,
    w: Sequence[Tensor],
    g: Sequence[Tensor],
    memory: Sequence[Tensor],
    given: Leaves,
) -> tuple[list[Tensor], list[Tensor]]:
    """Adam and AdamW as torch.optim's. 1 - beta ** t in float64: in float32 a fifth digit would go. So would
    it with beta itself, which the exporter writes down in float32; 1 - beta it keeps.
    """
    (first, second), lr, t = rule.betas, given["lr"], given["t"].double()
    far = (lr.double() / (1 - torch.pow(1 - torch.full_like(t, 1 - first), t))).float()
    root = (1 - torch.pow(1 - torch.full_like(t, 1 - second), t)).sqrt().float()
    decay = rule.weight_decay
    if decay and rule.name == "adamw":
        w = [here * (1 - lr * decay) for here in w]
    elif decay:
        g = [one + decay * here for one, here in zip(g, w, strict=True)]
    half = len(w)
    m = [old + (1 - first) * (one - old) for old, one in zip(memory[:half], g, strict=True)]
    v = [second * old + (1 - second) * one * one for old, one in zip(memory[half:], g, strict=True)]
    new = [
        here - far * (a * LARGE) / (b.sqrt() * (LARGE / root) + EPS * LARGE)
        for here, a, b in zip(w, m, v, strict=True)
    ]
    return new, [*m, *v]


def clipped(network: Network) -> tuple[Flat, list[str], dict[str, dict[str, str]]]:
    """The sum of the rows' gradients, each scaled to an L2 norm of at most "norm": as torch_rows.py."""
    takes, trained = [*network.leaves, "x", "y", "mask", "norm"], network.trained

    def run(*flat: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(takes, flat, strict=True))
        moving = {name: given[name] for name in trained}
        fixed = {name: given[name] for name in network.leaves if name not in moving}

        def loss(mine: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            out = functional_call(network.moving, {**fixed, **mine}, (x[None],))
            return losses(network.loss, out, y[None])[0]

        grads = vmap(grad(loss), in_dims=(None, 0, 0))(moving, given["x"], given["y"])
        squares = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)
        factor = (given["norm"] / squares.sqrt().clamp(min=1e-30)).clamp(max=1.0) * given["mask"]
        return tuple((factor[None] @ grads[n].flatten(1)).reshape(grads[n].shape[1:]) for n in trained)

    return run, takes, {"clipped": {"clipped:sum/" + name: "sum/" + name for name in trained}}


class Predict(nn.Module):
    """What serving answers: `label` and `probabilities` of a classifier, else `y`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = [network]  # not a submodule: its leaves come as inputs
        classes = network.loss in CLASSES
        self.gives = ["label", "probabilities"] if classes else ["y"]

    def forward(self, x: Tensor, leaves: list[Tensor]) -> Any:
        """The answers to x (n, ...), any n."""
        network = self.network[0]
        out = functional_call(network.still, dict(zip(network.leaves, leaves, strict=True)), (x,))
        if network.loss in CLASSES:
            p = torch.softmax(out, 1) if network.loss == "cross_entropy" else out.exp()
            return out.argmax(1), p
        return torch.sigmoid(out) if network.loss == "bce_with_logits" else out
