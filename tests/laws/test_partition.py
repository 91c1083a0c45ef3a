"""A partition loses no row, doubles none, and is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import ConfigError
from atoll.core.registry import build
from atoll.data import (
    Dataset,
    Examples,
    Sites,
    dirichlet,
    feature_skew,
    iid,
    labels,
    natural,
    partition,
    quantity,
    shards,
    similarity,
)

PARTITIONERS = {
    "iid": iid(),
    "shards": shards(2),
    "dirichlet": dirichlet(0.2),
    "dirichlet, empty clients": dirichlet(0.05, min_rows=0),
    "quantity": quantity(0.3),
    "labels": labels(2),
    "similarity": similarity(0.5),
    "sorted": similarity(0.0),
}


def rows(n: int, classes: int = 4, seed: int = 0, regression: bool = False) -> Dataset:
    """A dataset whose first column is the row's own number, so a row can be followed."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.arange(n, dtype=float), rng.normal(size=n)])
    y = rng.integers(classes, size=n)
    y[:classes] = np.arange(classes)
    if regression:
        return Dataset("numbers", Examples(x, rng.normal(size=n)), task="regression")
    return Dataset("rows", Examples(x, y), classes=tuple(map(str, range(classes))))


def ids(examples: Examples) -> list[int]:
    return sorted(examples.x[:, 0].astype(int).tolist())


def same(a: Sites, b: Sites) -> bool:
    return (
        a.x.tobytes() == b.x.tobytes()
        and a.y.tobytes() == b.y.tobytes()
        and list(a.offsets) == list(b.offsets)
    )


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    clients=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    share=st.sampled_from([0.1, 0.25, 0.5, 0.9]),
)
def test_a_subject_is_on_one_side(sizes: list[int], clients: int, seed: int, share: float) -> None:
    """None is in both; and what is kept is as near to the share as whole subjects allow."""
    dice = np.random.default_rng(seed)
    subject = dice.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = np.column_stack([subject, np.arange(len(subject))]).astype(float)
    y = (subject * 7 % 3) % 2
    names = subject.astype(str)
    data = Dataset("s", Examples(x, y), classes=("a", "b"), subjects=names)
    clients = min(clients, len(sizes))
    owner = subject % clients
    sites = partition(data, clients, lambda *_: owner, seed, share)
    tests = sites.tests or [Examples(x[:0], y[:0])] * clients
    for k, (train, test) in enumerate(zip(sites, tests, strict=True)):
        assert set(train.x[:, 0]).isdisjoint(test.x[:, 0])
        assert len(train) + len(test) == (owner == k).sum()
        assert len(train)
        largest = max(n for one, n in enumerate(sizes) if one % clients == k)
        assert abs(len(test) - share * (owner == k).sum()) <= largest


def test_subjects_of_each_label_are_kept() -> None:
    subject = np.repeat(np.arange(40), 5)
    data = Dataset(
        "s", Examples(subject[:, None], subject % 2), classes=("a", "b"), subjects=subject.astype(str)
    )
    (test,) = partition(data, 1, seed=3, holdout=0.25).tests
    assert np.bincount(test.y).tolist() == [25, 25]
    assert len(set(test.x[:, 0])) == 10


@pytest.mark.parametrize("name", PARTITIONERS)
@given(
    n=st.integers(40, 200),
    clients=st.integers(2, 15),
    seed=st.integers(0, 2**40),
    held=st.sampled_from([0, 0.2, 0.5]),
)
def test_each_row_has_one_client_and_one_side(
    name: str, n: int, clients: int, seed: int, held: float
) -> None:
    dataset = rows(n)
    sites = partition(dataset, clients, PARTITIONERS[name], seed, held)
    assert len(sites) == clients
    tested = ids(sites.test) if sites.test is not None else []
    assert sorted(ids(sites.pooled()) + tested) == list(range(n))
    if sites.tests:
        assert sorted(i for own in sites.tests for i in ids(own)) == tested
    for client in sites:  # labels stay with their rows
        assert (dataset.train.y[client.x[:, 0].astype(int)] == client.y).all()


@pytest.mark.parametrize("name", PARTITIONERS)
@given(seed=st.integers(0, 2**40))
def test_same_seed_same_bytes(name: str, seed: int) -> None:
    by = PARTITIONERS[name]
    assert same(partition(rows(60), 5, by, seed), partition(rows(60), 5, by, seed))


@pytest.mark.parametrize("name", [n for n in PARTITIONERS if n != "sorted"])
def test_another_seed_another_partition(name: str) -> None:
    assert not same(
        partition(rows(200), 5, PARTITIONERS[name], 1), partition(rows(200), 5, PARTITIONERS[name], 2)
    )


@given(n=st.integers(1, 80), clients=st.integers(1, 80))
def test_iid_sizes_differ_by_one_at_most(n: int, clients: int) -> None:
    if clients > n:
        with pytest.raises(ConfigError, match="use fewer clients"):
            partition(rows(n, classes=1), clients, iid())
        return
    sizes = partition(rows(n, classes=1), clients, iid(), holdout=0).sizes
    assert sizes.max() - sizes.min() <= 1


@given(clients=st.integers(2, 12), share=st.floats(0, 1))
def test_similarity_keeps_sizes_even(clients: int, share: float) -> None:
    sizes = partition(rows(101), clients, similarity(share), holdout=0).sizes
    assert sizes.max() - sizes.min() <= 1


@given(alpha=st.floats(1e-3, 100), least=st.integers(0, 4), seed=st.integers(0, 999))
def test_min_rows_holds(alpha: float, least: int, seed: int) -> None:
    for by in (dirichlet(alpha, min_rows=least), quantity(alpha, min_rows=least)):
        assert partition(rows(60), 12, by, seed, holdout=0).sizes.min() >= least


