"""The partitioners: how rows find their clients. Each returns a value to pass as `by`.

label skew     shards (McMahan et al. 2017), dirichlet (Yurochkin et al. 2019), labels (Li et al.
               2022, "Federated Learning on Non-IID Data Silos"), similarity (Karimireddy et al. 2020)
quantity skew  quantity (Li et al. 2022)
feature skew   feature_skew (Li et al. 2022, with rotation and shift beside their noise)
as it is       iid, natural

A regression's labels are the ten quantile bins of its target, or its order where rows are sorted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import ConfigError
from atoll.core.registry import nearest, part

from .divide import Deal, Partitioner, strata
from .examples import Array, Dataset
from .rotate import rotated

Owner = NDArray[np.int64]


@part("partition")
def iid() -> Partitioner:
    """Shuffle, then deal evenly: client sizes differ by one row at most."""

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Owner:
        return _dealt(*_counts(dataset, clients), rng)

    return deal


@part("partition")
def shards(per_client: int = 2) -> Partitioner:
    """Sort by label, cut into clients x per_client equal shards, deal each client `per_client` of them.

    McMahan et al. 2017, section 3: 60 000 rows, 100 clients, 200 shards of 300.
    """
    _at_least("per_client", per_client, 1)

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Owner:
        n, k = _counts(dataset, clients, per_client)
        hands = rng.permutation(np.arange(k * per_client) % k)  # shard -> client
        owner = np.empty(n, np.int64)
        owner[np.argsort(dataset.train.y, kind="stable")] = hands[np.arange(n) * k * per_client // n]
        return owner

    return deal


@part("partition")
def dirichlet(alpha: float, min_rows: int = 1) -> Partitioner:
    """Each label's rows are divided in proportions drawn from a symmetric Dirichlet(alpha).

    Small alpha: each label sits with few clients, whose sizes then differ too. Instead of drawing
    again until every client has `min_rows` (which may never end with many clients), the largest
    clients give rows to those below; with min_rows=0 clients may be empty.
    """
    _at_least("min_rows", min_rows, 0)
    _positive("alpha", alpha)

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Owner:
        n, k = _counts(dataset, clients, min_rows)
        label = strata(dataset.train.y, dataset.task)
        owner = np.empty(n, np.int64)
        for value in np.unique(label):
            rows = rng.permutation(np.flatnonzero(label == value))
            owner[rows] = _cut(_proportions(alpha, k, rng), len(rows))
        return _topped_up(owner, k, min_rows, rng)

    return deal


@part("partition")
def quantity(alpha: float, min_rows: int = 1) -> Partitioner:
    """Equal label mixes, unequal sizes: proportions from a symmetric Dirichlet(alpha).

    `min_rows`: as in dirichlet.
    """
    _at_least("min_rows", min_rows, 0)
    _positive("alpha", alpha)

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Owner:
        n, k = _counts(dataset, clients, min_rows)
        owner = np.empty(n, np.int64)
        owner[rng.permutation(n)] = _cut(_proportions(alpha, k, rng), n)
        return _topped_up(owner, k, min_rows, rng)

    return deal


@part("partition")
def labels(per_client: int = 1) -> Partitioner:
    """Each client holds rows of exactly `per_client` labels; a label's owners share its rows evenly.

    Refused where fewer than clients x per_client = number of labels would leave rows over.
    """
    _at_least("per_client", per_client, 1)

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Owner:
        n, k = _counts(dataset, clients, per_client)
        if dataset.task != "classes":
            raise ConfigError("labels() deals out classes and this is a regression: use shards()", "$.by")
        present, sizes = np.unique(dataset.train.y, return_counts=True)
        if per_client > len(present) or k * per_client < len(present):
            raise ConfigError(
                f"{k} clients with {per_client} labels each cannot hold {len(present)} labels:"
                " each label needs a client, and no client can hold one twice",
                "$.by.per_client",
            )
        owners = _label_owners(len(present), k, per_client, rng)  # (labels, k) bool
        if (owners.sum(axis=1) > sizes).any():
            raise ConfigError(
                "a label has fewer rows than clients that should share it: use fewer clients", "$.clients"
            )
        owner = np.empty(n, np.int64)
        for value, mine in zip(present, owners, strict=True):
            rows = rng.permutation(np.flatnonzero(dataset.train.y == value))
            owner[rows] = np.flatnonzero(mine)[np.arange(len(rows)) % mine.sum()]
        return owner

    return deal


@part("partition")
def similarity(share: float) -> Partitioner:
    """A `share` of the rows is dealt evenly at random, the rest sorted by label and dealt in runs.

    Karimireddy et al. 2020 (SCAFFOLD), section 7: share 0 is sorted, 0.5 half sorted, 1 iid.
    `share`: 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in [0, 1], got {share}", "$.share")

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Owner:
        n, k = _counts(dataset, clients)
        order = rng.permutation(n)
        mixed, rest = order[: round(share * n)], np.sort(order[round(share * n) :])
        rest = rest[np.argsort(dataset.train.y[rest], kind="stable")]
        owner = np.empty(n, np.int64)
        owner[rest] = np.arange(len(rest)) * k // max(len(rest), 1)
        short = np.bincount(owner[rest], minlength=k).argsort(kind="stable")  # the one-row-short first
        owner[mixed] = short[np.arange(len(mixed)) % k]
        return owner

    return deal


