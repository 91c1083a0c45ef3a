"""Divide a dataset among clients: `partition(dataset, clients=100, by=dirichlet(0.3), seed=0)`.

A partitioner is any function `(dataset, clients, rng) -> owner`, where owner (n,) holds the client
of each training row from 0 to clients - 1: each row has exactly one client by construction. It may
return a Deal instead, to name the clients or change what they see. Ours are in `splits.py`.

Laws (tests/laws/test_partition.py): the clients' rows together are the dataset's training rows,
each once; the same seed gives the same bytes; test rows never appear among training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError, DataError
from atoll.core.rng import Rng

from .examples import Array, Dataset, Examples, Task
from .sites import Sites, join

_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """Who gets which row, and what becomes of it.

    `owner`: (n,) the client of each row. `names`: one per client, or () for "client 0"...
    `change`: (client, x) -> x, how that client sees its rows; None for as they are.
    """

    owner: NDArray[np.int64]
    names: tuple[str, ...] = ()
    change: Callable[[int, Array], Array] | None = None


Partitioner: TypeAlias = Callable[[Dataset, int | None, np.random.Generator], "NDArray[np.int64] | Deal"]


def partition(
    dataset: Dataset,
    clients: int | None = None,
    by: Partitioner | None = None,
    seed: int = 0,
    holdout: float | None = None,
) -> Sites:
    """The dataset's training rows as the clients of a federation; the rows are copied once.

    `clients`: how many, >= 1; a natural partition knows it. `by`: a partitioner, by default iid(),
    or the dataset's own sites where it has them and `clients` is left out.
    `seed`: equal seeds give equal bytes.
    `holdout`: the part of each client's rows kept as its own test rows, 0 <= holdout < 1, spread
    over the labels as evenly as whole rows allow and never a client's only row; by default 0 where
    the dataset brings test rows, else 0.2. Where the dataset names its rows' subjects, whole subjects of a
    client are kept, and never its only one: a model is not tested on patients that it has learnt from. (A
    partitioner that gives one subject's rows to several clients takes them apart before.)
    The pooled test is the dataset's own, or else all clients' test rows. Where the dataset names
    the site of its test rows too and is divided by those sites, each client gets its own.
    Raises ConfigError for values out of range, or more clients than rows.
    """
    if clients is not None and not (isinstance(clients, (int, np.integer)) and clients >= 1):
        raise ConfigError(f"clients must be a whole number of at least 1, got {clients!r}", "$.clients")
    share = holdout if holdout is not None else 0.2 if dataset.test is None else 0.0
    if not 0 <= share < 1:
        raise ConfigError(f"holdout must lie in [0, 1), got {holdout}", "$.holdout")
    root = Rng.of(seed).at("partition")
    dealt = (by or _default(dataset, clients))(dataset, clients, root.at("deal").generator())
    deal = dealt if isinstance(dealt, Deal) else Deal(np.asarray(dealt))
    names = deal.names or tuple(f"client {k}" for k in range(clients or int(deal.owner.max()) + 1))
    _check(deal.owner, len(dataset.train), len(names))
    held = _held_out(dataset, deal.owner, len(names), share, root.at("holdout").generator())
    return _sites(dataset, deal, names, held)


def strata(y: Array, task: Task, bins: int = _BINS) -> NDArray[np.int64]:
    """(n,) what label skew is about: the class, or for a regression the quantile bin of y."""
    if task == "classes":
        return y.astype(np.int64, copy=False)
    edges = np.unique(np.quantile(y, np.arange(1, bins) / bins))
    return np.searchsorted(edges, y, side="right").astype(np.int64)


def _default(dataset: Dataset, clients: int | None) -> Partitioner:
    from .splits import iid, natural  # splits stands on this file

    return natural() if clients is None and dataset.sites is not None else iid()


def _check(owner: Array, rows: int, clients: int) -> None:
    if owner.shape != (rows,) or owner.dtype.kind not in "iu":
        raise ConfigError(
            f"a partitioner must give one client number per row ({rows}), got {owner.dtype} {owner.shape}"
        )
    if owner.min() < 0 or owner.max() >= clients:
        raise ConfigError(f"a partitioner gave a client number outside 0..{clients - 1}")


def _held_out(
    dataset: Dataset, owner: Array, clients: int, share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(n,) which rows are their client's test rows."""
    held = np.zeros(len(owner), bool)
    if share == 0:
        return held
    label = strata(dataset.train.y, dataset.task)
    if dataset.subjects is not None:
        return _subjects_held(dataset.subjects, label, owner, share, rng)
    order = np.lexsort((rng.random(len(owner)), label, owner))  # by client, then label, then at random
    start = _offsets(np.bincount(owner, minlength=clients))
    for a, b in pairwise(start):
        take = min(round(share * (b - a)), b - a - 1)
        if take > 0:  # evenly spaced in label order: each label gives its share to within one row
            held[order[a + ((np.arange(take) + rng.random()) * (b - a) / take).astype(np.int64)]] = True
    return held


def _subjects_held(
    subjects: Array, label: Array, owner: Array, share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(n,) whole subjects of each client, in the order of their labels and at random among those of one: each
    that brings the client's kept rows nearer to its share of those seen so far.
    """
    _, own = np.unique(subjects, return_inverse=True)
    pairs, member = np.unique(np.column_stack([owner, own]), axis=0, return_inverse=True)
    member = member.reshape(-1)
    sizes = np.bincount(member)
    common = np.bincount(member, weights=label) / sizes  # about the label of most of its rows
    order = np.lexsort((rng.random(len(pairs)), common, pairs[:, 0]))
    test = np.zeros(len(pairs), bool)
    for a, b in pairwise(_offsets(np.bincount(pairs[:, 0]))):
        seen = kept = 0
        for one in order[a:b]:
            seen += int(sizes[one])
            if kept + sizes[one] / 2 <= share * seen:
                kept += int(sizes[one])
                test[one] = True
        if b > a and test[order[a:b]].all():
            test[order[a]] = False
    return test[member]


def _sites(dataset: Dataset, deal: Deal, names: tuple[str, ...], held: NDArray[np.bool_]) -> Sites:
    keep, offsets = _grouped(deal.owner, ~held, len(names))
    train = dataset.train[keep]
    _apply(deal, train, offsets)
    tests: tuple[Examples, ...] = ()
    pooled = dataset.test
    if held.any():
        rows, cuts = _grouped(deal.owner, held, len(names))
        local = dataset.train[rows]
        _apply(deal, local, cuts)
        tests = tuple(local[a:b] for a, b in pairwise(cuts))
        pooled = pooled or local
    elif dataset.test is not None and dataset.test_sites is not None and deal.names:
        tests = _own_tests(dataset.test, dataset.test_sites, names)
        pooled = join(tests) if tests else pooled
    return Sites(
        train.x,
        train.y,
        offsets,
        names,
        task=dataset.task,
        outputs=dataset.outputs,
        columns=dataset.features,
        tests=tests,
        test=pooled,
        classes=dataset.classes,
    )


def _grouped(owner: Array, keep: NDArray[np.bool_], clients: int) -> tuple[Array, NDArray[np.int64]]:
    """The kept rows' numbers, client after client in their old order, and the offsets."""
    rows = np.flatnonzero(keep)
    order = rows[np.argsort(owner[rows], kind="stable")]
    return order, _offsets(np.bincount(owner[rows], minlength=clients))


def _offsets(sizes: Array) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _apply(deal: Deal, rows: Examples, offsets: NDArray[np.int64]) -> None:
    """Let each client see its rows changed, in place: `rows` is our own copy."""
    if deal.change is not None:
        for k, (a, b) in enumerate(pairwise(offsets)):
            rows.x[a:b] = deal.change(k, rows.x[a:b])


def _own_tests(test: Examples, sites: Array, names: Sequence[str]) -> tuple[Examples, ...]:
    known = {name: np.flatnonzero(sites == name) for name in names}
    if sum(map(len, known.values())) != len(test):
        if set(np.unique(sites)).isdisjoint(names):
            return ()  # divided by something else than the sites
        raise DataError("some test rows belong to a site without training rows: leave them out")
    return tuple(test[rows] for rows in known.values())