@given(per_client=st.integers(1, 4), clients=st.integers(4, 10), seed=st.integers(0, 999))
def test_labels_gives_each_client_exactly_that_many(per_client: int, clients: int, seed: int) -> None:
    sites = partition(rows(400), clients, labels(per_client), seed, holdout=0)
    assert {len(np.unique(c.y)) for c in sites} == {per_client}


def test_shards_of_mcmahan() -> None:
    y = np.repeat(np.arange(10), 600)  # 6000 rows, 10 clients of 2 shards: each shard has one label
    dataset = Dataset("d", Examples(np.zeros((6000, 1)), y), classes=tuple("0123456789"))
    sites = partition(dataset, 10, shards(2), seed=3, holdout=0)
    assert set(sites.sizes) == {600}
    assert max(len(np.unique(c.y)) for c in sites) <= 2


@given(n=st.integers(30, 120), seed=st.integers(0, 999))
def test_holdout_keeps_the_label_mix(n: int, seed: int) -> None:
    sites = partition(rows(n, classes=3), 1, iid(), seed, holdout=0.25)
    train, test = np.bincount(sites[0].y, minlength=3), np.bincount(sites.tests[0].y, minlength=3)
    assert len(sites.tests[0]) == round(0.25 * n)
    assert (np.abs(test - 0.25 * (train + test)) <= 1).all()


def test_a_client_keeps_its_only_row() -> None:
    sites = partition(rows(8), 8, iid(), holdout=0.9)
    assert set(sites.sizes) == {1}


@pytest.mark.parametrize("by", [iid(), shards(), dirichlet(0.5), quantity(1), similarity(0.3)])
def test_regressions_divide_too(by: object) -> None:
    sites = partition(rows(120, regression=True), 6, by)  # type: ignore[arg-type]
    assert sites.outputs == 1
    assert len(sites.pooled()) + len(sites.test or ()) == 120


def test_natural_follows_the_sites() -> None:
    plain = rows(30)
    site = np.array(["north", "south", "east"])[np.arange(30) % 3]
    dataset = Dataset("d", plain.train, classes=plain.classes, sites=site)
    sites = partition(dataset, holdout=0)
    assert sites.names == ("east", "north", "south")
    assert partition(dataset, 2).names == ("client 0", "client 1")  # iid where clients are asked for
    assert all(
        (site[c.x[:, 0].astype(int)] == name).all() for name, c in zip(sites.names, sites, strict=True)
    )


def test_feature_skew_moves_clients_apart_and_labels_not() -> None:
    plain = rows(300)
    sites = partition(plain, 3, feature_skew(shift=5.0), seed=1, holdout=0.2)
    again = partition(plain, 3, feature_skew(shift=5.0), seed=1, holdout=0.2)
    assert same(sites, again)
    means = np.array([c.x.mean(axis=0) for c in sites])
    assert np.ptp(means, axis=0).min() > plain.train.x.std(axis=0).min()
    for train, test in zip(sites, sites.tests, strict=True):  # a client's test rows moved alike
        assert np.abs(train.x[:, 1].mean() - test.x[:, 1].mean()) < 1
    assert len(sites.y) == 240


def test_rotation_turns_images() -> None:
    image = np.zeros((4, 1, 5, 5), np.float32)
    image[:, :, 2, 4] = 1  # right edge
    dataset = Dataset("d", Examples(image, np.zeros(4, int)), classes=("a",))
    sites = partition(dataset, 2, feature_skew(rotation=90), holdout=0)
    assert sites[0].x[0, 0, 2, 4] == 1
    assert sites[1].x[0, 0, 0, 2] == pytest.approx(1, abs=1e-6)  # a quarter turn later: top edge


def test_your_own_partitioner_is_a_function() -> None:
    sites = partition(rows(10), 2, lambda data, clients, _: np.arange(len(data.train)) % clients, holdout=0)
    assert ids(sites[1]) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("clients", "by", "path"),
    [
        (0, iid(), "$.clients"),
        (None, iid(), "$.clients"),
        (50, shards(2), "$.clients"),
        (2, labels(1), "$.by.per_client"),
        (3, labels(5), "$.by.per_client"),
        (None, natural(), "$.by"),
        (3, natural("nowhere"), "$.by.column"),
        (3, feature_skew(rotation=10), "$.by.rotation"),
    ],
)
def test_refused_with_the_place(clients: int | None, by: object, path: str) -> None:
    with pytest.raises(ConfigError) as refused:
        partition(rows(60), clients, by)  # type: ignore[arg-type]
    assert refused.value.path == path


def test_partitions_are_built_by_name() -> None:
    by = build("partition", {"name": "dirichlet", "alpha": 0.3, "min_rows": 2})
    assert same(partition(rows(60), 5, by, 1), partition(rows(60), 5, dirichlet(0.3, min_rows=2), 1))
    with pytest.raises(ConfigError, match=r"\$\.by\.alpa: unknown key"):
        build("partition", {"name": "dirichlet", "alpa": 0.3}, "$.by")
    with pytest.raises(ConfigError, match=r"\$\.by\.alpha: alpha must be above 0|alpha must be above 0"):
        build("partition", {"name": "dirichlet", "alpha": 0.0}, "$.by")


def test_parameters_out_of_range_are_refused() -> None:
    for make in (
        lambda: dirichlet(0),
        lambda: quantity(-1),
        lambda: similarity(1.5),
        lambda: shards(0),
        lambda: feature_skew(noise=-1),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="holdout"):
        partition(rows(10), 2, iid(), holdout=1.0)
    with pytest.raises(ConfigError, match="outside"):
        partition(rows(10), 2, lambda *_: np.full(10, 7))
