"""What the head of a message says, in both directions: names, shapes, values and their limits.

`manifest` turns a Message into its head and the sections of its buffer, `check` refuses a head
beyond the limits before anything is allocated, `build` gives the Message back as views.
Offsets are not on the wire: sections stand in the order of the head, each on a multiple of 64
bytes, so that none can overlap another or leave a gap. Layout: docs/reference/wire-format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CodecError, MisuseError
from ..core.update import Layout, Leaf, Rows, Update
from . import wire_pb2 as pb

Array: TypeAlias = NDArray[Any]

FRAME = 1 << 20  # bytes of payload in every frame but the last
ALIGN = 64  # bytes: a cache line, and what vector units and ONNX Runtime like
DTYPES = {code: np.dtype(f"<{name.lower()}") for name, code in pb.Dtype.items() if code}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a Decoder accepts; beyond it is a CodecError, raised before anything is allocated.

    `bytes`: of all unfinished messages' buffers together. `head`: bytes of one head, at most
    1 MiB. `leaves`: arrays, leaves and sparse tables of one message. `elements`: numbers in one
    array. `name`: characters. `values`, `depth`: of the plain values. `streams`: messages that
    may be under way at once. The number of frames follows from `bytes`: none may be short.
    """

    bytes: int = 1 << 30
    head: int = FRAME
    leaves: int = 1 << 16
    elements: int = 1 << 28
    dims: int = 8
    name: int = 256
    values: int = 1 << 16
    depth: int = 16
    streams: int = 16


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Message:
    """What travels. `head`: None, bool, int64, float, str, bytes, lists and tables of these.

    `arrays`: Updates, or arrays of float32, float64, int64, uint64, int32 or uint8. Decoded ones
    are read-only views of one buffer, aligned to 64 bytes; `stream` says which stream it came on.
    """

    kind: str
    head: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array | Update] = field(default_factory=dict)
    stream: int = 0


def manifest(message: Message) -> tuple[pb.Head, list[Array]]:
    """The head, still without its hash, and the sections in its order."""
    head = pb.Head(kind=message.kind, values=_entries(message.head))
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


def _entries(table: Mapping[str, Any]) -> list[pb.Entry]:
    return [pb.Entry(name=name, value=_value(value)) for name, value in table.items()]


def _value(value: Any) -> pb.Value:
    """One plain value; a list of integers or of floats only travels packed."""
    made = pb.Value()
    match value:
        case None:
            pass
        case bool():
            made.flag = value
        case int() if -(1 << 63) <= value < 1 << 63:
            made.integer = value
        case float():
            made.real = value
        case str():
            made.text = value
        case bytes():
            made.raw = value
        case list() | tuple():
            _list(made, value)
        case Mapping():
            made.table.SetInParent()
            made.table.entries.extend(_entries(value))
        case _:
            raise MisuseError(
                f"a head holds None, bool, int64, float, str, bytes, lists and tables; got {type(value)}"
            )
    return made


def _list(made: pb.Value, items: list[Any] | tuple[Any, ...]) -> None:
    types = set(map(type, items))
    if types == {int} and all(-(1 << 63) <= x < 1 << 63 for x in items):
        made.integers.items.extend(items)
    elif types == {float}:
        made.reals.items.extend(items)
    else:
        made.list.SetInParent()
        made.list.items.extend(map(_value, items))


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
    _name(head.kind, limits)
    _distinct([a.name for a in head.arrays] + [u.name for u in head.updates], limits)
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
    if len(head.sha256) != 32:
        raise CodecError(f"expected a SHA-256 of 32 bytes, got {len(head.sha256)}")
    _check_values(head, limits)
    return sections


def _section(code: int, shape: Any, limits: Limits) -> Section:
    if code not in DTYPES:
        raise CodecError(f"dtype {code} is unknown: expected one of {sorted(DTYPES)}")
    if len(shape) > limits.dims or max(shape, default=0) > limits.elements or prod(shape) > limits.elements:
        raise CodecError(f"a shape has more than {limits.dims} dimensions or {limits.elements} numbers")
    return Section(DTYPES[code], prod(shape))


def _update_sections(u: pb.Update, limits: Limits) -> list[Section]:
    _distinct([leaf.name for leaf in u.leaves] + [r.name for r in u.rows], limits)
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


def _name(name: str, limits: Limits) -> None:
    if not 1 <= len(name) <= limits.name:
        raise CodecError(f"a name has {len(name)} characters: expected 1..{limits.name}")


def _distinct(names: list[str], limits: Limits) -> None:
    if len(names) > limits.leaves or len(set(names)) != len(names):
        raise CodecError("two leaves share a name, or there are too many")
    for name in names:
        _name(name, limits)


def _check_values(head: pb.Head, limits: Limits) -> None:
    """Count the plain values level by level, so that no nesting can exhaust the stack.

    Each list is counted before its items are touched: an item of 2 bytes becomes an object of 80.
    """
    level: list[pb.Value] = []
    count, depth = len(head.values), 0
    _few(count, depth, limits)
    _open(head.values, level, limits)
    while level:
        deeper: list[pb.Value] = []
        for value in level:
            which = value.WhichOneof("of")
            if which == "table":
                count += len(value.table.entries)
                _few(count, depth, limits)
                _open(value.table.entries, deeper, limits)
            elif which in ("list", "integers", "reals"):
                items = getattr(value, which).items
                count += len(items)
                _few(count, depth, limits)
                deeper += items if which == "list" else ()
        level, depth = deeper, depth + 1
        _few(count, depth, limits)


def _few(count: int, depth: int, limits: Limits) -> None:
    if count > limits.values or depth > limits.depth:
        raise CodecError(f"expected at most {limits.values} plain values, {limits.depth} deep")


def _open(entries: Any, level: list[pb.Value], limits: Limits) -> None:
    _distinct([e.name for e in entries], limits)
    level += [e.value for e in entries]


def build(
    head: pb.Head, sections: list[Section], buffer: NDArray[np.uint8], stream: int, *, finite: bool
) -> Message:
    """Views of the verified buffer under their names."""
    views = _views(sections, buffer)
    arrays: dict[str, Array | Update] = {a.name: next(views).reshape(a.shape) for a in head.arrays}
    for u in head.updates:
        arrays[u.name] = _update(u, views)
    values = {e.name: _python(e.value) for e in head.values}
    if finite and not (_all_finite(values) and all(map(_all_finite, arrays.values()))):
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


def _python(value: pb.Value) -> Any:
    which = value.WhichOneof("of")
    if which is None:
        return None
    inner = getattr(value, which)
    if which == "table":
        return {e.name: _python(e.value) for e in inner.entries}
    if which == "list":
        return [_python(item) for item in inner.items]
    return list(inner.items) if which in ("integers", "reals") else inner


def _all_finite(value: Any) -> bool:
    match value:
        case Update():
            return value.finite()
        case np.ndarray():
            return bool(np.isfinite(value).all())
        case float():
            return isfinite(value)
        case dict() | list():
            return all(map(_all_finite, value.values() if isinstance(value, dict) else value))
    return True
