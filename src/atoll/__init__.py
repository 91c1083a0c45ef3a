"""Atoll: federated learning at the edge. `import atoll as at`.

The public names stand in names.py. The first that is used loads it: a client that waits uses none, and
stays small.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .names import *  # noqa: F403  names.py lists them

_FUNCTIONS = ("serve", "simulate", "statistics")


class _Atoll(ModuleType):
    """`at.serve`, `simulate` and `statistics` are functions, also where such modules are loaded first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _FUNCTIONS or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Atoll

# ONNX Runtime's wheels tell their maker, from the moment they are imported, which models a process runs
# (docs/Privacy.md there, since 1.29). Nothing of ours tells anybody; processes that we start inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def __getattr__(name: str) -> Any:
    special = name.startswith("__") and name != "__all__"
    if special or (
        name not in _FUNCTIONS and find_spec(f"{__name__}.{name}")
    ):  # `from . import draw` asks first
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    names = import_module(".names", __name__)
    found = getattr(names, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *import_module(".names", __name__).__all__]
