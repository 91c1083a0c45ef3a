"""What a larger model says of rows, as bytes and merged with what was said here.

    pack(model, answers, beyond) -> bytes -> unpack(bytes, rows) -> Asked -> merged(mine, rows, asked)

Where who was asked has asked further up, `Beyond` says of which rows; its numbers count the question's rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import ProtocolError
from .batch import Answers


class Beyond(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The model further up, the rows that it answered, and of these whoever it asked in turn."""

    model: dict[str, Any]
    rows: tuple[int, ...]
    above: Beyond | None = None


class Asked(NamedTuple):
    """What upstream said: its model's name and version, its answers, and of which rows it asked further."""

    model: dict[str, Any]
    answers: dict[str, NDArray[Any]]
    beyond: Beyond | None = None

    def of(self, rows: NDArray[np.intp]) -> Beyond:
        """The same, told by the numbers that its rows have here."""
        found = None
        for one in reversed(list(_all(self.beyond))):
            found = Beyond(one.model, tuple(int(rows[at]) for at in one.rows), found)
        return Beyond(self.model, tuple(map(int, rows)), found)


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    model: dict[str, Any]
    answers: dict[str, tuple[str, tuple[int, ...], bytes]]
    beyond: Beyond | None = None


def merged(mine: Answers, rows: NDArray[np.intp], asked: Asked) -> dict[str, NDArray[Any]] | None:
    """The local answers with the larger model's in their rows; None where the two do not answer alike."""
    if asked.answers.keys() != mine.keys():
        return None
    found = {}
    for name, here in mine.items():
        there = asked.answers[name]
        if there.shape != (len(rows), *here.shape[1:]) or there.dtype.kind != here.dtype.kind:
            return None
        found[name] = here.copy()
        found[name][rows] = there
    return found


def pack(model: Mapping[str, Any], answers: Answers, beyond: Beyond | None = None) -> bytes:
    """An upstream's answer, before it is sealed: numbers as they lie in memory."""
    parts = {
        name: (v.dtype.str, v.shape, np.ascontiguousarray(v).tobytes())
        for name, v in answers.items()
        if v.dtype.kind in "fiu"
    }
    return msgspec.msgpack.encode(_Told(dict(model), parts, beyond))


def unpack(data: bytes, rows: int) -> Asked:
    """The inverse of `pack`, for so many rows. Raises ProtocolError for anything else."""
    try:
        told = msgspec.msgpack.decode(data, type=_Told)
        found = {}
        for name, (kind, shape, raw) in told.answers.items():
            if np.dtype(kind).kind not in "fiu" or shape[:1] != (rows,):
                raise ValueError
            found[name] = np.frombuffer(raw, np.dtype(kind)).reshape(shape)
        if any(not 0 <= at < rows for one in _all(told.beyond) for at in one.rows):
            raise ValueError
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
        raise ProtocolError("upstream's answer is none to these rows") from None
    return Asked(told.model, found, told.beyond)


def _all(beyond: Beyond | None) -> Iterator[Beyond]:
    while beyond is not None:
        yield beyond
        beyond = beyond.above
