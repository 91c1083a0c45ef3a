"""A compact update: some numbers, at some of its places, as bytes that anybody can read back.

A code says two things, independent of each other:

    where   at every place, at listed ones (gap by gap), or at ones drawn from a key that all share
    what    floats as they are, or integers of 1, 2, 4 or 8 bits with one scale for each 1,024

Whatever `encode` wrote, `decode` reads as the same numbers, bit for bit, on any machine: an integer times
its scale is one float32 product. Each stream of the code is packed where that makes it smaller: by
zstandard, or by gzip where zstandard is not at hand; their frames begin with different bytes. `decode`
trusts nothing: it checks every length before it allocates, and of a stream that would unpack to another
length than its place in the code allows no more than that is unpacked. Format: docs/reference/answers.md.

Laws (tests/laws/test_coded.py): decode(encode(c)) is c; whatever bytes come, decode gives a code of `size`
places or raises CodecError, and takes memory in proportion to `size`, not to what the bytes claim.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CodecError, MisuseError
from ..core.rng import Rng
from ..core.update import Layout, Update

Array = NDArray[Any]

WIDTH = 1024  # numbers that share a scale
BITS = (1, 2, 4, 8)  # of an integer; 0 stands for floats
LARGEST = 2.0**120  # scale, so that no integer times it is infinite
ALL, LISTED, DRAWN = range(3)

_HEAD = struct.Struct("<4BQQ")  # where, itemsize of the update, bits, 0; how many numbers; the key
_STREAM = struct.Struct("<QQ")  # bytes unpacked, bytes here; equal where they are not packed
_FAR = 255  # a gap byte that says: go on as far, and read the next one
_SAMPLE = 1 << 16  # bytes, or numbers, that are packed to see whether packing pays
_LARGE = 1 << 18  # bytes; of shorter streams no sample is taken
_PAYS = 0.95  # of its length, at most, for a sample
_SAVES = 0.75  # of a plain update, at most: the exponents of any real numbers save an eighth
_WORTH = 1 << 12  # bytes of an update; smaller ones travel as they are
_GZIP = b"\x1f\x8b"  # its first bytes; a zstandard frame begins with 28 B5 2F FD
_WBITS = 31  # zlib's word for gzip with its largest window
_LENGTH = "a stream of a compact update unpacks to another length than it must have"


class Drawn(NamedTuple):
    """`k` places drawn from `key`: one in each of as many equal strata of the update."""

    k: int
    key: int

    def places(self, size: int) -> NDArray[np.int64]:
        """The places, increasing, (k,) int64 below `size`; k is at most `size`."""
        n = np.uint64(max(self.k, 1))
        steps = np.arange(self.k + 1, dtype=np.uint64)
        edges = steps * np.uint64(size) // n  # nothing overflows: `encode` and `decode` refuse 2**32 numbers
        random = Rng(self.key).generator().bit_generator.random_raw(self.k)
        return np.asarray((edges[:-1] + random % np.diff(edges)).astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """Numbers of an update of `size` numbers of `dtype` (float32 or float64); elsewhere it is 0.

    `where`: increasing places (k,) int64, a `Drawn`, or None for all. `what`: floats (k,) of `dtype`, or
    with `bits` the levels of integers (k,) uint8, level - 2**(bits - 1) times its block's scale; with one
    bit level 1 is +scale and level 0 is -scale. `scales`: (⌈k / 1024⌉,) float32, 0 to LARGEST.
    """

    size: int
    dtype: np.dtype[Any]
    where: NDArray[np.int64] | Drawn | None
    what: Array
    bits: int = 0
    scales: Array | None = None

    def values(self) -> Array:
        """The numbers themselves, (k,) of `dtype`."""
        if not self.bits:
            return self.what
        out = np.empty(len(self.what), np.float32)
        middle = np.float32(2 ** (self.bits - 1) if self.bits > 1 else 0.5)
        unit = self.scales if self.bits > 1 else 2 * np.asarray(self.scales)
        for block, here in rows(len(out)):
            x = out[block].reshape(here.stop - here.start, -1)
            np.subtract(self.what[block].reshape(x.shape), middle, out=x, dtype=np.float32)
            x *= np.asarray(unit)[here, None]
        return out.astype(self.dtype, copy=False)

    def numbers(self, out: Array | None = None) -> Array:
        """The whole update's numbers, (size,) of `dtype`; into `out`, which holds zeros, if it is given."""
        values = self.values()
        if self.where is None and out is None:
            return values.copy() if values is self.what else values
        full = np.zeros(self.size, self.dtype) if out is None else out
        full[slice(None) if self.where is None else places(self)] = values
        return full


