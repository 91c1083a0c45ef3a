"""Rows and labels from what is seen of a round: gradient inversion.

Phong, Aono, Hayashi, Wang, Moriai 2018, "Privacy-preserving deep learning via additively homomorphic
encryption", §3: where the first layer is dense, neuron j's gradients are d_j x and d_j, so that

    x = dW[:, j] / db[j]

shows a row exactly, after any number of local steps on it. Of a sum of n rows every neuron shows a mixture,
and a neuron that only one row has moved still shows that row. Zhao, Mopuri, Bilen 2020, "iDLG: improved deep
leakage from gradients", §3: of the last layer's bias, only the gradient at the row's label is below zero; of
n rows the gradients count the labels, at a model that knows nothing yet.

The worst case is tried: every client has trained on one row, from a fresh model, and the attacker knows more
than any could. Of all that neurons show, what is nearest to a row counts; or else what the neuron that moved
most shows, drawn towards the mean of all other rows as far as helps. The better of the two, on the mean, is
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CompositionError, ConfigError
from ..core.message import Contribution, FitContext, fit_many
from ..core.rng import Rng
from ..core.update import Update
from ..data.examples import Examples
from ..job import Job, prepare
from ..learn.algorithm import fedavg
from ..learn.dense import Dense
from ..learn.secure import secure_sum
from .match import matched
from .watch import released, sent, summed

Array = NDArray[Any]
CLIENTS = (1, 2, 5, 10, 20, 50)
CLEAR = 20.0  # dB: one knows what a picture shows
EXACT = 60.0  # dB: no more is sought
BEST = 99.0  # dB: more is the same row
_ROWS = 40  # tried on, at least, for each number of clients
_FEW = 8  # of them where rows are sought by autograd


@dataclass(frozen=True)
class Leak:
    """What is seen of `clients` with one row each under a `protection`, and what an attack makes of it.

    `psnr`: dB, of the rows' reconstructions on the mean; `mean_image`: of the other rows' mean instead.
    `clear`: the share of rows that were shown with more than 20 dB. `labels`: the share that was right, and
    `guessed` that of a guess from how frequent they are, None where there are none. `pairs`: some rows, and
    their reconstructions.
    """

    protection: str
    clients: int
    psnr: float
    mean_image: float
    clear: float
    labels: float | None
    guessed: float | None
    pairs: tuple[Array, Array] = field(repr=False, compare=False)


Seen = Callable[[dict[int, Contribution], Rng], Update]
Match = Callable[[Update, Array, Array, tuple[float, float]], Array]  # (seen, labels, start, range) -> rows


def leaks(
    job: Job, data: Any, clients: Sequence[int] = CLIENTS, epsilon: float = 2.0, seed: int = 0
) -> Iterator[Leak]:
    """The attack on a client's own update, on secure sums, and on sums with the job's noise, or with that of
    `epsilon` where it promises nothing; as they come in.

    Raises ConfigError for a model whose first layer is not dense, unless it is a PyTorch classifier, or too
    few rows.
    """
    key = Rng.of(seed).at("invert")
    rows = pooled(data)
    if len(rows) <= max(clients):
        raise ConfigError(f"the attack on {max(clients)} clients takes more than {len(rows)} rows")
    learner = prepare(open_job(job), data)
    params = Update.of(learner.init(key.at("init").generator()))
    match = matcher(learner, params, rows.x.shape[1:])
    lengths = [c.update.norm() for c in _made(learner, params, rows[:_ROWS], key).values()]
    for name, sizes, its, seen in _ways(job, len(data), clients, epsilon, float(np.median(lengths))):
        made = partial(_made, prepare(its, data), params)
        for n in sizes:
            yield _tried(name, n, rows, made, seen, match, key.at(n), getattr(data, "outputs", 0))


def _made(learner: Any, params: Update, drawn: Examples, key: Rng) -> dict[int, Contribution]:
    """What clients with one of these rows each learn from it."""
    datas = [drawn[i : i + 1] for i in range(len(drawn))]
    ctxs = [FitContext(key.at("client", i), client=i) for i in range(len(drawn))]
    return dict(enumerate(fit_many(learner, params, datas, ctxs)))


def _ways(
    job: Job, population: int, clients: Sequence[int], epsilon: float, length: float
) -> Iterator[tuple[str, Sequence[int], Job, Seen]]:
    """Each protection, for which numbers of clients, the job that they train, and what is seen."""
    plain = open_job(job)
    yield "none", (1,), plain, lambda made, key: sent(plain.trained, made, key)[0].update
    hidden = _summed(plain)
    yield "secure sum", clients, plain, lambda made, key: summed(hidden.trained, made, key).update
    noisy, name = private(job, population, epsilon, length), "noise"
    assert noisy.privacy is not None  # noqa: S101  made so
    if noisy.exchange.shows == "sum":
        name = "noise and secure sum"
    name = f"{name}, epsilon {noisy.privacy.epsilon:g}"
    yield name, clients, noisy, lambda made, key: released(noisy.trained, made, key, population=len(made))


def open_job(job: Job) -> Job:
    """The job without its promise and its exchange: in the open."""
    exchange = Job(job.learner).exchange
    return job.replace(privacy=None, exchange=exchange)


def private(job: Job, population: int, epsilon: float = 2.0, clip: float = 1.0) -> Job:
    """The job with its promise, or with one for clients; of plain averages where its own take no noise."""
    if job.privacy is not None:
        return job
    asked: dict[str, Any] = {"epsilon": epsilon, "delta": min(1e-5, 0.1 / population), "clip": clip}
    try:
        return job.private(**asked, population=population)
    except (CompositionError, ConfigError):
        return Job(job.learner, fedavg("equal"), rounds=job.rounds, sites=False).private(**asked)


def _summed(job: Job) -> Job:
    try:
        hidden = job.replace(exchange=secure_sum())
        hidden.trained  # noqa: B018  refused when it is made
    except (CompositionError, ConfigError):
        return job.replace(algorithm=fedavg("equal"), exchange=secure_sum())
    return hidden


def pooled(data: Any) -> Examples:
    """All clients' rows."""
    return Examples(np.concatenate([d.x for d in data]), np.concatenate([d.y for d in data]))


