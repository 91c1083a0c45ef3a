"""Answers on the disk as a transport leaves them, and a model to answer about."""

from __future__ import annotations

from pathlib import Path

from atoll.wire.body import Checked, layout_of, limits
from atoll.wire.codec import HEADER, Message, encode
from atoll.wire.values import VALUES, values_in


def spool(message: Message, path: Path) -> bytes:
    """Put the message's buffer at `path`, as a transport does; its frame 0."""
    head, *data = (frame[HEADER:] for frame in encode(message, limits(1 << 40)))
    path.write_bytes(b"".join(data))
    return head


def checked(message: Message, path: Path) -> Checked:
    """The message as a gate that refuses nothing would give it."""
    from atoll.wire.body import Section
    from atoll.wire.manifest import aligned

    spool(message, path)
    values = values_in(message.arrays[VALUES], 1 << 20)
    sections, start = [], 0
    for name, a in message.arrays.items():
        if name != VALUES:
            sections.append(Section(name, a.dtype.str, start, list(a.shape)))
        start += aligned(a.nbytes)
    return Checked(values, sections, layout_of(values.leaves))
