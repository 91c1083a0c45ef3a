"""Any PyTorch module as a learner.

    learner = torch_learner(Net, loss="cross_entropy", optimizer="sgd", lr=0.1, epochs=1, batch_size=10)

How it runs is chosen by structure alone, never by timing (`TorchLearner.chosen` says which):

    loop    one client at a time over the module rewritten by `torch_lean`; with convolutions, one
            thread per core (threads, not processes: measured 1.85x on two cores, and nothing to start)
    vmap    a small module (up to 32,768 parameters; of any size on a GPU) made of layers that are pure
            functions: all clients of equal steps at once, checked against one client first
    plain   one client at a time over the module as it is; on a GPU, in place of the loop

All agree to 1e-5 after a round; within one the bytes are the same for any number of workers.
PyTorch is imported when a learner is made, never before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..core.errors import ConfigError
from ..core.message import Contribution, FitContext
from ..core.registry import nearest
from ..core.update import Update

if TYPE_CHECKING:
    from .plan import Plan
    from .torch_net import Net
    from .torch_optim import Rule

OPTIMIZERS = ("sgd", "adam", "adamw")
ENGINES = ("auto", "plain", "loop", "vmap")


@dataclass(frozen=True)
class TorchLearner:
    """A module, a loss and an optimiser as a value; change a field with `dataclasses.replace`.

    Made by `torch_learner`, which says what the fields mean. Copies share the module's structure
    and working memory, never weights.
    """

    net: Net = field(repr=False)
    loss: Any
    optimizer: str
    lr: float
    epochs: int
    batch_size: int | None
    momentum: float
    weight_decay: float
    nesterov: bool
    betas: tuple[float, float]
    schedule: str | Callable[[int], float] | None
    clip: float | None
    decay: float
    engine: str
    workers: int | None
    moon: tuple[float, float] | None = None
    obeys: ClassVar[frozenset[str]] = frozenset({"pull", "moves"})

    def __post_init__(self) -> None:
        _check(self)

    @property
    def rule(self) -> Rule:
        """The optimiser as the engines take it."""
        from .torch_optim import Rule

        return Rule(self.optimizer, self.momentum, self.nesterov, self.weight_decay, self.betas, self.clip)

    @property
    def plain(self) -> bool:
        """Whether one client's module runs as it is: MOON listens to its layers, and a GPU gains nothing."""
        on_gpu = self.engine == "auto" and self.net.device.type == "cuda"
        return self.engine == "plain" or self.moon is not None or on_gpu

    def init(self, rng: np.random.Generator) -> Update:
        """First params: from `weights`, from the instance given, or drawn by the module under `rng`."""
        return self.net.init(rng)

    def fit(self, params: Mapping[str, Any], data: Any, ctx: FitContext) -> Contribution:
        """Train on `data` (`.x`, `.y`: arrays); weight is its rows, steps the optimiser's steps.

        A client without rows answers zero with weight 0. Metrics: the mean loss of the steps.
        Raises DataError where the data do not fit, MisuseError where the params do not.
        """
        from . import torch_loop

        params = self.net.check(params)
        with self.net.borrow(plain=self.plain) as work:
            return torch_loop.fit(self, work, params, data, ctx)

    def clipped(self, params: Mapping[str, Any], data: Any, norm: float) -> Update:
        """Minus the sum over the rows of their gradients, each scaled to an L2 norm of at most `norm`.

        Raises CompositionError for a module whose rows are not apart (BatchNorm, dropout) or a loss that has
        no name, DataError and MisuseError as `fit` does.
        """
        from . import torch_rows

        params = self.net.check(params)
        with self.net.borrow(plain=False) as work:
            return torch_rows.clipped(self, work, params, data, norm)

    def evaluate(self, params: Mapping[str, Any], data: Any, ctx: FitContext) -> dict[str, float]:
        """{"loss"} over the rows, and {"accuracy"} for classifiers; {} without rows."""
        from . import torch_loop

        params = self.net.check(params)
        with self.net.borrow(plain=self.plain) as work:
            return torch_loop.evaluate(self, work, params, data)

    def fit_many(
        self, params: Mapping[str, Any], datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        """`fit` for each client, by the engine that `chosen` names."""
        from . import torch_vmap
        from .torch_net import one_thread

        params = self.net.check(params)
        if self.chosen == "vmap":
            return torch_vmap.fit_many(self, params, datas, ctxs)
        lanes = min(self.lanes, len(datas))
        if lanes <= 1:
            return [self.fit(params, data, ctx) for data, ctx in zip(datas, ctxs, strict=True)]
        with one_thread(), ThreadPoolExecutor(lanes) as pool:
            return list(pool.map(lambda job: self.fit(params, *job), zip(datas, ctxs, strict=True)))

    def taught(
        self,
        params: Mapping[str, Any],
        datas: Sequence[Any],
        ctxs: Sequence[FitContext],
        temperature: float,
        alpha: float,
    ) -> list[Contribution]:
        """`fit_many` by the loss of learn/distil.py; each `y` (n, classes + 1): teacher's logits, label.

        Raises ConfigError for another loss than cross entropy.
        """
        from .torch_loss import soft

        if self.loss != "cross_entropy":
            raise ConfigError(f"only loss='cross_entropy' can be taught, this learner has {self.loss!r}")
        return replace(self, loss=soft(temperature, alpha)).fit_many(params, datas, ctxs)

    def logits(self, params: Mapping[str, Any], x: Any) -> np.ndarray[Any, Any]:
        """What the module returns for rows x (n, ...)."""
        from . import torch_loop

        with self.net.borrow(plain=self.plain) as work:
            return torch_loop.logits(work, self.net.check(params), np.asarray(x))

    def matched(
        self,
        params: Mapping[str, Any],
        seen: Mapping[str, Any],
        y: Any,
        start: Any,
        span: tuple[float, float],
    ) -> np.ndarray[Any, Any]:
        """Rows of labels `y` whose gradients are like those that an update shows: `atoll attack leak` seeks
        them. `start`: (n, ...), one for each label; `span`: of the numbers. See torch_match.py.
        """
        from . import torch_match

        return torch_match.matched(self, self.net.check(params), seen, y, start, span)

    @property
    def chosen(self) -> str:
        """The engine of `fit_many`: "plain", "loop" or "vmap", by the rule at the top of this file."""
        if self.engine != "auto":
            return self.engine
        from . import torch_vmap

        return "vmap" if torch_vmap.suits(self) else "plain" if self.plain else "loop"

    @property
    def lanes(self) -> int:
        """Threads of `fit_many`: 1 where the module's randomness or layers are not known to be apart."""
        if self.plain or not self.net.apart or self.net.device.type != "cpu":
            return 1
        return self.workers or (_cores() if self.net.convolves else 1)

    def sized(self, features: int, outputs: int) -> TorchLearner:
        """Itself: a module comes with its sizes."""
        return self

    def norm_leaves(self) -> frozenset[str]:
        """Leaves of layers that follow a site's own statistics (BatchNorm and kin); FedBN keeps them."""
        return self.net.norm_leaves()

    def head_leaves(self) -> frozenset[str]:
        """Leaves of the last layer; FedPer and FedRep keep them."""
        return self.net.head_leaves()

    def contrastive(self, mu: float, temperature: float = 0.5) -> TorchLearner:
        """The same learner with MOON's term: `mu` >= 0, `temperature` > 0.

        Its contributions leave the client's new params as state.
        """
        from .torch_moon import last_linear

        if mu < 0 or temperature <= 0:
            raise ConfigError(f"MOON needs mu >= 0 and temperature > 0, got {mu} and {temperature}")
        last_linear(self.net.module)
        return replace(self, moon=(float(mu), float(temperature)))

    def plan(self, row: tuple[int, ...], batch_size: int | None = None, seed: int = 0) -> Plan:
        """This learner as a plan for rows of shape `row`: how it learns, for devices without PyTorch.

        `batch_size`: rows of a step, None for the learner's own. `seed`: of the first values, where the
        module draws them. It has learnt beside this learner before it is given away. Raises ConfigError,
        with the operators' names, for what has no ONNX form.
        """
        from . import torch_plan

        batch = batch_size or self.batch_size
        if batch is None:
            raise ConfigError("a plan takes batches of one size: set batch_size", "$.learner.batch_size")
        return torch_plan.export_plan(self, tuple(row), batch, seed)

    def export(self, params: Mapping[str, Any], path: str | Path, example: Any) -> None:
        """Write the model as ONNX, checked against PyTorch on `example` (n, ...) to 1e-4."""
        from . import torch_plan

        torch_plan.export_model(self, self.net.check(params), Path(path), np.asarray(example))


def torch_learner(
    module: Any,
    loss: Any = "cross_entropy",
    optimizer: str = "sgd",
    lr: float = 0.1,
    epochs: int = 1,
    batch_size: int | None = 10,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,  # noqa: FBT001, FBT002  the names and order of torch.optim
    betas: tuple[float, float] = (0.9, 0.999),
    schedule: str | Callable[[int], float] | None = None,
    clip: float | None = None,
    decay: float = 1.0,
    weights: str | Path | None = None,
    bn: str = "average",
    engine: str = "auto",
    dtype: str = "float32",
    device: str = "cpu",
    workers: int | None = None,
) -> TorchLearner:
    """A learner from any `nn.Module`: an instance (its values are the first params), or a class or
    function that makes one (called under a seed from `init`'s generator).

    `loss`: "cross_entropy", "nll", "mse", "l1", "huber", "bce_with_logits", or a function
    (out, y) -> mean loss. `optimizer`: "sgd", "adam", "adamw", equal to torch.optim; fresh each fit.
    `lr` > 0 is multiplied by `decay` ** round and by `schedule`: "cosine" (to 0 over the fit), "step"
    (a tenth after each third) or a function of the local step, from 0. `batch_size`: rows, None for
    all. `clip`: largest gradient norm of a step. `weights`: a safetensors file of first params.
    `bn`: "average" treats BatchNorm's running statistics as leaves like others, "frozen" never moves
    them. `dtype`: "float32" or "float64". `workers`: threads, None for one per core where that pays.
    Raises ConfigError for values out of range, or without PyTorch.
    """
    try:
        from .torch_net import Net
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ConfigError("torch_learner needs PyTorch: pip install atoll-fl[torch]") from None
    for name, value, known in (("bn", bn, ("average", "frozen")), ("dtype", dtype, ("float32", "float64"))):
        if value not in known:
            raise ConfigError(f"{name} is {' or '.join(known)}, got {value!r}")
    net = Net(module, dtype, device, weights, bn)
    return TorchLearner(
        net, loss, optimizer, lr, epochs, batch_size, momentum, weight_decay, nesterov, betas,
        schedule, clip, decay, engine, workers,
    )  # fmt: skip


def _check(a: TorchLearner) -> None:
    from .torch_loss import loss_of
    from .torch_vmap import refusal
    from .visits import factor

    for kind, name, known in (("optimizer", a.optimizer, OPTIMIZERS), ("engine", a.engine, ENGINES)):
        if name not in known:
            raise ConfigError(f"no {kind} is called {name!r}: {nearest(name, known)}")
    loss_of(a.loss)
    if isinstance(a.schedule, str):
        factor(a.schedule, 0, 1)
    _check_ranges(a)
    reason = refusal(a) if a.engine == "vmap" else ""
    if reason:
        raise ConfigError(f"engine='vmap' cannot run this learner: {reason}; use engine='auto'")


def _check_ranges(a: TorchLearner) -> None:
    for name in ("lr", "momentum", "weight_decay", "decay"):
        if not isinstance(getattr(a, name), Real):
            raise ConfigError(f"{name} must be a number, got {getattr(a, name)!r}")
    limits = (
        ("lr", a.lr > 0, "above 0"),
        ("epochs", a.epochs >= 1, "at least 1"),
        ("batch_size", a.batch_size is None or a.batch_size >= 1, "at least 1, or None for all rows"),
        ("momentum", 0 <= a.momentum < 1, "in [0, 1)"),
        ("weight_decay", a.weight_decay >= 0, "at least 0"),
        ("betas", all(0 <= b < 1 for b in a.betas), "in [0, 1)"),
        ("clip", a.clip is None or a.clip > 0, "above 0, or None"),
        ("decay", a.decay > 0, "above 0"),
        ("workers", a.workers is None or a.workers >= 1, "at least 1, or None"),
    )
    for name, right, wanted in limits:
        if not right:
            raise ConfigError(f"{name} must be {wanted}, got {getattr(a, name)}")
    if a.optimizer != "sgd" and (a.momentum or a.nesterov):
        raise ConfigError(f"momentum and nesterov belong to 'sgd'; {a.optimizer!r} takes betas")
    if a.nesterov and not a.momentum:
        raise ConfigError("nesterov needs a momentum above 0")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