@part("partition")
def natural(column: str | None = None) -> Partitioner:
    """One client per site of the dataset, or per value of the feature called `column`.

    The column stays among the features. `clients` may be left out.
    """

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Deal:
        values = dataset.sites if column is None else _column(dataset, column)
        if values is None:
            raise ConfigError(
                f"{dataset.name} has no sites of its own: name a column, or use another partition", "$.by"
            )
        names, owner = np.unique(values, return_inverse=True)
        if clients not in (None, len(names)):
            raise ConfigError(
                f"{dataset.name} divides into {len(names)} sites: leave clients out", "$.clients"
            )
        prefix = "" if column is None else f"{column} "
        return Deal(owner.astype(np.int64), tuple(f"{prefix}{name}" for name in names))

    return deal


@part("partition")
def feature_skew(noise: float = 0.0, rotation: float = 0.0, shift: float = 0.0) -> Partitioner:
    """Dealt as iid, then each client sees its rows differently; labels and sizes stay alike.

    `noise`: standard deviations of Gaussian noise at the last client, growing evenly from 0.
    `rotation`: degrees by which the last client's images are turned, growing evenly from 0; needs
    square images, (n, ..., h, h) or (n, h*h). `shift`: each client adds its own constant per
    feature, drawn with this many standard deviations. Unit: the pooled feature's own deviation.
    A client's own test rows change like its training rows; the data set's own test rows stay.
    """
    for name, value in (("noise", noise), ("shift", shift)):
        if not value >= 0:
            raise ConfigError(f"{name} must be at least 0, got {value}", f"$.{name}")

    def deal(dataset: Dataset, clients: int | None, rng: np.random.Generator) -> Deal:
        n, k = _counts(dataset, clients)
        scale = dataset.train.x.std(axis=0, dtype=np.float64)
        owner, keys = _dealt(n, k, rng), rng.integers(2**63, size=k)

        def change(client: int, x: Array) -> Array:
            own = np.random.Generator(np.random.Philox(key=int(keys[client])))
            level = client / max(k - 1, 1)
            moved = rotated(x, rotation * level) if rotation else x
            constant = shift * own.standard_normal(scale.shape) * scale
            jitter = noise * level * own.standard_normal(x.shape) * scale if noise else 0.0
            return np.asarray(moved + constant + jitter)

        return Deal(owner, change=change)

    return deal


def _counts(dataset: Dataset, clients: int | None, each: int = 1) -> tuple[int, int]:
    """Rows and clients. Raises ConfigError if `each` rows per client are more than there are."""
    n = len(dataset.train)
    if clients is None:
        raise ConfigError("say how many clients: this partition does not know", "$.clients")
    if clients * max(each, 1) > n and each > 0:
        raise ConfigError(
            f"{clients} clients with at least {each} rows each need {clients * each} rows,"
            f" {dataset.name} has {n}: use fewer clients",
            "$.clients",
        )
    return n, clients


def _dealt(n: int, clients: int, rng: np.random.Generator) -> Owner:
    return rng.permutation(np.arange(n, dtype=np.int64) % clients)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}", f"$.{name}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ConfigError(f"{name} must be above 0 and finite, got {value}", f"$.{name}")


def _proportions(alpha: float, clients: int, rng: np.random.Generator) -> Array:
    draw = rng.dirichlet(np.full(clients, alpha))
    if not np.isfinite(draw).all():  # all gammas underflowed: the limit is one client takes all
        draw = np.eye(clients)[rng.integers(clients)]
    return draw


def _cut(p: Array, n: int) -> Owner:
    """Owners of n rows in a row, client k getting p[k] * n of them to within one."""
    ends = np.round(np.cumsum(p) * n)
    return np.searchsorted(ends[:-1], np.arange(n), side="right").astype(np.int64)


def _topped_up(owner: Owner, clients: int, min_rows: int, rng: np.random.Generator) -> Owner:
    """The largest clients give random rows until each has min_rows."""
    sizes = np.bincount(owner, minlength=clients)
    for poor in np.flatnonzero(sizes < min_rows):
        while sizes[poor] < min_rows:
            rich = int(sizes.argmax())
            rows = rng.permutation(np.flatnonzero(owner == rich))
            second = int(np.partition(sizes, -2)[-2])  # give at once what keeps it the largest
            gift = max(1, min(int(min_rows - sizes[poor]), int(sizes[rich]) - second))
            owner[rows[:gift]] = poor
            sizes[rich] -= gift
            sizes[poor] += gift
    return owner


def _label_owners(count: int, clients: int, per_client: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(labels, clients): each client takes the labels used least so far, ties at random."""
    owners = np.zeros((count, clients), bool)
    for client in rng.permutation(clients):
        used = owners.sum(axis=1) + rng.random(count) / 2
        owners[np.argsort(used)[:per_client], client] = True
    return owners


def _column(dataset: Dataset, column: str) -> Array:
    if column not in dataset.features:
        advice = nearest(column, dataset.features) if dataset.features else "its columns have no names"
        raise ConfigError(f"{dataset.name} has no column {column!r}: {advice}", "$.by.column")
    values = dataset.train.x[:, dataset.features.index(column)]
    if np.isnan(values).any():
        raise ConfigError(f"column {column!r} has missing cells: it cannot name clients", "$.by.column")
    return values
