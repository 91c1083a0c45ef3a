"""The numpy engine: clients with equally many rows train side by side, (m, B, in) @ (m, in, out).

It runs everywhere, in float32 and float64, and is the readable statement of what kernel.c does.
Side by side pays where a model is tiny (numpy's cost per call is shared by the chunk); a chunk
holds as many clients as keep their weights in the cache. Each client's arithmetic is the same
in any chunk, so the bytes are too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from .task import Array, Loss, Tally, Task, Work

CHUNK = 1 << 17  # numbers; 512 KB of float32 weights, and about as much of gradients


def train(work: Work, tasks: Sequence[Task], deltas: Array) -> Tally:
    """Train every client; writes new minus old weights to `deltas` (len(tasks), size)."""
    m = len(tasks)
    tally = Tally(np.zeros(m), np.zeros(m, np.int64), np.ones(m, np.bool_), np.zeros(m, np.bool_))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # divergence shows in `finite`
        for chunk in _chunks(work, tasks):
            mine = [tasks[i] for i in chunk]
            tally.fault[chunk] = [misfit(work.loss, work.dims, task.y) for task in mine]
            if not tally.fault[chunk].any():
                deltas[chunk], tally.loss[chunk], tally.hits[chunk] = _descend(work, mine)
    tally.finite[:] = np.isfinite(tally.loss) & np.isfinite(deltas).all(axis=1)
    return tally


def _chunks(work: Work, tasks: Sequence[Task]) -> Iterator[list[int]]:
    alike: dict[tuple[int, tuple[bool, ...]], list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        alike[len(task.x), task.moves].append(i)
    most = max(1, CHUNK // work.start.size)
    for places in alike.values():
        yield from (places[i : i + most] for i in range(0, len(places), most))


def misfit(loss: str | Loss, dims: tuple[int, ...], y: Array) -> bool:
    """Whether a label is outside the model's classes."""
    if callable(loss) or loss == "squared" or not len(y):
        return False
    classes = dims[-1] if loss == "softmax" else 2
    return bool(y.min() < 0 or y.max() >= classes)


def evaluate(
    dims: tuple[int, ...], loss: str, activation: str, w: Array, x: Array, y: Array
) -> tuple[float, int, bool]:
    """The summed loss over the rows, the count of right classes, and whether a label is out of range."""
    if misfit(loss, dims, y):
        return 0.0, 0, True
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        answer = forward(dims, activation, w[None], x[None])[-1]
        _, total, hits = losses(loss, answer, y[None])
    return float(total[0]), int(hits[0]), False


def _descend(work: Work, tasks: list[Task]) -> tuple[Array, Array, Array]:
    """SGD as torch.optim.SGD does it, on m clients of n rows each: deltas (m, size), loss, hits (m,)."""
    m, n, kind = len(tasks), len(tasks[0].x), work.start.dtype
    w = np.tile(work.start, (m, 1))  # (m, size)
    v = np.zeros_like(w)
    lr = np.array([task.lr for task in tasks], kind)[:, None]
    mu = np.array([task.mu for task in tasks], kind)[:, None]
    anchor = np.stack([work.start if task.anchor is None else task.anchor for task in tasks])
    slope = np.stack([np.zeros_like(work.start) if task.slope is None else task.slope for task in tasks])
    leaf = [part.shape[1] for part in _flat(work.dims, w)]
    still = ~np.repeat(tasks[0].moves, leaf)  # (size,)
    loss, hits = np.zeros(m), np.zeros(m, np.int64)
    for epoch in range(work.epochs):
        for at in range(0, n, work.batch):
            rows = [task.order[epoch, at : at + work.batch] for task in tasks]
            x = np.stack([task.x[r] for task, r in zip(tasks, rows, strict=True)])  # (m, B, in)
            y = np.stack([task.y[r] for task, r in zip(tasks, rows, strict=True)])
            g, losses, right = _gradient(work, w, x, y)
            loss += losses
            hits += right
            g += kind.type(work.weight_decay) * w + mu * (w - anchor) + slope
            v = kind.type(work.momentum) * v + g
            v[:, still] = 0
            w -= lr * v
    return w - work.start, loss, hits


def _gradient(work: Work, w: Array, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Gradient (m, size) of the mean loss over B rows; the rows' summed loss and hits (m,)."""
    h = forward(work.dims, work.activation, w, x)
    d, loss, hits = work.loss(h[-1], y) if callable(work.loss) else losses(work.loss, h[-1], y)
    d /= x.shape[1]
    g = np.empty_like(w)
    grads, weights = _layers(work.dims, g), _layers(work.dims, w)
    for layer in reversed(range(len(grads))):
        np.matmul(h[layer].swapaxes(1, 2), d, out=grads[layer][0])
        grads[layer][1][:] = d.sum(axis=1)
        if layer:
            d = d @ weights[layer][0].swapaxes(1, 2)
            d *= h[layer] > 0 if work.activation == "relu" else 1 - h[layer] ** 2
    return g, loss, hits


def forward(dims: tuple[int, ...], activation: str, w: Array, x: Array) -> list[Array]:
    """What each layer reads, x first, and last what the network answers: (m, B, outputs)."""
    h = [x]
    layers = _layers(dims, w)
    for at, (weight, bias) in enumerate(layers):
        z = h[-1] @ weight
        z += bias[:, None]
        if at < len(layers) - 1:
            z = np.maximum(z, 0, out=z) if activation == "relu" else np.tanh(z, out=z)
        h.append(z)
    return h


def losses(loss: str, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """d(loss)/dz as z, and over the rows the summed loss and count of right classes, both (m,).

    z: (m, B, outputs). squared: y like z, mean over the outputs. logistic: one z a row, y 0 or 1.
    softmax: y a class.
    """
    if loss == "squared":
        gap = z - y
        each = np.square(gap, dtype=np.float64).mean(axis=2)
        return 2 / z.shape[2] * gap, each.sum(axis=1), np.zeros(len(z), np.int64)
    label = y[..., None]
    if loss == "logistic":
        e = np.exp(-np.abs(z))
        d = np.where(z < 0, e, 1) / (1 + e) - label.astype(z.dtype)
        each = np.log1p(e) + np.maximum(z, 0) - z * label
        return d, each.sum(axis=(1, 2), dtype=np.float64), ((z > 0) == label).sum(axis=(1, 2))
    z = z - z.max(axis=2, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=2, keepdims=True)
    d = e / total
    each = np.log(total) - np.take_along_axis(z, label, axis=2)
    np.put_along_axis(d, label, np.take_along_axis(d, label, axis=2) - 1, axis=2)
    return d, each.sum(axis=(1, 2), dtype=np.float64), (z.argmax(axis=2) == y).sum(axis=1)


def _flat(dims: tuple[int, ...], w: Array) -> list[Array]:
    """Each leaf's numbers, (m, size of the leaf), views into w (m, size)."""
    sizes = [n for a, b in pairwise(dims) for n in (a * b, b)]
    return np.split(w, np.cumsum(sizes)[:-1], axis=1)


def _layers(dims: tuple[int, ...], w: Array) -> list[tuple[Array, Array]]:
    """Each layer's W (m, in, out) and b (m, out), views into w (m, size)."""
    flat = _flat(dims, w)
    shapes = pairwise(dims)
    return [(a.reshape(-1, *shape), b) for a, b, shape in zip(flat[::2], flat[1::2], shapes, strict=True)]
