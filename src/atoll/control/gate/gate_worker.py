"""The process that looks at what clients sent: `python -m atoll.control.gate.gate_worker MOST`.

It reads requests from stdin and answers on stdout, one by one, each a length and JSON (`Case` in,
`Verdict` out). It opens the one file a request names, for reading, and nothing else; it can write no
file and start no process. While it looks at a case it may hold the memory it began with, the file,
and the room that the case is given; MOST is the largest of those. Whatever a client sends can at
worst end this process; control/gate/gate.py starts another one.

The transport has verified lengths, checksums and the SHA-256; here everything is about meaning.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import zstandard  # noqa: F401  loaded before memory is short: wire/coded.py unpacks with it

from ...core.errors import AtollError
from ...core.registry import parts
from ...wire.body import Section, mapped
from ...wire.heap import keep_memory
from ...wire.manifest import build
from ...wire.plain import Limits, Message
from ...wire.values import VALUES, Values, head_of
from ..pipes import framed, records
from .admission import examine
from .want import Want

_DRIFT = 256 << 20  # bytes that may be left over from former cases before the process ends
TICK = 1.0  # seconds between signs of life


class Case(msgspec.Struct):
    """One answer to look at. `head`: its frame 0. `path`: the file with its buffer.

    `room`: bytes of memory it may take besides the file.
    """

    number: int
    want: Want
    head: bytes
    path: str
    room: int


class Verdict(msgspec.Struct, omit_defaults=True):
    """What the worker says of a case: still busy, refused with a reason, failed as the file cannot be
    read, or what may come in. Of number 0: that it begins, and later, that it ends.
    """

    number: int
    busy: bool = False
    refused: str = ""
    failed: str = ""
    values: Values | None = None
    sections: list[Section] = []


def look(case: Case, tick: Callable[[], None] = lambda: None) -> Verdict:
    """The verdict on a case; never raises but for a lack of memory."""
    try:
        message, start = _open(case)
        values, arrays = examine(case.want, message, tick)
        sections = [
            Section(name, a.dtype.str, a.__array_interface__["data"][0] - start, list(a.shape))
            for name, a in arrays.items()
            if name != VALUES
        ]
    except MemoryError:
        raise
    except OSError as error:
        return Verdict(case.number, failed=error.strerror or type(error).__name__)
    except AtollError as error:
        return Verdict(case.number, refused=str(error)[:1000])
    except Exception as error:  # noqa: BLE001  what nobody thought of is refused as well
        return Verdict(case.number, refused=f"it cannot be read ({type(error).__name__})")
    return Verdict(case.number, values=values, sections=sections)


def _open(case: Case) -> tuple[Message, int]:
    """The message as views of the mapped file, and the address of its first byte."""
    head, sections = head_of(case.head, _limits(case.want))
    size = Path(case.path).stat().st_size
    if size != head.size:
        raise AtollError(f"its file has {size} bytes, and its head announces {head.size}")
    raw = mapped(Path(case.path)) if size else np.empty(0, np.uint8)
    return build(head, sections, raw, 0, finite=False), raw.__array_interface__["data"][0]


def _limits(want: Want) -> Limits:
    """What a head may announce: no more bytes than the answer can have, and no more arrays."""
    sums = max(len(want.buckets), 1) * (want.limbs * len(want.leaves) + 2 * len(want.tables))
    arrays = 8 + len(want.clients) * (1 + 2 * len(want.tables)) + sums
    return Limits(bytes=want.size, elements=want.size, leaves=max(arrays, 16), values=16, depth=2)


class Walls:
    """What this process gives up, and how much memory it may hold: it can never take more than `most`."""

    def __init__(self, most: int) -> None:
        self.base = 0
        self._most = most
        try:
            import resource
        except ImportError:  # Windows: the process alone is the wall
            return
        for name in ("RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NPROC"):
            with suppress(ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (0, 0))
        self.base = _address_space()
        self.allow(most)

    def allow(self, room: int) -> None:
        """Let it take `room` bytes more than it holds now."""
        if self.base:
            import resource

            hard = self.base + self._most + _DRIFT
            resource.setrlimit(resource.RLIMIT_AS, (min(_address_space() + room, hard), hard))

    @property
    def worn(self) -> bool:
        """Whether so much is left over from former cases that a fresh process is better."""
        return bool(self.base) and _address_space() > self.base + _DRIFT


def _address_space() -> int:
    """Bytes of address space this process has now, 0 where the system does not say."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, ImportError):
        return 0
    return pages * resource.getpagesize()


def main(most: int) -> None:
    """Answer cases until stdin ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing may print among the answers
    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(Case).decode
    parts()  # metrics of installed plug-ins
    keep_memory(4 << 20)  # numbers of a small answer come and go

    def say(verdict: Verdict) -> None:
        sink.write(framed(encode(verdict)))
        sink.flush()

    walls = Walls(most)
    say(Verdict(0))
    for record in records(source):
        case = decode(record)
        last = time.monotonic()

        def tick(number: int = case.number) -> None:
            nonlocal last
            if time.monotonic() - last > TICK:
                last = time.monotonic()
                say(Verdict(number, busy=True))

        try:
            walls.allow(case.room)
            say(look(case, tick))
        except MemoryError:
            walls.allow(most)
            say(Verdict(case.number, refused="it takes more memory to read than an answer of its size may"))
        if walls.worn:
            say(Verdict(0))
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
