"""A plan as a learner: the network that somebody wrote in PyTorch learns here without it.

It visits rows in the same order as `torch_learner`, at the same rates, so both come to the same params: to
1e-5 after twenty steps of SGD, to 1e-3 of Adam, which divides one rounding by another where a gradient is
near zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CompositionError, ConfigError, DataError, MisuseError, StateError
from ..core.message import Contribution, FitContext
from ..core.registry import part
from ..core.rng import shuffles
from ..core.update import Update
from ..wire.files import whole
from ..wire.initialisers import filled
from .plan import Plan
from .plan_gate import Limits
from .plan_run import Runner, Steps, padded
from .rows import labels, rows_of
from .visits import batches, factor, step_count

Array = NDArray[Any]


@dataclass(frozen=True)
class PlanLearner:
    """A plan followed; see `plan_learner`. `sha256` names the plan, `plan` is None until it is `given`.

    `seconds` > 0: what one step may take here. The optimiser's other figures are the plan's own.
    """

    plan: Plan | None
    sha256: str
    lr: float | None = None
    epochs: int | None = None
    seconds: float = field(default=Limits().seconds, repr=False)
    obeys: ClassVar[frozenset[str]] = frozenset({"pull", "moves"})

    def __post_init__(self) -> None:
        for name, right, wanted in (
            ("lr", self.lr is None or self.lr > 0, "above 0"),
            ("epochs", self.epochs is None or self.epochs >= 1, "at least 1"),
            ("seconds", self.seconds > 0, "above 0"),
        ):
            if not right:
                raise ConfigError(f"{name} must be {wanted}, got {getattr(self, name)}", f"$.{name}")
        if self.plan is not None:
            training = self.plan.about.training
            object.__setattr__(self, "lr", self.lr or training.lr)
            object.__setattr__(self, "epochs", self.epochs or training.epochs)

    def __getattr__(self, name: str) -> Any:
        """The optimiser's own figures: algorithms that divide by the rate ask whether it is plain SGD."""
        if name in ("optimizer", "momentum", "schedule", "clip", "decay"):
            return getattr(self._plan.about.training, name)
        raise AttributeError(name)

    @property
    def _plan(self) -> Plan:
        if self.plan is None:
            raise MisuseError(f"plan {self.sha256[:12]} has not been brought here: give its file")
        return self.plan

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self._plan.about.batch

    def given(self, plan: Plan, seconds: float = Limits().seconds) -> PlanLearner:
        """The learner with the plan that it names. Raises MisuseError for another one."""
        if plan.sha256 != self.sha256:
            raise MisuseError(f"the job's plan is {self.sha256[:12]}, and this is {plan.sha256[:12]}")
        return replace(self, plan=plan, seconds=seconds)

    def init(self, rng: np.random.Generator) -> Update:
        """The first values that were exported with the plan; `rng` draws nothing."""
        if self._plan.first is None:
            raise MisuseError("this plan came without first values: they are where the job was submitted")
        return self._plan.first

    def sized(self, features: int | tuple[int, ...], outputs: int) -> PlanLearner:
        """Itself; raises ConfigError where the rows are of another shape than the plan's."""
        row = features if isinstance(features, tuple) else (features,)
        if self.plan is not None and tuple(row) != self.plan.about.row:
            raise ConfigError(f"the plan takes rows of shape {self.plan.about.row}, the data have {row}")
        return self

    def fit(self, params: Mapping[str, Any], data: Any, ctx: FitContext) -> Contribution:
        """Train on `data` (`.x`, `.y`: arrays); weight is its rows, steps the optimiser's steps.

        A client without rows answers zero with weight 0. Metrics: the mean loss of the steps.
        Raises DataError where the data do not fit, MisuseError where the params do not, StateError where a
        step takes too long.
        """
        plan, params = self._plan, self._checked(params)
        x, y = self.rows(data)
        n, size, epochs = len(x), self.batch_size, int(self.epochs or 1)
        if not n:
            return Contribution(params.zeros(), 0.0, steps=0)
        steps = Steps(plan, params, self.seconds, ctx.pull, ctx.moves)
        orders = shuffles(np.array([ctx.key.key], np.uint64), epochs, n)[0]
        count, total = step_count(n, size, epochs), 0.0
        rate = float(self.lr or 0.0) * self.decay**ctx.round
        with steps.runner.timed(count):
            for at, (epoch, here) in enumerate(batches(n, size, epochs)):
                rows = orders[epoch][here]
                if at == count - 1:
                    steps.runner.last()
                total += steps.take(x[rows], y[rows], rate * factor(self.schedule, at, count))
        change = steps.change().buffer.astype(params.buffer.dtype, copy=False)
        return Contribution(Update(params.layout, change), float(n), {"loss": total / count}, steps=count)

    def evaluate(
        self, params: Mapping[str, Any], data: Any, ctx: FitContext | None = None
    ) -> dict[str, float]:
        """{"loss"} over the rows, and {"accuracy"} for classifiers; {} without rows."""
        x, y = self.rows(data)
        if not len(x):
            return {}
        runner = Runner(self._plan, "evaluate", self.seconds)
        leaves = runner.values(self._checked(params))
        sums = dict.fromkeys(runner.gives, 0.0)
        with runner.timed(step_count(len(x), self.batch_size, 1)):
            for _, here in batches(len(x), self.batch_size, 1):
                found = runner(leaves | runner.values(padded(self._plan, x[here], y[here])))
                for name in sums:
                    sums[name] += float(found[name].numpy())
        names = {"loss": "loss", "hits": "accuracy"}
        return {names[name]: total / len(x) for name, total in sums.items()}

    def clipped(self, params: Mapping[str, Any], data: Any, norm: float) -> Update:
        """Minus the sum over the rows of their gradients, each scaled to an L2 norm of at most `norm`.

        Raises CompositionError for a plan whose network's rows are not apart (BatchNorm), DataError and
        MisuseError as `fit` does.
        """
        plan = self._plan
        if "clipped" not in plan.graphs:
            raise CompositionError(
                "this plan clips no single rows: its network's rows are not known to be apart"
            )
        params = self._checked(params)
        x, y = self.rows(data)
        runner = Runner(plan, "clipped", self.seconds)
        size = runner.takes["x"][0]
        fixed = runner.values({**params, "norm": np.float32(norm)})
        total = {name: np.zeros(shape, np.float32) for name, shape in params.layout.leaves}
        with runner.timed(step_count(len(x), size, 1)):
            for _, here in batches(len(x), size, 1) if len(x) else ():
                found = runner(fixed | runner.values(padded(plan, x[here], y[here], size)))
                for name in plan.about.trained:
                    total[name] -= found["sum/" + name].numpy()
        made = Update.of(total)
        if not made.finite():
            raise DataError("training diverged, or rows hold numbers too large: fill or drop such rows first")
        return made

    def answers(self, params: Mapping[str, Any], x: Any) -> dict[str, Array]:
        """What the exported model answers to rows x (n, ...), computed here."""
        runner = Runner(self._plan, "predict", self.seconds)
        leaves, x = runner.values(self._checked(params)), np.asarray(x, np.float32)
        size = self.batch_size
        pieces = [x[at : at + size] for at in range(0, max(len(x), 1), size)]
        with runner.timed(len(pieces)):
            parts = [runner(leaves | runner.values({"x": piece})) for piece in pieces]
        return {name: np.concatenate([part[name].numpy() for part in parts]) for name in runner.gives}

    def export(self, params: Mapping[str, Any], path: str | Path, example: Any = None) -> None:
        """Write the model for serving: the plan's predictions with these params in them, any number of rows.

        Needs no package that writes ONNX. `example`: rows, whose shape has to fit. Raises StateError where
        the file cannot be written.
        """
        if example is not None and np.shape(example)[1:] != self._plan.about.row:
            raise DataError(f"the plan takes rows of shape {self._plan.about.row}, got {np.shape(example)}")
        file = Path(path)
        try:
            with whole(file) as out:
                out.write(filled(self._plan.graphs["predict"], self._checked(params)))
        except OSError as error:
            raise StateError(f"{file} cannot be written: {error.strerror}") from None

    def head_leaves(self) -> frozenset[str]:
        """Leaves of the last layer; FedPer and FedRep keep them."""
        return frozenset(self._plan.about.head)

    def norm_leaves(self) -> frozenset[str]:
        """Leaves of layers that follow a site's own statistics; FedBN keeps them."""
        return frozenset(self._plan.about.norms)

    def _checked(self, params: Mapping[str, Any]) -> Update:
        params = Update.of(params)
        mine, theirs = self._plan.layout.shapes, params.layout.shapes
        if mine != theirs:
            odd = next(n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n))
            have, got = mine.get(odd, "none"), theirs.get(odd, "none")
            raise MisuseError(f"params do not fit the plan at leaf {odd!r}: it has {have}, got {got}")
        return params

    def rows(self, data: Any) -> tuple[Array, Array]:
        """The client's rows as the graphs take them. Raises DataError."""
        about = self._plan.about
        x, y = rows_of(data)
        if not len(x):
            return x, y
        if x.shape[1:] != about.row:
            raise DataError(f"the plan takes rows of shape {about.row}, got {x.shape[1:]}")
        return x.astype(np.float32, copy=False), labels(about.loss, y, about.out, np.float32)


def plan_learner(
    plan: Plan | str | os.PathLike[str], lr: float | None = None, epochs: int | None = None
) -> PlanLearner:
    """A learner from a plan or its file: needs numpy and ONNX Runtime, and no PyTorch.

    `lr` > 0, `epochs` >= 1: None for those it was exported with. Raises ProtocolError for a plan that may not
    run here, with the reason, StateError for a file that is not there.
    """
    found = plan if isinstance(plan, Plan) else Plan.read(plan)
    return PlanLearner(found, found.sha256, lr, epochs)


@part("learner", "plan")
def _named(
    file: str = "", sha256: str = "", blob: str = "", lr: float | None = None, epochs: int | None = None
) -> PlanLearner:
    """A network exported from PyTorch, which learns by ONNX Runtime: a plan's `file`.

    In a job that travels `sha256` names the plan, and `blob` the coordinator's copy of it.
    """
    if file:
        return plan_learner(file, lr, epochs)
    if len(sha256) != 64:
        raise ConfigError('a plan learner needs its file, as in file = "net.plan"', "$.file")
    return PlanLearner(None, sha256, lr, epochs)
