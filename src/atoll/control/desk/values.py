"""Plain values on their way in and out of the API: how deep a job may nest, and JSON without NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import ConfigError

DEEPEST = 12  # tables within tables of a job
LONGEST = 4096  # characters of one text in it


def fits(value: Any, path: str = "$", depth: int = DEEPEST) -> None:
    """Raise ConfigError for values nested too deep, or text too long, for a job."""
    if depth < 0:
        raise ConfigError(f"a job nests at most {DEEPEST} tables", path[:200])
    if isinstance(value, str) and len(value) > LONGEST:
        raise ConfigError(f"text of {len(value)} characters: at most {LONGEST}", path)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            fits(key, path, depth - 1)
            fits(inner, f"{path}.{key}", depth - 1)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            fits(inner, f"{path}[{place}]", depth - 1)


def finite(value: Any) -> Any:
    """Plain values with null for a number that is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [finite(v) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    item: Callable[[], Any] | None = getattr(value, "item", None)  # numpy's numbers
    return finite(item()) if item is not None else value
