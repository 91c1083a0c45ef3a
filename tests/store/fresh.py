"""A new store without the cost of making its tables: they are copied. test_migrate.py is about the making."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from atoll.control.store import Store
from atoll.control.store.engine import FILE


@cache
def tables() -> bytes:
    """The database of a store in which nothing has happened."""
    with tempfile.TemporaryDirectory() as folder:
        Store.open("", Path(folder)).close()
        return (Path(folder) / FILE).read_bytes()


def opened(folder: Path, **how: Any) -> Store:
    """The store of this folder, an empty one where there is none."""
    if not (folder / FILE).exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / FILE).write_bytes(tables())
    return Store.open("", folder, **how)
