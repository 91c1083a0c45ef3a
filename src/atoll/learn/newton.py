"""Linear, ridge, logistic and softmax regression, solved exactly by Newton's method on sums.

Each site sends the loss, gradient and Hessian of its rows at w; with them summed the server takes
the Newton step of the whole federation, as if the rows lay in one place (IRLS: McCullagh, Nelder
1989, "Generalized linear models", §2.5; for sites: Wu, Jiang, Kim, Ohno-Machado 2012, "Grid binary
logistic regression (GLORE)"). With squared loss the first step is the solution, from X'X and
X'y; a second one removes its rounding error.

    F(w) = Σ_rows loss(y, x·w + b) + ½ Σ_j l2_j w_j²          b bears no penalty

A step that raised F is halved from where it began. Directions the data do not determine
(collinear columns, the common shift of softmax's biases) are left at 0: the step is the shortest
one. Separable classes with l2 = 0 have no finite optimum: w grows until the rounds end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError, DataError
from atoll.core.message import Contribution, FitContext
from atoll.core.registry import part
from atoll.core.transform import Context, State, Transform, transform
from atoll.core.update import Update

from .algorithm import Algorithm
from .exact import close, exact
from .table import present

Floats: TypeAlias = NDArray[np.float64]
Loss: TypeAlias = Literal["squared", "logistic", "softmax"]


_BLOCK = 4096  # rows at a time: the curvature of softmax takes outputs² numbers a row


@dataclass(frozen=True, eq=False)
class Newton:
    """A learner that contributes sums of loss, gradient and Hessian; see `newton_learner`."""

    features: int
    outputs: int
    loss: Loss
    intercept: bool = True
    shift: Floats | None = None
    scale: Floats | None = None
    bound: float = 2.0**40

    @property
    def bounds(self) -> Mapping[str, float]:
        """The same for all sums."""
        return dict.fromkeys(("loss", "gradient", "hessian"), self.bound)

    def sized(self, features: int | tuple[int, ...], outputs: int) -> Newton:
        """The same for data of this width; squared and logistic loss have one output."""
        width = int(np.prod(features))
        return replace(self, features=width, outputs=outputs if self.loss == "softmax" else 1)

    def init(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Zeros: w (outputs, features) and, with an intercept, b (outputs,).

        Raises ConfigError where the width of x is unknown.
        """
        if self.features < 1:
            raise ConfigError("the width of x is unknown: pass features=, or at.Sites as data", "$.learner")
        w = {"w": np.zeros((self.outputs, self.features))}
        return {**w, "b": np.zeros(self.outputs)} if self.intercept else w

    def contributes(self, params: Update) -> Update:
        """Zeros: loss (1,), gradient (p,), hessian (p, p) for the p numbers of params, in their order."""
        p = params.layout.size
        return Update.of({"loss": np.zeros(1), "gradient": np.zeros(p), "hessian": np.zeros((p, p))})

    def fit(self, params: Update, data: Any, ctx: FitContext) -> Contribution:
        """The sums over this site's rows at params; the gradient points downhill."""
        a, y = self._rows(data)  # (n, q), q features and the 1 of the intercept
        k, q = self.outputs, a.shape[1]
        loss, gradient, hessian = 0.0, np.zeros((k, q)), np.zeros((k, q, k, q))
        for start in range(0, len(y), _BLOCK):
            block = a[start : start + _BLOCK]
            curve = _LOSSES[self.loss](self._answers(block, params), y[start : start + _BLOCK])
            loss += float(curve.loss.sum())
            gradient += curve.slope.T @ block
            for i, j in np.ndindex(k, k):
                hessian[i, :, j] += (block * curve.bend[:, i, j, None]).T @ block
        order = np.arange(k * q).reshape(k, q)
        order = np.concatenate([order[:, : self.features].reshape(-1), order[:, self.features :].reshape(-1)])
        return Contribution(
            {
                "loss": np.array([loss]),
                "gradient": gradient.reshape(-1)[order],
                "hessian": hessian.reshape(k * q, k * q)[np.ix_(order, order)],
            },
            float(len(y)),
        )

    def evaluate(self, params: Update, data: Any, ctx: FitContext) -> Mapping[str, Any]:
        """Mean loss, and accuracy where there are classes."""
        a, y = self._rows(data)
        answers = self._answers(a, params)
        found = {"loss": float(_LOSSES[self.loss](answers, y).loss.mean())}
        if self.loss == "squared":
            return found
        guess = answers.argmax(axis=1) if self.loss == "softmax" else answers[:, 0] > 0
        return {**found, "accuracy": float(np.mean(guess == y))}

    def plain(self, params: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """Coefficients (outputs, features) and intercepts (outputs,) for x as it is, unscaled."""
        w = np.asarray(params["w"]) / (1 if self.scale is None else self.scale)
        b = np.asarray(params["b"]) if self.intercept else np.zeros(self.outputs)
        return w, b if self.shift is None else b - w @ self.shift

    def _rows(self, data: Any) -> tuple[Floats, NDArray[Any]]:
        x, y = present(data, self.features), np.asarray(data.y)
        if self.loss != "squared":
            classes = max(self.outputs, 2)
            if y.dtype.kind not in "iub" or (y.size and (y.min() < 0 or y.max() >= classes)):
                raise DataError(f"labels must be whole numbers in 0..{classes - 1}, the same at every site")
        z = (x - (0 if self.shift is None else self.shift)) / (1 if self.scale is None else self.scale)
        return (np.column_stack([z, np.ones(len(z))]) if self.intercept else z), y

    def _answers(self, a: Floats, params: Update) -> Floats:
        w = np.column_stack([params["w"], params["b"]]) if self.intercept else params["w"]
        return np.asarray(a @ w.T)  # (n, outputs)


@part("learner", "newton")
def newton_learner(
    loss: Loss = "logistic",
    features: int = 0,
    outputs: int = 1,
    *,
    intercept: bool = True,
    bound: float = 2.0**40,
) -> Newton:
    """Linear, logistic or softmax regression by exact Newton steps; use with the algorithm `newton`.

    `features`, `outputs`: taken from the data where 0. `bound`: no site's sum of squares of a
    column may exceed it; standardise first (`at.statistics`) and the default is far away.
    Labels are whole numbers from 0: two for logistic, `outputs` for softmax.
    """
    if loss not in _LOSSES:
        raise ConfigError(f"loss is one of {', '.join(_LOSSES)}, got {loss!r}", "$.loss")
    return Newton(features, outputs, loss, intercept, bound=bound)


class Curve(NamedTuple):
    """Of n rows: `loss` (n,), `slope` (n, k) = -d loss / d answer, `bend` (n, k, k) second derivatives."""

    loss: Floats
    slope: Floats
    bend: Floats


def _squared(answers: Floats, y: NDArray[Any]) -> Curve:
    gap = y.reshape(len(y), -1) - answers
    bend = np.broadcast_to(np.eye(answers.shape[1]), (*answers.shape, answers.shape[1]))
    return Curve(0.5 * (gap * gap).sum(axis=1), gap, bend)


def _logistic(answers: Floats, y: NDArray[Any]) -> Curve:
    answer = answers[:, 0]
    p = np.exp(-np.logaddexp(0.0, -answer))
    loss = np.logaddexp(0.0, answer) - y * answer
    return Curve(loss, (y - p)[:, None], (p * np.exp(-np.logaddexp(0.0, answer)))[:, None, None])


def _softmax(answers: Floats, y: NDArray[Any]) -> Curve:
    answers = answers - answers.max(axis=1, keepdims=True)
    log_p = answers - np.log(np.exp(answers).sum(axis=1, keepdims=True))
    p, truth = np.exp(log_p), np.eye(answers.shape[1])[y]
    bend = p[:, :, None] * (np.eye(answers.shape[1]) - p[:, None, :])
    return Curve(-(log_p * truth).sum(axis=1), truth - p, bend)


_LOSSES = {"squared": _squared, "logistic": _logistic, "softmax": _softmax}


def newton(l2: float | Floats = 0.0) -> Transform:
    """Coming back, the Newton step of the penalised sum; half of the last one where F rose.

    `l2` >= 0: the penalty, one number or one for each feature.
    """
    if not np.all(np.asarray(l2) >= 0):
        raise ConfigError("l2 must be at least 0", "$.l2")

    def init(params: Update) -> State:
        cost = {n: np.zeros(w.shape) + (l2 if n == "w" else 0.0) for n, w in params.items()}
        return params, params, params.zeros(), np.inf, Update.of(cost)

    def back(sums: Update, state: State, ctx: Context) -> tuple[Update, State]:
        w, base, step, least, penalty = state  # at w, come by `step` from `base`, where F was `least`
        value = float(sums["loss"][0]) + 0.5 * float(penalty.buffer @ w.buffer**2)
        if value > least + 1e-12 * abs(least):
            step = step.scale(0.5)
        else:
            downhill = sums["gradient"] - penalty.buffer * w.buffer
            step = Update(w.layout, shortest(sums["hessian"] + np.diag(penalty.buffer), downhill))
            base, least = w, value
        change = base + step - w
        return change, (w + change, base, step, least, penalty)

    return transform("newton()", back=back, init=init, keeps="back")


@part("algorithm", "newton")
def exact_newton(l2: float = 0.0, tol: float = 1e-5) -> Algorithm:
    """Newton's method on summed gradients and Hessians, until no number moves by more than `tol`.

    Near the optimum the error after a step is about its square: 1e-5 leaves some 1e-10.
    """
    return replace(exact(newton(l2), still=close(tol)), name="newton", values={"l2": l2, "tol": tol})


def shortest(h: Floats, g: Floats) -> Floats:
    """The shortest s that minimises ½ s'Hs - g's; directions without curvature stay 0.

    `h`: (p, p) positive semidefinite, `g`: (p,).
    """
    values, vectors = np.linalg.eigh(h)
    keep = values > len(g) * np.finfo(np.float64).eps * values.max(initial=0.0)
    along = vectors[:, keep].T @ g
    return np.asarray(vectors[:, keep] @ (along / values[keep]))