class Coded(Update):
    """An update that also has a compact form: `code`, and `packed`, its bytes that travel, (n,) uint8.

    Its numbers are those that the receiver decodes, and are made when somebody first asks for them. A part
    that changes them makes a plain Update of it.
    """

    __slots__ = ("_code", "_numbers", "packed")

    def __init__(self, layout: Layout, code: Code, packed: Array | None = None) -> None:
        """`packed`: what `encode` makes of the code, where that is known."""
        if code.size != layout.size:
            raise MisuseError(f"this layout needs a code of {layout.size} numbers, got {code.size}")
        self.layout, self.bits, self.rows = layout, None, {}
        self.packed = encode(code) if packed is None else packed
        self._code: Code | None = code
        self._numbers: Array | None = None

    def __reduce__(self) -> tuple[type[Coded], tuple[Layout, Code, Array]]:
        return Coded, (self.layout, self.code, self.packed)

    @property
    def code(self) -> Code:
        """What the packed bytes say."""
        return decode(self.packed, self.layout.size) if self._code is None else self._code

    @property
    def buffer(self) -> Array:  # type: ignore[override]  # read-only here, as its numbers are everywhere
        """The numbers, (layout.size,) of the code's dtype."""
        if self._numbers is None:
            self._numbers = self.code.numbers()
            self._numbers.flags.writeable = False
        return self._numbers

    @property
    def sent(self) -> int:
        """Bytes of it on the wire, where numbers travel as they are if that is shorter."""
        return min(self.packed.nbytes, self.layout.size * int(self.packed[1]))

    def spool(self, folder: Path) -> None:
        """Keep the numbers in a nameless file in `folder` instead of memory. Raises OSError without room."""
        code = self.code
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # or writing to the map would end the process on a full disk
                os.posix_fallocate(file.fileno(), 0, code.size * code.dtype.itemsize)
            file.truncate(code.size * code.dtype.itemsize)
            numbers = np.memmap(file, code.dtype, "r+", shape=(code.size,)).view(np.ndarray)
        code.numbers(numbers)
        numbers.flags.writeable = False
        self._numbers, self._code = numbers, None

    def scale(self, factor: float, *, own: bool = False) -> Update:
        """Every number times `factor`, still compact: its floats or its scales take the factor."""
        code = self.code
        if code.scales is None:
            return Coded(self.layout, replace(code, what=code.what * code.dtype.type(factor)))
        with np.errstate(over="ignore"):
            scales = code.scales * np.float32(factor)
        if factor < 0 or not (scales <= LARGEST).all():
            return Update(self.layout, self.buffer).scale(factor)
        return Coded(self.layout, replace(code, scales=scales))


def compact(array: Array) -> bool:
    """Whether an update's array in an answer is a code: numbers are no bytes, and a ring's have two axes."""
    return bool(array.dtype == np.uint8 and array.ndim == 1)


def places(code: Code) -> NDArray[np.int64]:
    """Where the numbers stand, increasing, (k,) int64."""
    if code.where is None:
        return np.arange(code.size)
    return code.where.places(code.size) if isinstance(code.where, Drawn) else code.where


def rows(count: int) -> Iterator[tuple[slice, slice]]:
    """Range(count) in pieces, each some whole blocks of WIDTH or one that is not; and which they are."""
    whole = count // WIDTH
    for start in range(0, whole, 64):
        stop = min(start + 64, whole)
        yield slice(start * WIDTH, stop * WIDTH), slice(start, stop)
    if count % WIDTH:
        yield slice(whole * WIDTH, count), slice(whole, whole + 1)


def lossless(x: Array) -> NDArray[np.uint8]:
    """Floats (n,) packed bit for bit, as `decode` reads them; about as long as they are where nothing helps.

    Where three in four are 0, only the others and their places are packed; else the bytes of equal weight, of
    which exponents pack well and the lowest do not.
    """
    dtype = x.dtype.newbyteorder("<")
    raw = x.view(f"<u{x.itemsize}")  # by its bits: a negative zero is kept as well
    if np.count_nonzero(raw) * 4 >= x.size:
        return encode(Code(x.size, dtype, None, x))
    held = np.flatnonzero(raw)
    return encode(Code(x.size, dtype, held, x[held]))


