"""Data for federations: load it, divide it among clients, and see how unlike the clients are.

The public names stand in names.py; the first that is used loads it. A client that only takes readings in
needs contract.py, and no numpy.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .names import *  # noqa: F403  names.py lists them


def __getattr__(name: str) -> Any:
    if (name.startswith("__") and name != "__all__") or find_spec(f"{__name__}.{name}"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(".names", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *import_module(".names", __name__).__all__]
