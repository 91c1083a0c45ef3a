"""Golden bytes of the codec, in both directions, and bytes that must be refused."""

from __future__ import annotations

import json
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from atoll.core import errors
from atoll.core.update import Layout, Leaf, Rows, Update
from atoll.wire.codec import Message, decode, encode

VECTORS = json.loads(Path(__file__).with_name("codec.json").read_text(encoding="utf-8"))
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "wire-format.md"


def build(m: dict[str, Any]) -> Message:
    """The message that a vector describes."""
    arrays: dict[str, Any] = {}
    for name, a in m.get("arrays", {}).items():
        arrays[name] = np.array(a["values"], a["dtype"]).reshape(a["shape"])
    for name, u in m.get("updates", {}).items():
        layout = Layout(tuple(Leaf(leaf, tuple(shape)) for leaf, shape in u["leaves"]))
        rows = {
            leaf: Rows(np.array(r["ids"], "i8"), np.array(r["values"], r["dtype"]).reshape(len(r["ids"]), -1))
            for leaf, r in u.get("rows", {}).items()
        }
        arrays[name] = Update(layout, np.array(u["buffer"], u["dtype"]), bits=u.get("bits"), rows=rows)
    return Message(m["kind"], m.get("head", {}), arrays, m.get("stream", 0))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: c["name"])
def test_golden_bytes(case: dict[str, Any]) -> None:
    message, data = build(case["message"]), bytes.fromhex(case["bytes"])
    assert b"".join(encode(message)).hex() == case["bytes"]
    back = decode(data)
    assert (back.kind, back.head, back.stream) == (message.kind, message.head, message.stream)
    assert list(back.arrays) == list(message.arrays)
    for name, array in message.arrays.items():
        got = back.arrays[name]
        if isinstance(array, Update):
            assert isinstance(got, Update)
            assert got.__eq__(array)
            assert got.buffer.dtype == array.buffer.dtype
        else:
            np.testing.assert_array_equal(got, array, strict=True)


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda c: c["name"])
def test_refused_bytes(case: dict[str, Any]) -> None:
    with pytest.raises(getattr(errors, case["error"])):
        decode(bytes.fromhex(case["bytes"]))


def test_the_page_shows_the_worked_example() -> None:
    example = next(c for c in VECTORS["cases"] if c["name"] == "worked example")
    block = PAGE.read_text(encoding="utf-8").split("```hex\n")[1].split("```")[0]
    shown = "".join(line.split("|")[0] for line in block.splitlines()).replace(" ", "")
    assert shown == example["bytes"]


def test_the_worked_example_reads_without_our_code() -> None:
    """Only struct, crc32 and sha256, as the page describes it."""
    example = next(c for c in VECTORS["cases"] if c["name"] == "worked example")
    data = bytes.fromhex(example["bytes"])
    frames: list[bytes] = []
    while data:
        magic, stream, sequence, length, crc = struct.unpack_from("<4sQIII", data)
        payload, body = data[24 : 24 + length], data[:20] + data[24 : 24 + length]
        assert (magic, stream, sequence, crc) == (b"ATL\x01", 7, len(frames), crc32(body))
        frames.append(payload)
        data = data[24 + length :]
    head, buffer = frames
    assert b"\x32\x20" + sha256(buffer).digest() in head  # field 6, 32 bytes
    assert struct.unpack_from("<5f", buffer) == (1.0, -2.0, 0.5, 0.0, 3.0)
    assert buffer[20:] == bytes(44)