def _tried(
    name: str,
    n: int,
    rows: Examples,
    made: Callable[..., Any],
    seen: Seen,
    match: Match | None,
    key: Rng,
    classes: int,
) -> Leak:
    flat = rows.x.reshape(len(rows), -1).astype(np.float64)
    low, high = float(flat.min()), float(flat.max())
    truth, means, near, drawn, like = [], [], [], [], []
    told: list[tuple[float, float]] = []
    slow = isinstance(match, _Modules)  # no layer shows rows
    for i in range(max(1, (_FEW if slow else _ROWS) // n)):
        at = key.at(i)
        ids = at.generator().permutation(len(rows))[:n]
        update = seen(made(rows[ids], at), at)
        mean = np.delete(flat, ids, axis=0).mean(axis=0)
        if slow:
            shown, best = mean[None], mean
        else:
            layer = first(update, flat.shape[1])
            shown, best = np.clip(inverted(*layer), low, high), together(*layer)
        sought = shown
        if match is not None and any(psnr(x, nearest(x, shown), high - low) < EXACT for x in flat[ids]):
            start = mean + at.at("start").generator().normal(0, 0.05 * (high - low), (n, len(mean)))
            sought = match(update, labels(update, n), start, (low, high))
        for x in flat[ids]:
            like.append(nearest(x, sought))
            truth.append(x)
            means.append(mean)
            near.append(nearest(x, shown))
            drawn.append(towards(x, best, mean))
        if classes > 1 and rows.y.dtype.kind == "i":
            told.append(_right(update, rows.y, ids, classes))
    base, *found = (
        np.array([psnr(x, y, high - low) for x, y in zip(truth, made_up, strict=True)])
        for made_up in (means, near, drawn, like)
    )
    better = int(np.argmax([each.mean() for each in found]))
    right, guessed = np.mean(told, axis=0).tolist() if told else (None, None)
    got, pairs = found[better], (np.stack(truth[:10]), np.stack((near, drawn, like)[better][:10]))
    clear = float((got > CLEAR).mean())
    return Leak(name, n, float(got.mean()), float(base.mean()), clear, right, guessed, pairs)


def _right(update: Update, y: Array, ids: Array, classes: int) -> tuple[float, float]:
    """The share of labels that were told, and that a guess by the other rows' labels gets right."""
    n, true = len(ids), np.bincount(y[ids], minlength=classes)
    others = np.bincount(np.delete(y, ids), minlength=classes)
    told = (labels(update, n), np.repeat(np.arange(classes), whole(others / others.sum() * n, n)))
    first, second = (np.minimum(np.bincount(t, minlength=classes), true).sum() / n for t in told)
    return float(first), float(second)


def matcher(learner: Any, params: Update, row: tuple[int, ...]) -> Match | None:
    """What seeks rows with gradients like those seen: for models that match.py knows, and, where no dense
    layer reads the rows, for PyTorch classifiers.
    """
    while hasattr(learner, "learner"):
        learner = learner.learner
    classifies = hasattr(learner, "matched") and learner.loss in ("cross_entropy", "nll")
    if classifies and reads(params, prod(row)) is None:
        return _Modules(learner, params, row)
    if not isinstance(learner, Dense) or learner.loss != "softmax" or len(learner.hidden) > 1:
        return None
    layers = [np.asarray(leaf, np.float64) for leaf in params.values()]

    def match(update: Update, y: Array, start: Array, span: tuple[float, float]) -> Array:
        seen = [np.asarray(leaf, np.float64) for leaf in update.values()]
        return matched(layers, seen, y, start, span, learner.activation)

    return match


@dataclass(frozen=True)
class _Modules:
    """Seeks rows of shape `row` by a PyTorch module's own gradients."""

    learner: Any
    params: Update
    row: tuple[int, ...]

    def __call__(self, update: Update, y: Array, start: Array, span: tuple[float, float]) -> Array:
        found: Array = self.learner.matched(self.params, update, y, start.reshape(-1, *self.row), span)
        return found.reshape(len(found), -1)


def reads(update: Update, features: int) -> tuple[str, str] | None:
    """The names of the first dense layer's weight and bias; None where none reads so many features."""
    for one, two in pairwise(update):
        weight, bias = update[one].shape, update[two].shape
        if len(bias) == 1 and sorted(weight) == sorted((features, *bias)):
            return one, two
    return None


def first(update: Update, features: int) -> tuple[Array, Array]:
    """The first dense layer's weight (features, m) and bias (m,).

    Raises ConfigError where none reads the rows.
    """
    names = reads(update, features)
    if names is None:
        raise ConfigError(
            f"no dense layer reads the {features} numbers of a row, which this attack needs: it is for linear"
            ", logistic and softmax models, the MLP, and PyTorch modules that learn by cross_entropy or nll"
        )
    weight, bias = (np.asarray(update[name], np.float64) for name in names)
    return weight if weight.shape[0] == features else weight.T, bias


def inverted(weight: Array, bias: Array) -> Array:
    """What each neuron that was moved shows, (m, features)."""
    moved = np.abs(bias) > 1e-9 * np.abs(bias).max()
    if not moved.any():
        return np.zeros((1, len(weight)))
    return np.asarray((weight[:, moved] / bias[moved]).T)


def together(weight: Array, bias: Array) -> Array:
    """The row (features,) that all neurons together show, by least squares, which noise disturbs least."""
    return np.asarray(weight @ bias / max(float(bias @ bias), 1e-30))


def labels(update: Update, n: int) -> NDArray[np.int64]:
    """The n labels that the last bias tells of, sorted."""
    gain = np.asarray(update[list(update)[-1]], np.float64).ravel()
    gain = np.array([-gain[0], gain[0]]) if len(gain) == 1 else gain
    unit = max(-float(gain.min()) * len(gain) / n, 1e-30)
    counts = np.maximum(gain / unit + n / len(gain), 0)
    counts *= n / max(counts.sum(), 1e-30)
    return np.repeat(np.arange(len(gain)), whole(counts, n))


def whole(counts: Array, n: int) -> NDArray[np.int64]:
    """Counts that sum to n as whole numbers that do, by the largest remainders."""
    made = np.floor(counts).astype(np.int64)
    made[np.argsort(made - counts, kind="stable")[: n - made.sum()]] += 1
    return made


def nearest(x: Array, shown: Array) -> Array:
    """The candidate that is most like the row."""
    return np.asarray(shown[np.square(shown - x).sum(axis=1).argmin()])


def towards(x: Array, shown: Array, mean: Array) -> Array:
    """What is shown, drawn towards the mean of all rows as far as brings it nearest to the row."""
    way = shown - mean
    share = float(way @ (x - mean)) / max(float(way @ way), 1e-30)
    return np.asarray(mean + max(share, 0.0) * way)


def psnr(x: Array, y: Array, peak: float) -> float:
    """Peak signal over noise, dB, of numbers that span `peak`; at most 99."""
    error = float(np.square(x - y).mean())
    return BEST if error <= 0 else min(BEST, 10 * float(np.log10(peak**2 / error)))


__all__ = ["CLIENTS", "Leak", "first", "inverted", "labels", "leaks", "open_job", "pooled", "private", "psnr"]
