"""Examples and Sites: views of one array, and refusals that name the site."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.core.errors import ConfigError, DataError
from atoll.data import Dataset, Examples, Sites, digits, partition


def site(n: int, width: int = 3, label: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((n, width)), np.full(n, label)


def test_clients_are_views_of_one_array() -> None:
    sites = Sites.of([site(3), site(2, label=1)])
    assert all(np.shares_memory(client.x, sites.x) for client in sites)
    assert np.shares_memory(sites.pooled().x, sites.x)
    assert sites.offsets.tolist() == [0, 3, 5]
    assert (len(sites), sites.features, sites.outputs, sites.sizes.tolist()) == (2, 3, 2, [3, 2])
    assert [len(client) for client in sites] == [3, 2]
    assert len(sites[-1]) == len(sites["site 1"]) == 2


def test_images_keep_their_shape() -> None:
    sites = Sites.of([(np.zeros((4, 1, 5, 5), np.float32), np.arange(4) % 2)])
    assert sites.features == (1, 5, 5)
    assert sites.x.dtype == np.float32


def test_examples_slice_without_copying() -> None:
    rows = Examples(np.arange(12.0).reshape(6, 2), np.arange(6), ("a", "b"))
    assert np.shares_memory(rows[2:4].x, rows.x)
    assert rows[2:4].names == ("a", "b")
    assert rows[rows.y > 3].y.tolist() == [4, 5]


def test_tests_join_into_the_pooled_one() -> None:
    sites = Sites.of({"a": site(3), "b": site(2)}, {"a": site(1), "b": site(1)})
    assert sites.test is not None
    assert len(sites.test) == 2


def test_a_client_with_one_class_and_an_empty_one_where_asked() -> None:
    sites = Sites.of([site(3, label=1), (np.zeros((0, 3)), np.zeros(0, int))], outputs=2, empty=True)
    assert sites.sizes.tolist() == [3, 0]
    assert sites.outputs == 2


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        ({"a": site(3), "b": site(2, width=4)}, "site 'b' has rows of shape"),
        ({"a": site(3), "b": (np.ones((2, 3)), np.ones(2))}, "site 'b' has float64 targets"),
        ({"a": site(3), "b": (np.ones((2, 3)), np.zeros(3, int))}, "site 'b': expected x"),
        ({"a": site(3), "b": (np.zeros((0, 3)), np.zeros(0, int))}, "site 'b' has no rows"),
        ({"a": site(3), "b": site(2, label=-1)}, "site 'b': a label lies outside"),
        ({"a": (np.array([["x"]]), np.array([0]))}, "site 'a': x and y must hold numbers"),
        ({}, "at least one site"),
    ],
)
def test_misfits_name_their_site(clients: dict[str, tuple[np.ndarray, np.ndarray]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Sites.of(clients)


def test_a_label_unknown_elsewhere() -> None:
    with pytest.raises(DataError, match=r"site 'b': a label lies outside 0\.\.2"):
        Sites.of({"a": site(3), "b": site(2, label=3)}, outputs=3)
    with pytest.raises(DataError, match="site 'b': a label"):
        Sites.of({"a": site(3), "b": site(3)}, {"a": site(1), "b": site(1, label=7)})


def test_check_names_site_and_column_without_values() -> None:
    x = np.ones((4, 2))
    x[3, 1] = np.inf
    sites = Sites.of({"a": (x[:2], np.zeros(2, int)), "b": (x[2:], np.zeros(2, int))}, columns=("u", "v"))
    with pytest.raises(DataError, match="site 'b', column 'v': 1 cells"):
        sites.check()


def test_an_unknown_site_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'north'"):
        Sites.of({"north": site(2)})["nort"]


def test_labels_must_be_whole_and_known() -> None:
    with pytest.raises(DataError, match="must be integers"):
        Dataset("d", Examples(np.ones((2, 1)), np.ones(2)), classes=("a",))
    with pytest.raises(DataError, match="no rows"):
        Dataset("d", Examples(np.ones((0, 1)), np.ones(0, int)), classes=("a",))


def test_sites_of_a_partition_know_their_test() -> None:
    pytest.importorskip("sklearn")
    sites = partition(digits(), 20)
    assert len(sites.tests) == 20
    assert sites.test is not None
    assert sum(map(len, sites.tests)) == len(sites.test)
    assert sites.outputs == 10
    assert sites.features == 64
