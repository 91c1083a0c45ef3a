"""What the head of a message says, in both directions: names, shapes, values and their limits.

`manifest` turns a Message into its head and the sections of its buffer, `check` refuses a head
beyond the limits before anything is allocated, `build` gives the Message back as views.
Offsets are not on the wire: sections stand in the order of the head, each on a multiple of 64
bytes, so that none can overlap another or leave a gap. Layout: docs/reference/wire-format.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CodecError, MisuseError
from ..core.update import Layout, Leaf, Rows, Update
from . import wire_pb2 as pb
from .plain import Limits, Message, check_plain, distinct, entries, finite_plain, table

Array: TypeAlias = NDArray[Any]

ALIGN = 64  # bytes: a cache line, and what vector units and ONNX Runtime like
DTYPES = {code: np.dtype(f"<{name.lower()}") for name, code in pb.Dtype.items() if code}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def manifest(message: Message) -> tuple[pb.Head, list[Array]]:
    """The head, still without its hash, and the sections in its order."""
    head = pb.Head(kind=message.kind, values=entries(message.head))
    sections: list[Array] = []
    for name, array in message.arrays.items():
        if not isinstance(array, Update):
            sections.append(_plain(name, array))
            head.arrays.append(pb.Array(name=name, dtype=_code(sections[-1]), shape=array.shape))
    for name, update in message.arrays.items():
        if isinstance(update, Update):
            sections.append(_plain(name, update.buffer))
            entry = pb.Update(name=name, dtype=_code(sections[-1]), bits=update.bits or 0)
            entry.leaves.extend(pb.Leaf(name=leaf, shape=shape) for leaf, shape in update.layout.leaves)
            for leaf, rows in update.rows.items():
                sections += [_plain(leaf, rows.ids), _plain(leaf, rows.values)]
                k, width = rows.values.shape
                entry.rows.append(pb.Rows(name=leaf, dtype=_code(sections[-1]), count=k, width=width))
            head.updates.append(entry)
    head.size = sum(aligned(section.nbytes) for section in sections)
    return head, sections


def _plain(name: str, array: Array) -> Array:
    """Contiguous and little-endian, copied only where it is not."""
    a = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    if a.dtype not in _CODES:
        raise MisuseError(f"array {name!r} is {array.dtype}; the wire carries {', '.join(map(str, _CODES))}")
    return a


def _code(array: Array) -> Any:
    return _CODES[array.dtype]


def aligned(n: int) -> int:
    """`n` bytes rounded up to the alignment."""
    return n + -n % ALIGN


class Section(NamedTuple):
    """A run of the buffer: `size` numbers of `dtype`."""

    dtype: np.dtype[Any]
    size: int

    @property
    def nbytes(self) -> int:
        """Its bytes in the buffer."""
        return self.size * self.dtype.itemsize


def check(head: pb.Head, limits: Limits) -> list[Section]:
    """The sections in order. Raises CodecError unless every name, shape and size is in order."""
    distinct([a.name for a in head.arrays] + [u.name for u in head.updates], limits)
    leaves = len(head.arrays) + sum(1 + len(u.leaves) + len(u.rows) for u in head.updates)
    if leaves > limits.leaves:
        raise CodecError(f"expected at most {limits.leaves} leaves, the head lists {leaves}")
    sections = [_section(a.dtype, a.shape, limits) for a in head.arrays]
    for u in head.updates:
        sections += _update_sections(u, limits)
    size = sum(aligned(s.nbytes) for s in sections)
    if head.size != size:
        raise CodecError(f"the shapes add up to {size} bytes, the head says {head.size}")
    if size > limits.bytes:
        raise CodecError(f"expected at most {limits.bytes} bytes, the head announces {size}")
    check_plain(head, limits)
    return sections


def _section(code: int, shape: Any, limits: Limits) -> Section:
    if code not in DTYPES:
        raise CodecError(f"dtype {code} is unknown: expected one of {sorted(DTYPES)}")
    if len(shape) > limits.dims or max(shape, default=0) > limits.elements or prod(shape) > limits.elements:
        raise CodecError(f"a shape has more than {limits.dims} dimensions or {limits.elements} numbers")
    return Section(DTYPES[code], prod(shape))


def _update_sections(u: pb.Update, limits: Limits) -> list[Section]:
    distinct([leaf.name for leaf in u.leaves] + [r.name for r in u.rows], limits)
    real = (pb.F4, pb.F8)
    if (
        u.bits > 64
        or u.dtype not in ((pb.U8,) if u.bits else real)
        or any(r.dtype not in real for r in u.rows)
    ):
        raise CodecError(f"update {u.name!r}: expected F4 or F8, or U8 with 1..64 bits in a ring")
    count = sum(_section(u.dtype, leaf.shape, limits).size for leaf in u.leaves)
    sections = [_section(u.dtype, (count,), limits)]
    for r in u.rows:
        sections += [_section(pb.I8, (r.count,), limits), _section(r.dtype, (r.count, r.width), limits)]
    return sections


def build(
    head: pb.Head, sections: list[Section], buffer: NDArray[np.uint8], stream: int, *, finite: bool
) -> Message:
    """Views of the verified buffer under their names."""
    views = _views(sections, buffer)
    arrays: dict[str, Array | Update] = {a.name: next(views).reshape(a.shape) for a in head.arrays}
    for u in head.updates:
        arrays[u.name] = _update(u, views)
    values = table(head.values)
    if finite and not (finite_plain(values) and all(map(_all_finite, arrays.values()))):
        raise CodecError("the message holds a NaN or an infinity where only finite numbers are accepted")
    return Message(head.kind, values, arrays, stream)


def _views(sections: list[Section], buffer: NDArray[np.uint8]) -> Iterator[Array]:
    start = 0
    buffer.flags.writeable = False
    for section in sections:
        end = start + section.nbytes
        if buffer[end : aligned(end)].any():
            raise CodecError("expected zeros between the sections of the buffer")
        yield buffer[start:end].view(section.dtype)
        start = aligned(end)


def _update(u: pb.Update, views: Iterator[Array]) -> Update:
    buffer = next(views)
    if u.bits and u.bits < 64 and len(buffer) and int(buffer.max()) >> u.bits:
        raise CodecError(f"update {u.name!r}: a number is out of the ring of {u.bits} bits")
    rows = {}
    for r in u.rows:
        ids, values = next(views), next(views).reshape(r.count, r.width)
        if len(ids) and (ids[0] < 0 or (ids[1:] <= ids[:-1]).any()):
            raise CodecError(f"rows {r.name!r}: expected ids of at least 0, each larger than the one before")
        rows[r.name] = Rows(ids, values)
    layout = Layout(tuple(Leaf(leaf.name, tuple(leaf.shape)) for leaf in u.leaves))
    return Update(layout, buffer, bits=u.bits or None, rows=rows)


def _all_finite(value: Array | Update) -> bool:
    return value.finite() if isinstance(value, Update) else bool(np.isfinite(value).all())
