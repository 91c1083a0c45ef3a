"""The compiled engine: kernel.c, built with the package and loaded with ctypes.

ctypes needs no Python headers and releases the GIL, so threads train clients at the same time.
Where the package was built without a C compiler there is no library and batched.py runs instead.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from atoll.core.errors import MisuseError

from .task import Array, Tally, Task, Work

LIBRARY = Path(__file__).with_name("_kernel.so")
LEVELS = ("plain", "avx2", "avx512")
LOSSES = ("squared", "logistic", "softmax")
ACTIVATIONS = ("relu", "tanh")
SMALL = 1_000_000  # weight-row meetings; with fewer, waking a second thread costs more than it saves
LARGE = 1 << 22  # numbers of element-wise work for one core; with fewer, waking a second thread saves little

# Client and Job of kernel.c, field by field.
CLIENT = np.dtype(
    [(name, np.int64) for name in ("x", "y", "order", "anchor", "slope", "delta", "stride", "n", "moves")]
    + [(name, np.float64) for name in ("lr", "mu", "loss")]
    + [(name, np.int64) for name in ("hits", "fault", "finite")]
)


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("start", "dims", "clients")),
        *((name, ctypes.c_int64) for name in ("count", "next", "layers", "loss", "activation")),
        *((name, ctypes.c_int64) for name in ("epochs", "batch", "batch_max")),
        *((name, ctypes.c_double) for name in ("momentum", "weight_decay")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it was not built, cannot be loaded or is of older code."""
    try:
        found = ctypes.CDLL(str(LIBRARY))
        fits = found.atoll_bytes() == CLIENT.itemsize + ctypes.sizeof(_Job)
    except (OSError, AttributeError):
        return None
    return found if fits else None


@cache
def level() -> int:
    """The best instruction set this processor has, a place in LEVELS; -1 without the library."""
    found = library()
    return -1 if found is None else int(found.atoll_level())


def train(
    work: Work,
    tasks: Sequence[Task],
    deltas: Array,
    *,
    threads: int | None = None,
    pool: Executor | None = None,
    isa: int | None = None,
) -> Tally:
    """Train every client in float32; writes new minus old weights to `deltas` (len(tasks), size).

    `threads`: at least 1, None for one a core; the caller's own is one of them, the others come
    from `pool` or, without one, from a pool kept for the process. `isa`: a place in LEVELS, None
    for the best. The bytes depend on `isa` alone.
    """
    clients = _table(tasks, deltas)
    dims = np.array(work.dims, np.int64)
    longest = max((len(task.x) for task in tasks), default=1)
    job = _Job(
        _at(work.start), _at(dims), _at(clients), len(tasks), 0, len(dims) - 1,
        LOSSES.index(work.loss), ACTIVATIONS.index(work.activation),
        work.epochs, work.batch, max(1, min(work.batch, longest)),
        work.momentum, work.weight_decay,
    )  # fmt: skip
    meetings = work.epochs * work.start.size * sum(len(task.x) for task in tasks)
    most = 1 if meetings < SMALL else min(cores() if threads is None else threads, len(tasks))
    _run(job, level() if isa is None else isa, most, pool)
    fault, finite = clients["fault"].astype(np.bool_), clients["finite"].astype(np.bool_)
    return Tally(clients["loss"], clients["hits"], finite, fault)


def _table(tasks: Sequence[Task], deltas: Array) -> Array:
    clients = np.zeros(len(tasks), CLIENT)
    clients["x"] = [_at(task.x) for task in tasks]
    clients["y"] = [_at(task.y) for task in tasks]
    clients["order"] = [_at(task.order) for task in tasks]
    clients["anchor"] = [0 if task.anchor is None else _at(task.anchor) for task in tasks]
    clients["slope"] = [0 if task.slope is None else _at(task.slope) for task in tasks]
    clients["delta"] = _at(deltas) + np.arange(len(tasks)) * deltas.strides[0]
    clients["stride"] = [task.x.strides[0] // task.x.itemsize for task in tasks]
    clients["n"] = [len(task.x) for task in tasks]
    clients["moves"] = [sum(1 << at for at, on in enumerate(task.moves) if on) for task in tasks]
    clients["lr"] = [task.lr for task in tasks]
    clients["mu"] = [task.mu for task in tasks]
    return clients


def _at(array: Array) -> int:
    """The address of its first number; much cheaper than `array.ctypes.data`."""
    return int(array.__array_interface__["data"][0])


def _run(job: _Job, isa: int, threads: int, pool: Executor | None) -> None:
    found = library()
    if found is None:
        raise MisuseError("the C kernel is not built here: use batched.train")
    here = ctypes.byref(job)
    others = [(pool or _pool()).submit(found.atoll_train, isa, here) for _ in range(threads - 1)]
    failed = found.atoll_train(isa, here)
    for other in others:  # one that never got a thread has nothing left to do
        failed |= 0 if other.cancel() else other.result()
    if failed:
        raise MemoryError("no memory for the weights and activations of one client")


def spread(size: int, work: Callable[[slice], None], least: int = LARGE) -> None:
    """`work` on range(size), a part of it on each core; on this thread alone below `least` a core.

    For element-wise work that releases the GIL: the parts cannot change what comes out. Raises what `work`
    raises, once all parts have ended.
    """
    count = max(1, min(cores(), size // least))
    stops = [size * i // count for i in range(count + 1)]
    parts = [slice(*pair) for pair in pairwise(stops)]
    others = {_pool().submit(work, part): part for part in parts[1:]}
    try:
        work(parts[0])
        for other, part in others.items():
            if other.cancel():  # no thread was free
                work(part)
    finally:
        begun = [other for other in others if not other.cancelled()]
        wait(begun)
    for other in begun:
        other.result()


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), "atoll-kernel")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
