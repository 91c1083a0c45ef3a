"""Learners of dense layers: linear, logistic and softmax regression, and the MLP.

Layer l maps rows h (n, in) to h W + b, W (in, out); hidden layers end in relu or tanh. Training
is SGD with momentum and weight decay exactly as torch.optim.SGD, on the mean loss of each batch:
squared, mean of (z - y)²; logistic and softmax, their cross entropy.

One model, two engines (`Dense.engine` says which): kernel.c, and batched.py where that was not
built or float64 is wanted. They agree to 1e-5 after a round; within one, the same seed gives the
same bytes for any grouping of clients and any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache, partial
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError, DataError, MisuseError
from atoll.core.message import Contribution, FitContext, Pull
from atoll.core.registry import part
from atoll.core.rng import shuffles
from atoll.core.update import Layout, Update

from . import batched, dense_graph, kernel
from .clipped import clipped_sum
from .distil import soft
from .rows import rows
from .task import Array, Loss, Tally, Task, Work, leaves, metrics

MOST_LAYERS = 31  # kernel.c keeps one bit a leaf
PLAIN = Pull()


@dataclass(frozen=True, slots=True)
class Dense:
    """Dense layers trained by SGD; made by `linear`, `logistic`, `softmax` and `mlp`.

    `features`, `outputs`: widths of a row and of the answer, None until `sized` fills them.
    `hidden`: widths of the layers between. `activation`: relu or tanh. `loss`: squared, logistic
    (one output, two classes) or softmax (an output a class). `lr` > 0, times `decay` each round.
    `batch_size`: rows a step, None for all. `momentum`, `weight_decay` >= 0. `dtype`: float32 or
    float64. `kernel`: auto, c or numpy. `workers`: cores to use, None for all
    of them. Raises ConfigError for a value out of its range.

    Params are leaves `layer0.weight` (in, out), `layer0.bias` (out,), `layer1.weight`, ...
    Data are any object with `x` (n, features) and `y`: (n,) whole-number classes, or (n,) or
    (n, outputs) targets; rows of more dimensions, such as images, are read flat.
    """

    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    loss: str = "softmax"
    features: int | None = None
    outputs: int | None = None
    lr: float = 0.1
    epochs: int = 1
    batch_size: int | None = 32
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: float = 1.0
    dtype: str = "float32"
    kernel: str = "auto"
    workers: int | None = None
    obeys: ClassVar[frozenset[str]] = frozenset({"pull", "moves"})

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, (list, tuple)):
            raise ConfigError(f"hidden must be a list of widths, as in [200, 100], got {self.hidden!r}")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.loss == "logistic" and self.outputs == 2:
            object.__setattr__(self, "outputs", 1)
        _check(self)

    def sized(self, features: int | tuple[int, ...], outputs: int) -> Self:
        """The same learner for rows of `features` numbers, or this shape, and `outputs` classes or targets.

        A logistic learner tells two classes apart with one output: both 1 and 2 say that.
        Raises ConfigError where other widths were set before.
        """
        wide = math.prod(features) if isinstance(features, tuple) else features
        asked = replace(self, features=wide, outputs=outputs)
        for name in ("features", "outputs"):
            mine, wanted = getattr(self, name), getattr(asked, name)
            if mine not in (None, wanted):
                raise ConfigError(f"the learner has {mine} {name}, the data {wanted}: leave {name} out")
        return asked

    @property
    def engine(self) -> str:
        """Which engine trains, and why: "c (avx512)" or "numpy (float64 is asked for)"."""
        if self.kernel == "numpy":
            return "numpy (asked for)"
        if self.dtype == "float64":
            return "numpy (float64 is asked for)"
        if kernel.level() < 0:
            return "numpy (this installation has no compiled kernel: it was built without a C compiler)"
        return f"c ({kernel.LEVELS[kernel.level()]})"

    def head_leaves(self) -> frozenset[str]:
        """The names of the last layer's leaves."""
        return frozenset(leaf.name for leaf in leaves(self._dims())[-2:])

    def init(self, rng: np.random.Generator) -> Update:
        """Zeros for a model without hidden layers; else uniform in ±1/sqrt(in), as PyTorch's Linear."""
        layout = _layout(self._dims())
        buffer = np.zeros(layout.size, self.dtype)
        if self.hidden:
            for at, width in enumerate(self._dims()[:-1]):
                for name in (f"layer{at}.weight", f"layer{at}.bias"):
                    place = layout.slices[name]
                    buffer[place] = rng.uniform(-1, 1, place.stop - place.start) / np.sqrt(width)
        return Update(layout, buffer)

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """Train on one client's rows; `fit_many` of one."""
        return self.fit_many(params, [data], [ctx], threads=1)[0]

    def fit_many(
        self,
        params: Update,
        datas: Sequence[Any],
        ctxs: Sequence[FitContext],
        pool: Executor | None = None,
        threads: int | None = None,
    ) -> list[Contribution]:
        """Train on each client's rows, each from `params`; the updates are views of one array.

        `threads`: None for `workers`; `pool` lends them, None for one kept by the engine. Neither
        changes the answer. A client without rows answers zeros with weight 0. Training that diverges
        answers what it reached, NaN included. `metrics` are means over all rows visited, each
        under the weights its batch met.
        Raises DataError for NaN in x, a wrong width, a class outside 0..outputs-1; MisuseError for
        params or pull terms of another model.
        """
        read = [rows(data, self._dims(), self.loss, self.dtype) for data in datas]
        return self._trained(params, read, ctxs, self.loss, pool, threads)

    def taught(
        self,
        params: Update,
        datas: Sequence[Any],
        ctxs: Sequence[FitContext],
        temperature: float,
        alpha: float,
    ) -> list[Contribution]:
        """`fit_many` by the loss of distil.py, in numpy; `y` (n, outputs + 1): teacher's logits, label.

        Raises ConfigError for another loss than softmax, DataError and MisuseError as `fit_many`.
        """
        if self.loss != "softmax":
            raise ConfigError(f"only a softmax learner can be taught, this one has loss={self.loss!r}")
        wide = (*self._dims()[:-1], self._dims()[-1] + 1)
        read = [rows(data, wide, "squared", self.dtype) for data in datas]
        return self._trained(params, read, ctxs, partial(soft, temperature, alpha))

    def _trained(
        self,
        params: Update,
        read: Sequence[tuple[Array, Array]],
        ctxs: Sequence[FitContext],
        loss: str | Loss,
        pool: Executor | None = None,
        threads: int | None = None,
    ) -> list[Contribution]:
        start = self._numbers(params, "params")
        tasks = self._tasks(read, ctxs)
        batch = self.batch_size or max((len(task.x) for task in tasks), default=1) or 1
        sgd = (self.epochs, batch, self.momentum, self.weight_decay)
        work = Work(self._dims(), loss, self.activation, *sgd, start)
        deltas = np.empty((len(tasks), start.size), start.dtype)
        if self.engine.startswith("c ") and not callable(loss):
            tally = kernel.train(work, tasks, deltas, threads=threads or self.workers, pool=pool)
        else:
            tally = batched.train(work, tasks, deltas)
        _refuse_bad(tasks, ctxs, tally)
        return self._answers(tasks, deltas, tally, batch)

    def clipped(self, params: Update, data: Any, norm: float) -> Update:
        """Minus the sum over the rows of their gradients, each scaled to an L2 norm of at most `norm`.

        Raises DataError and MisuseError as `fit_many` does.
        """
        start = self._numbers(params, "params")
        x, y = rows(data, self._dims(), self.loss, self.dtype)
        if batched.misfit(self.loss, self._dims(), y):
            raise DataError("y has a label outside the model's classes 0, 1, ...: map labels to those")
        total = clipped_sum(self._dims(), self.loss, self.activation, start, x, y, norm)
        return Update(params.layout, (-total).astype(self.dtype))

    def evaluate(self, params: Update, data: Any, ctx: FitContext | None = None) -> Mapping[str, float]:
        """Mean loss and accuracy (mse for the squared loss) over the rows. Raises DataError as `fit`."""
        start = self._numbers(params, "params")
        x, y = rows(data, self._dims(), self.loss, self.dtype)
        total, hits, fault = batched.evaluate(self._dims(), self.loss, self.activation, start, x, y)
        task = Task(x, y, np.empty((0, 0), np.int64), 0.0, 0.0, None, None, ())
        _refuse_bad([task], [ctx], Tally(*(np.array([v]) for v in (total, hits, np.isfinite(total), fault))))
        return metrics(self.loss, total, hits, len(x))

    def answers(self, params: Update, x: Any) -> dict[str, Array]:
        """What the exported model answers to rows x, computed here: see learn/dense_graph.py."""
        start = Update(params.layout, self._numbers(params, "params"))
        return dense_graph.answers(self._dims(), self.loss, self.activation, start, x)

    def export(self, params: Update, path: str | Path, example: Any) -> None:
        """Write the model as ONNX for rows shaped as those of `example`.

        Raises ConfigError without the onnx package, StateError where the file cannot be written.
        """
        start = Update(params.layout, self._numbers(params, "params"))
        dense_graph.export(self._dims(), self.loss, self.activation, start, path, np.shape(example)[1:])

    def _dims(self) -> tuple[int, ...]:
        if self.features is None or self.outputs is None:
            raise ConfigError("the learner's widths are open: give features and outputs, or call sized()")
        return (self.features, *self.hidden, self.outputs)

    def _numbers(self, update: Update, what: str) -> Array:
        """The buffer of an update of this model, in this precision."""
        layout = _layout(self._dims())
        if update.layout != layout:
            raise MisuseError(f"{what} must have this model's leaves, {layout}, got {update.layout}")
        return np.ascontiguousarray(update.buffer, self.dtype)

    def _tasks(self, read: Sequence[tuple[Array, Array]], ctxs: Sequence[FitContext]) -> list[Task]:
        orders = self._orders([len(x) for x, _ in read], ctxs)
        names = [leaf.name for leaf in leaves(self._dims())]
        every = (True,) * len(names)
        tasks = []
        for (x, y), order, ctx in zip(read, orders, ctxs, strict=True):
            pull = ctx.pull or PLAIN
            anchor = None if pull.anchor is None else self._numbers(pull.anchor, "the pull's anchor")
            slope = None if pull.slope is None else self._numbers(pull.slope, "the pull's slope")
            moves = every if ctx.moves is None else tuple(ctx.moves(name) for name in names)
            lr = self.lr * self.decay**ctx.round
            tasks.append(Task(x, y, order, lr, pull.mu, anchor, slope, moves))
        return tasks

    def _orders(self, counts: Sequence[int], ctxs: Sequence[FitContext]) -> list[NDArray[np.int64]]:
        """Each client's visits (epochs, n): shuffled, or as they stand where a batch is all rows."""
        none = np.empty((self.epochs, 0), np.int64)
        orders: list[NDArray[np.int64]] = [none] * len(counts)
        for n in set(counts) - {0}:
            places = [at for at, count in enumerate(counts) if count == n]
            if self.batch_size is None:
                same = np.tile(np.arange(n), (self.epochs, 1))
                drawn: Any = [same] * len(places)
            else:
                drawn = shuffles(np.array([ctxs[at].key.key for at in places], np.uint64), self.epochs, n)
            for at, order in zip(places, drawn, strict=True):
                orders[at] = order
        return orders

    def _answers(self, tasks: Sequence[Task], deltas: Array, tally: Tally, batch: int) -> list[Contribution]:
        layout = _layout(self._dims())
        answers = []
        totals, hits = tally.loss.tolist(), tally.hits.tolist()
        for task, delta, total, right in zip(tasks, deltas, totals, hits, strict=True):
            n = len(task.x)
            seen = metrics(self.loss, total, right, n * self.epochs)
            steps = self.epochs * -(-n // batch)
            answers.append(Contribution(Update(layout, delta), n, seen, steps=steps))
        return answers


@cache
def _layout(dims: tuple[int, ...]) -> Layout:
    return Layout(leaves(dims))


def _check(a: Dense) -> None:
    """Raises ConfigError for the first value that is of another type or out of its range."""
    for name in ("lr", "momentum", "weight_decay", "decay"):
        if not isinstance(getattr(a, name), Real):
            raise ConfigError(f"{name} must be a number, got {getattr(a, name)!r}")
    for name, right, wanted in (
        ("hidden", all(map(_whole, a.hidden)), "widths of at least 1, as in (200, 100)"),
        ("hidden", len(a.hidden) < MOST_LAYERS, f"fewer than {MOST_LAYERS} layers"),
        ("activation", a.activation in kernel.ACTIVATIONS, "relu or tanh"),
        ("loss", a.loss in kernel.LOSSES, "squared, logistic or softmax"),
        ("features", a.features is None or _whole(a.features), "at least 1, or None"),
        ("outputs", a.outputs is None or _whole(a.outputs), "at least 1, or None"),
        ("outputs", a.loss != "logistic" or a.outputs in (None, 1), "1 or 2: logistic knows two classes"),
        ("lr", 0 < a.lr < np.inf, "above 0"),
        ("epochs", _whole(a.epochs), "at least 1"),
        ("batch_size", a.batch_size is None or _whole(a.batch_size), "at least 1, or None for all rows"),
        ("momentum", 0 <= a.momentum < 1, "in [0, 1)"),
        ("weight_decay", 0 <= a.weight_decay < np.inf, "at least 0"),
        ("decay", 0 < a.decay < np.inf, "above 0"),
        ("workers", a.workers is None or _whole(a.workers), "at least 1, or None for every core"),
        ("dtype", a.dtype in ("float32", "float64"), "float32 or float64"),
        ("kernel", a.kernel in ("auto", "c", "numpy"), "auto, c or numpy"),
        ("kernel", a.kernel != "c" or a.dtype == "float32", "auto or numpy: the C kernel is float32 only"),
        ("kernel", a.kernel != "c" or kernel.level() >= 0, "auto or numpy: the C kernel is not built here"),
    ):
        if not right:
            raise ConfigError(f"{name} must be {wanted}, got {getattr(a, name)!r}")


def _whole(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1


def _refuse_bad(tasks: Sequence[Task], ctxs: Sequence[FitContext | None], tally: Tally) -> None:
    """Raises DataError where the data are at fault; numbers that diverge by themselves pass.

    A NaN in x always reaches the loss, so x is searched only where the loss is not finite.
    """
    for at in np.flatnonzero(tally.fault | ~tally.finite).tolist():
        ctx = ctxs[at]
        who = "these data" if ctx is None else f"client {ctx.client}"
        if tally.fault[at]:
            raise DataError(
                f"{who}: y has a label outside the model's classes 0, 1, ...: map labels to those"
            )
        if bad := tasks[at].where():
            raise DataError(f"{who}: x holds NaN or infinity in column {bad}; fill or drop those rows first")


@part("learner")
def linear(
    features: int | None = None,
    outputs: int | None = None,
    lr: float = 0.01,
    epochs: int = 1,
    batch_size: int | None = 32,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: float = 1.0,
    dtype: str = "float32",
    kernel: str = "auto",
) -> Dense:
    """Linear regression by SGD on the squared error; starts from zeros."""
    sgd = (lr, epochs, batch_size, momentum, weight_decay, decay)
    return Dense((), "relu", "squared", features, outputs, *sgd, dtype, kernel)


@part("learner")
def logistic(
    features: int | None = None,
    outputs: int | None = None,
    lr: float = 0.1,
    epochs: int = 1,
    batch_size: int | None = 32,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: float = 1.0,
    dtype: str = "float32",
    kernel: str = "auto",
) -> Dense:
    """Logistic regression by SGD, two classes with one output; starts from zeros."""
    sgd = (lr, epochs, batch_size, momentum, weight_decay, decay)
    return Dense((), "relu", "logistic", features, outputs, *sgd, dtype, kernel)


@part("learner")
def softmax(
    features: int | None = None,
    outputs: int | None = None,
    lr: float = 0.1,
    epochs: int = 1,
    batch_size: int | None = 32,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: float = 1.0,
    dtype: str = "float32",
    kernel: str = "auto",
) -> Dense:
    """Softmax regression by SGD, one output a class; starts from zeros."""
    sgd = (lr, epochs, batch_size, momentum, weight_decay, decay)
    return Dense((), "relu", "softmax", features, outputs, *sgd, dtype, kernel)


@part("learner")
def mlp(
    hidden: tuple[int, ...] = (100,),
    activation: str = "relu",
    loss: str = "softmax",
    features: int | None = None,
    outputs: int | None = None,
    lr: float = 0.1,
    epochs: int = 1,
    batch_size: int | None = 32,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decay: float = 1.0,
    dtype: str = "float32",
    kernel: str = "auto",
) -> Dense:
    """A multi-layer perceptron by SGD; starts as PyTorch's Linear layers do."""
    sgd = (lr, epochs, batch_size, momentum, weight_decay, decay)
    return Dense(hidden, activation, loss, features, outputs, *sgd, dtype, kernel)
