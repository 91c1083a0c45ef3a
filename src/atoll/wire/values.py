"""An answer's plain values: who answered, weights, metrics, reasons; all of it but the arrays.

They may be many (every site's metrics) and may not fit a head. So they are a head of their own, the
same protobuf message without arrays, in the section "values" of the answer's buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from math import isfinite
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.errors import CodecError, MisuseError
from ..core.metrics import Mean, from_plain, to_plain
from . import wire_pb2 as pb
from .manifest import Section, build, check, manifest
from .plain import Limits, Message, parsed

Form: TypeAlias = Literal["none", "raw", "gather", "sum", "buckets", "sites", "notes"]
T = TypeVar("T")

REASON = 8192  # characters of a failed client's reason: a long traceback's end says what went wrong
VALUES = "values"  # the section's name, and the inner head's kind


class Said(msgspec.Struct):
    """One reply's plain part: its client, weight and metrics, and the bits of its ring if any."""

    client: int
    weight: float
    metrics: dict[str, Any]
    bits: int | None = None


class Part(msgspec.Struct):
    """One partial sum's plain part. `place`: its bucket. `weight`: in wholes and units of 2**-32.

    `widths`: for each of its sparse tables its number and how wide its rows are.
    """

    place: int
    weight: tuple[int, int]
    count: int
    metrics: dict[str, Any]
    limbs: int
    bits: int | None
    widths: list[tuple[int, int]]


class Values(msgspec.Struct):
    """All of an answer but its arrays. `tables`: names of sparse leaves, which sections number.

    `leaves`: names and shapes of every update and sum in it, which the sections hold end to end.
    `notes`: clients' answers to a step of an exchange.
    """

    form: Form
    clients: list[int]
    failed: list[tuple[int, str]]
    sent: int
    replies: list[Said] = []
    parts: list[Part] = []
    sites: list[tuple[int, dict[str, Any]]] = []
    leaves: list[tuple[str, list[int]]] = []
    tables: list[str] = []
    notes: list[tuple[int, bytes]] = []


def values_out(values: Values) -> NDArray[np.uint8]:
    """Plain values as the bytes of a head without arrays. Raises MisuseError."""
    try:
        plain = msgspec.to_builtins(values, builtin_types=(bytes,))
        if not values.notes:
            del plain["notes"]  # most answers have none
        head, _ = manifest(Message(VALUES, plain))
    except (TypeError, UnicodeEncodeError) as error:
        raise MisuseError(f"this answer cannot be sent: {error}") from None
    head.sha256 = sha256().digest()
    return np.frombuffer(head.SerializeToString(deterministic=True), np.uint8)


def values_in(section: Any, most: int) -> Values:
    """The inverse of `values_out`; at most `most` plain values. Raises CodecError."""
    if not isinstance(section, np.ndarray) or section.dtype != np.uint8 or section.ndim != 1:
        raise CodecError(f"expected the answer's plain values as bytes in {VALUES!r}")
    head, _ = head_of(section.tobytes(), Limits(bytes=0, values=most))
    plain = build(head, [], np.empty(0, np.uint8), 0, finite=True).head
    if head.kind != VALUES or head.arrays or head.updates:
        raise CodecError(f"expected plain values only in {VALUES!r}")
    return convert(plain, Values, "an answer's plain values")


def head_of(payload: bytes, limits: Limits) -> tuple[pb.Head, list[Section]]:
    """A head within the limits, every field known and in its shortest form, and the sections of its
    buffer. Raises CodecError.
    """
    head = parsed(payload)
    return head, check(head, limits)


def metrics_out(found: Mapping[str, Any], weight: float = 1.0) -> dict[str, Any]:
    """By name: a finite number as it is, everything else as `[kind, ...]`."""
    plain: dict[str, Any] = {}
    for name, value in found.items():
        if type(value) is not float and hasattr(value, "merge"):
            plain[name] = to_plain(value)
        else:
            number = _number(value)
            plain[name] = number if isfinite(number) else to_plain(Mean(number, weight))
    return plain


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise MisuseError(f"a metric is a number or has merge(); got {type(value).__name__}") from None


def metrics_in(found: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `metrics_out`. Raises CodecError for what is no metric."""
    return {name: value if type(value) is float else from_plain(value) for name, value in found.items()}


def reason(text: str) -> str:
    """The end of a reason, without what a terminal, a page or a database would trip over."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[-REASON:])


def convert(plain: Any, to: type[T], what: str) -> T:
    """Plain values as a record of type `to`. Raises CodecError, naming the place."""
    try:
        return msgspec.convert(plain, to)
    except msgspec.ValidationError as error:
        raise CodecError(f"this is not {what}: {error}") from None
