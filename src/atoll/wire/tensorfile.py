"""Models in files: the safetensors format, written whole or not at all.

The library checks offsets and overlaps; here sizes are checked before anything is read, and NaN,
which the format allows, can be refused. The file keeps the order of the leaves in its metadata, so
that an Update comes back with its layout; files of others come in the order of their names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..core.errors import MisuseError, StateError
from ..core.update import Update
from .files import whole
from .plain import LIMITS, Limits

_ORDER = "atoll.leaves"  # metadata: a JSON list of names


def save_safetensors(update: Update, path: str | os.PathLike[str], *, finite: bool = True) -> None:
    """Write the leaves to `path`: a temporary file beside it, synced, then renamed over it.

    Raises MisuseError for sparse rows, a ring, or (with `finite`) a NaN or an infinity.
    """
    from safetensors.numpy import save

    if update.rows or update.bits:
        raise MisuseError("a file holds dense real leaves: add the rows to their table, leave the ring first")
    if finite and not update.finite():
        raise MisuseError("the model holds a NaN or an infinity: pass finite=False to save it all the same")
    leaves = dict(update)
    data = save(leaves, metadata={_ORDER: json.dumps(list(update))})
    _write(Path(path), data)


def load_safetensors(path: str | os.PathLike[str], *, finite: bool = True, limits: Limits = LIMITS) -> Update:
    """The leaves of a file as an Update, float64 if any leaf is, else float32.

    Raises StateError for a file that is missing, damaged, beyond `limits`, of a dtype numpy does not
    know, or (with `finite`) holds a NaN or an infinity.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            head = int.from_bytes(f.read(8), "little")
    except OSError as error:
        raise StateError(f"{file}: {error.strerror}; expected a safetensors file") from None
    if size > limits.bytes or head > limits.head:
        raise StateError(f"{file}: {size} bytes, head of {head}: at most {limits.bytes} and {limits.head}")
    try:
        with safe_open(str(file), framework="numpy") as f:
            leaves = {name: f.get_tensor(name) for name in _order(f, file, limits)}
    except (SafetensorError, TypeError, AttributeError) as error:
        raise StateError(f"{file} is not a safetensors file that can be read here: {error}") from None
    update = Update.of(leaves)
    if finite and not update.finite():
        raise StateError(f"{file} holds a NaN or an infinity: expected finite numbers only")
    return update


def _order(f: Any, file: Path, limits: Limits) -> list[str]:
    """The names in the order they were saved in, their number and shapes within the limits."""
    names = sorted(f.keys())
    if len(names) > limits.leaves or any(len(f.get_slice(n).get_shape()) > limits.dims for n in names):
        raise StateError(f"{file}: more than {limits.leaves} leaves or {limits.dims} dimensions")
    try:
        kept = json.loads((f.metadata() or {}).get(_ORDER, "null"))
    except ValueError:
        kept = None
    return kept if isinstance(kept, list) and sorted(map(str, kept)) == names else names


def _write(path: Path, data: bytes) -> None:
    """All of `data` at `path`, or what was there before."""
    with whole(path) as file:
        file.write(data)