def shortest(update: Update, *, packs: bool) -> Array:
    """A real update's numbers as they travel: (n,) bytes where that is shorter, else as they are.

    `packs`: a plain one is packed without loss where that saves a quarter.
    """
    if isinstance(update, Coded):
        return update.packed if update.packed.nbytes == update.sent else update.buffer
    x = update.buffer
    if not packs or x.nbytes < _WORTH or x.size >> 32:
        return x
    if x.size > 4 * _SAMPLE:
        middle = x[x.size // 2 :][:_SAMPLE]
        if plain_bytes(middle) == middle.nbytes:
            return x
    packed = lossless(x)
    return packed if packed.nbytes < _SAVES * x.nbytes else x


def plain_bytes(x: Array) -> int:
    """Bytes of floats (n,) that stand for many more, as `shortest` would have those travel."""
    packed = lossless(x).nbytes
    return packed if packed < _SAVES * x.nbytes else x.nbytes


def level(update: Update) -> Update:
    """The same update, of a size that does not follow its numbers where it is compact."""
    if not isinstance(update, Coded):
        return update
    return Coded(update.layout, update.code, encode(update.code, packs=False))


# -- as bytes --------------------------------------------------------------------------------


def encode(code: Code, *, packs: bool = True) -> NDArray[np.uint8]:
    """The code as bytes, (n,) uint8. `packs`: its streams are packed where that is shorter.

    Raises MisuseError for a code that no receiver would take.
    """
    if code.size >> 32 or (code.bits and code.bits not in BITS):
        raise MisuseError(f"expected fewer than 2**32 numbers, of {BITS} bits; got {code.size}, {code.bits}")
    kind, key = ALL, 0
    streams: list[Array] = []
    planes: Iterator[Array] = iter(())
    if isinstance(code.where, Drawn):
        kind, key = DRAWN, code.where.key
    elif code.where is not None:
        kind = LISTED
        streams.append(_gaps(code.where))
    if code.bits:
        streams += [np.asarray(code.scales, "<f4").view(np.uint8), _narrow(code.what, code.bits)]
    else:
        planes = _planes(code.what)
    packed = bytearray(_HEAD.pack(kind, code.dtype.itemsize, code.bits, 0, len(code.what), key))
    for stream in chain(streams, planes):  # one after the other: an update may be most of a device's memory
        packed += _packed(stream, packs=packs)
    made = np.frombuffer(packed, np.uint8)
    made.flags.writeable = False
    return made


def decode(data: Array, size: int) -> Code:
    """The code of an update of `size` numbers. Raises CodecError, before it allocates, for what is none."""
    if data.dtype != np.uint8 or data.ndim != 1 or len(data) < _HEAD.size:
        raise CodecError("expected a compact update as bytes")
    raw = np.ascontiguousarray(data).data
    kind, itemsize, bits, zero, count, key = _HEAD.unpack_from(raw)
    if kind > DRAWN or itemsize not in (4, 8) or bits not in (0, *BITS) or zero or (key and kind != DRAWN):
        raise CodecError("expected the head of a compact update")
    if size >> 32 or count > size or (kind == ALL and count != size):
        raise CodecError(
            f"expected at most {size} numbers in a compact update, all of them where it names none"
        )
    streams = _Streams(raw[_HEAD.size :])
    where: Any = Drawn(count, key) if kind == DRAWN else None
    if kind == LISTED:
        where = _listed(streams.take(count, count + size // _FAR), count, size)
    dtype = np.dtype(f"<f{itemsize}")
    if not bits:
        planes = [streams.take(count) for _ in range(itemsize)]
        streams.done()
        return Code(size, dtype, where, np.stack(planes, axis=-1).reshape(-1).view(dtype))
    scales = streams.take(4 * -(-count // WIDTH)).view("<f4")
    levels = _wide(streams.take(-(-count * bits // 8)), count, bits)
    streams.done()
    if not (scales <= LARGEST).all() or np.signbit(scales).any():  # NaN fails as well
        raise CodecError("expected scales from 0 to 2**120 in a compact update")
    if bits > 1 and levels.size and not levels.min():
        raise CodecError(f"an integer of a compact update is not one of {bits} bits")
    return Code(size, dtype, where, levels, bits, scales)


def _gaps(where: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Zeros between one place and the next, one byte each; a byte of 255 for each 255 of them."""
    gaps = np.diff(where, prepend=-1) - 1
    if gaps.size and int(gaps.max()) < _FAR:  # the common case, ten times as quick
        return gaps.astype(np.uint8)
    far = gaps // _FAR
    out = np.full(len(gaps) + int(far.sum()), _FAR, np.uint8)
    out[np.cumsum(far + 1) - 1] = gaps - far * _FAR
    return out


def _listed(gaps: NDArray[np.uint8], count: int, size: int) -> NDArray[np.int64]:
    """The places again: increasing and different, as no gap is negative. Raises CodecError."""
    ends = gaps != _FAR
    if np.count_nonzero(ends) != count or (gaps.size and not ends[-1]):
        raise CodecError(f"expected {count} places in a compact update")
    where = np.cumsum(gaps, dtype=np.int64)[ends]
    where += np.arange(count)
    if count and where[-1] >= size:
        raise CodecError(f"expected places below {size} in a compact update")
    return np.asarray(where)


def _narrow(levels: Array, bits: int) -> NDArray[np.uint8]:
    """(k,) levels below 2**bits, packed, the first in the lowest bits; what is left over is 0."""
    if bits == 8:
        return np.asarray(levels, np.uint8)
    if bits == 1:
        return np.packbits(levels, bitorder="little")
    per = 8 // bits
    short = -len(levels) % per
    even = np.concatenate([levels, np.zeros(short, np.uint8)]) if short else levels
    out = even[0::per].copy()
    for i in range(1, per):
        out |= even[i::per] << (bits * i)
    return np.asarray(out)


def _wide(packed: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint8]:
    """The inverse of `_narrow`. Raises CodecError where what is left over is not 0."""
    if bits == 8:
        return packed
    if bits == 1:
        out = np.unpackbits(packed, bitorder="little")
    else:
        per = 8 // bits
        out = np.empty(len(packed) * per, np.uint8)
        for i in range(per):
            out[i::per] = packed >> (bits * i)
        out &= (1 << bits) - 1
    if out[count:].any():
        raise CodecError("expected zeros after the last integer of a compact update")
    return out[:count]


def _planes(values: Array) -> Iterator[NDArray[np.uint8]]:
    """The first bytes of all numbers (k,), then the second ones, …: alike, so they pack well."""
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    raw = flat.view(np.uint8).reshape(-1, values.dtype.itemsize)
    for j in range(values.dtype.itemsize):
        yield np.ascontiguousarray(raw[:, j])


def _packed(stream: Array, *, packs: bool) -> bytes:
    """A stream with its lengths, packed where that is shorter."""
    data = np.ascontiguousarray(stream).reshape(-1).data
    small = _zipped(data) if packs else None
    if small is not None and len(small) < len(data):
        return _STREAM.pack(len(data), len(small)) + small
    return _STREAM.pack(len(data), len(data)) + bytes(data)


def _zipped(data: memoryview) -> bytes | None:
    """`data` as one frame, None where a sample of it shows that this does not pay."""
    if len(data) < 64:
        return None
    pack = _packer(len(data))
    if len(data) > _LARGE:
        middle = (len(data) - _SAMPLE) // 2
        if len(pack(data[middle : middle + _SAMPLE])) > _PAYS * _SAMPLE:
            return None
    return pack(data)


def _packer(length: int) -> Callable[[memoryview], bytes]:
    """What makes a frame of so many bytes: zstandard, or gzip where that is not installed."""
    try:
        import zstandard  # here, because not everybody who speaks to a federation packs
    except ImportError:
        return partial(zlib.compress, level=1, wbits=_WBITS)  # it writes no time: the same bytes again
    # Numbers repeat by chance: to look for long runs only is twice as quick, and the result a tenth shorter.
    how = zstandard.ZstdCompressionParameters.from_level(1, source_size=length, hash_log=6, min_match=7)
    return zstandard.ZstdCompressor(compression_params=how).compress


class _Streams:
    """Streams one after the other; each says how long it is, and is held to what was expected."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, least: int, most: int | None = None) -> NDArray[np.uint8]:
        """The next stream, of `least` bytes, or up to `most`."""
        if len(self._data) < _STREAM.size:
            raise CodecError("a compact update ends before its last stream")
        length, here = _STREAM.unpack_from(self._data)
        data = self._data[_STREAM.size :][:here]
        if not least <= length <= (least if most is None else most) or len(data) != here or here > length:
            raise CodecError("a stream of a compact update has another length than it must have")
        self._data = self._data[_STREAM.size + here :]
        return np.frombuffer(data if here == length else _unzipped(data, length), np.uint8)

    def done(self) -> None:
        """Raise CodecError if bytes are left."""
        if len(self._data):
            raise CodecError("a compact update goes on after its last stream")


def _unzipped(data: memoryview, length: int) -> bytes:
    """One frame that unpacks to exactly `length` bytes; no more are ever made of it."""
    if data[:2] == _GZIP:
        return _gunzipped(data, length)
    try:
        import zstandard
    except ImportError:
        raise CodecError(
            "a stream of a compact update is not gzip, and this machine has no zstandard to read it with:"
            " pip install zstandard"
        ) from None
    try:
        if zstandard.frame_content_size(data) != length:  # read before anything is unpacked
            raise CodecError(_LENGTH)
        out: bytes = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"a stream of a compact update is damaged: {error}") from None
    if len(out) != length:
        raise CodecError(_LENGTH)
    return out


def _gunzipped(data: memoryview, length: int) -> bytes:
    """One gzip member of `length` bytes: one more is asked for, which must not come."""
    unpack = zlib.decompressobj(wbits=_WBITS)
    try:
        out = unpack.decompress(data, length + 1)
    except zlib.error as error:
        raise CodecError(f"a stream of a compact update is damaged: {error}") from None
    if len(out) != length:
        raise CodecError(_LENGTH)
    if not unpack.eof or unpack.unused_data:
        raise CodecError("expected one whole gzip member in a stream of a compact update, and no more")
    return out
