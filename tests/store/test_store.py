"""The store's contract, over each database it can stand on."""

from pathlib import Path

from atoll.control.store import Store
from atoll.testing import check_store
from tests.store.conftest import Urls


def test_the_contract(urls: Urls, tmp_path: Path) -> None:
    check_store(lambda name: Store.open(urls(name), tmp_path / name))
