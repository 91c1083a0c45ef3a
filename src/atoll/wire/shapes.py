"""What a recorded message may hold if no data travel: arrays in the model's own shapes, and no others.

The gate checks the same for what it lets in (control/gate/admission.py). This is the auditor's view: given
the layouts of a run's model and of its updates, `only_model` refuses any other array, whoever sent it.
A dimension of rows has no place there: neither in a whole update, nor in one of its leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import CodecError, ProtocolError
from ..core.update import Layout, Update
from .body import opened
from .coded import Array, compact, decode
from .plain import Message


def only_model(message: Message, layouts: Sequence[Layout], *, most: int = 1 << 20) -> None:
    """Raise ProtocolError unless each array in the message is one of these layouts' updates or leaves.

    `most`: plain values an answer may hold. Not seen: what plain values say (metrics, reasons).
    """
    if message.kind == "answer":
        values, arrays = opened(message, most)
        leaves = [(name, tuple(shape)) for name, shape in values.leaves]
        fits = [layout for layout in layouts if leaves == [tuple(leaf) for leaf in layout.leaves]]
        if arrays and not fits:
            raise ProtocolError("an answer has leaves that the model has not")
        for name, array in arrays.items():
            if not any(_fits(name, array, layout) for layout in fits):
                raise ProtocolError(
                    f"an answer holds an array of shape {list(array.shape)}, which is no leaf"
                )
        return
    for name, found in message.arrays.items():
        if not isinstance(found, Update) or found.layout not in layouts or found.rows:
            raise ProtocolError(
                f"a message {message.kind[:40]!r} holds {name[:40]!r}, which is not the model"
            )


def _fits(name: str, array: Array, layout: Layout) -> bool:
    """A whole update by its number, or one limb of a leaf as in "0.1.12"; packed ones in at most 8 planes."""
    shape, packed = array.shape, array.dtype == np.uint8
    match name.split("."):
        case [number] if number.isdecimal() and compact(array):
            return _unpacks(array, layout.size)
        case [number] if number.isdecimal():
            size = layout.size
        case [part, limb, leaf] if part.isdecimal() and limb in ("0", "1") and leaf.isdecimal():
            leaves = list(layout.slices.values())
            if not packed or int(leaf) >= len(leaves):
                return False
            size = leaves[int(leaf)].stop - leaves[int(leaf)].start
        case _:
            return False
    return shape == ((shape[0], size) if packed and len(shape) == 2 and shape[0] <= 8 else (size,))


def _unpacks(code: Array, size: int) -> bool:
    """Whether a compact update is one of this size, in every byte."""
    try:
        decode(code, size)
    except CodecError:
        return False
    return True
