"""A small student learns from what a large teacher answers, beside the labels.

Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network", section 2. With the
teacher's logits t, the student's z, a temperature T and the label y:

    L = alpha T² KL(softmax(t / T) || softmax(z / T)) + (1 - alpha) CE(y, softmax(z))

T² keeps the size of the first term's gradient, T (softmax(z / T) - softmax(t / T)), where T changes.

A distilled student is a learner like any other, so it is trained by any job: on pooled rows with one client,
or at the sites, where each asks its own copy of the teacher about its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from ..core.message import Contribution, FitContext
from ..core.update import Update
from .batched import losses
from .task import Array
from .wrapped import Wrapped

Teacher: TypeAlias = Callable[[Any], NDArray[Any]]


def distil(teacher: Any, student: Any, temperature: float = 4.0, alpha: float = 0.9) -> Distilled:
    """The student as a learner that also follows the teacher; params and export are the student's own.

    `teacher`: a function from rows (n, ...) to logits (n, classes), a finished run, or a loaded model with
    `run(x)`; probabilities are taken as logits by their logarithm. `student`: a learner that can be `taught`,
    as `mlp`, `softmax` and `torch_learner` with cross entropy. `temperature` > 0; `alpha` in [0, 1]: the
    teacher's share of the loss. Raises ConfigError for another student or a value out of its range.
    """
    if not temperature > 0 or not 0 <= alpha <= 1:
        raise ConfigError(f"distil needs temperature > 0 and alpha in [0, 1], got {temperature} and {alpha}")
    if not hasattr(student, "taught"):
        raise ConfigError(f"{type(student).__name__} cannot be taught: give mlp, softmax or a torch_learner")
    return Distilled(student, _logits_of(teacher), float(temperature), float(alpha))


@dataclass(frozen=True)
class Distilled(Wrapped):
    """A student whose fit follows a teacher; made by `distil`. What the teacher said of rows is kept."""

    teacher: Teacher
    temperature: float
    alpha: float
    _said: dict[Any, tuple[Any, Array]] = field(default_factory=dict, compare=False, repr=False)

    def sized(self, features: int | tuple[int, ...], outputs: int) -> Distilled:
        """The same with its student sized."""
        sized = self.learner.sized(features, outputs)
        return Distilled(sized, self.teacher, self.temperature, self.alpha, self._said)

    def fit_many(
        self, params: Update, datas: Sequence[Any], ctxs: Sequence[FitContext]
    ) -> list[Contribution]:
        taught = [SimpleNamespace(x=data.x, y=self._lesson(data)) for data in datas]
        made: list[Contribution] = self.learner.taught(params, taught, ctxs, self.temperature, self.alpha)
        return made

    def _lesson(self, data: Any) -> Array:
        """(n, classes + 1): the teacher's logits, and last the label. Raises DataError for others."""
        x, y = np.asarray(data.x), np.asarray(data.y)
        key = (x.__array_interface__["data"][0], x.shape, x.strides)
        if key not in self._said:
            # with x held, no other rows can take its place in memory
            self._said[key] = (x, np.asarray(self.teacher(x), np.float32))
        logits = self._said[key][1]
        if logits.ndim != 2 or len(logits) != len(x):
            raise DataError(f"a teacher answers (n, classes) for n rows; got {logits.shape} for {len(x)}")
        if y.dtype.kind not in "iu" or (len(y) and not 0 <= y.min() <= y.max() < logits.shape[1]):
            raise DataError(f"labels must be the teacher's classes, 0 to {logits.shape[1] - 1}")
        return np.concatenate([logits, y[:, None].astype(np.float32)], axis=1)


def soft(temperature: float, alpha: float, z: Array, lesson: Array) -> tuple[Array, Array, Array]:
    """d(loss)/dz as z (m, B, classes); over the rows the summed loss and count of right classes, both (m,).

    `lesson` (m, B, classes + 1): the teacher's logits, and last the label.
    """
    hard, total, hits = losses("softmax", z, lesson[..., -1].astype(np.int64))
    p, log_p = _softmax(lesson[..., :-1] / z.dtype.type(temperature))
    q, log_q = _softmax(z / z.dtype.type(temperature))
    kl = (p * (log_p - log_q)).sum(axis=(1, 2), dtype=np.float64)
    d = (1 - alpha) * hard + alpha * temperature * (q - p)
    return d.astype(z.dtype), alpha * temperature**2 * kl + (1 - alpha) * total, hits


def _softmax(z: Array) -> tuple[Array, Array]:
    z = z - z.max(axis=-1, keepdims=True)
    log = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return np.exp(log), log


def _logits_of(teacher: Any) -> Teacher:
    if hasattr(teacher, "learner") and hasattr(teacher, "params"):
        own = getattr(teacher.learner, "logits", None)
        if own is not None:
            return lambda x: np.asarray(own(teacher.params, x))
        if hasattr(teacher.learner, "answers"):
            return lambda x: _logits(teacher.learner.answers(teacher.params, x))
    elif hasattr(teacher, "run"):
        return lambda x: _logits(teacher.run(np.ascontiguousarray(x, np.float32)))
    elif callable(teacher):
        return teacher  # type: ignore[no-any-return]
    raise ConfigError(
        f"{type(teacher).__name__} is no teacher: give a function from rows to logits, a run or a model"
    )


def _logits(answers: Mapping[str, Array]) -> Array:
    if "probabilities" in answers:
        return np.log(np.maximum(answers["probabilities"], np.float32(1e-30)))
    return next(iter(answers.values()))
