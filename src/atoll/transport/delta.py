"""What changed between two models, without loss: for members that hold the one before.

Neighbouring models share most of the high bits of each number. The words of both buffers are xor'ed,
the bytes of equal weight are put side by side, and zstandard at its fastest level packs the runs of
zeros. A delta is itself a wire message, so it travels, resumes and is checked as every blob is:

    kind "delta", values: from, to (blob names), head (the target's own), width (bytes of a word),
    array "packed" (uint8): one zstandard frame per 4 MiB of buffer, each after its length (uint32)

It is offered only where it saves a tenth at least. Law (tests/wire): restore(a, delta(a, b)) is b.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from ..core.errors import CodecError, IntegrityError, StateError
from ..wire.codec import FRAME, Message, decode, encode
from .frames import FrameFile

BLOCK = 4 * FRAME
PAYS = 0.9  # of the whole, at most
LEVEL = 1


def _blocks(file: FrameFile) -> Iterator[bytes]:
    """The buffer, BLOCK bytes at a time."""
    from .frames import payload

    step = BLOCK // FRAME
    for start in range(1, file.told.frames, step):
        yield b"".join(payload(frame) for frame in file.read(start, step))
