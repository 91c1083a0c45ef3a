"""The checksum of frames is zlib's, whoever computes it."""

from __future__ import annotations

import importlib
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.wire import crc


@given(st.binary(max_size=5_000), st.integers(0, 2**32 - 1))
def test_it_is_zlibs(data: bytes, before: int) -> None:
    """Of bytes and of views, alone and going on from others."""
    assert crc.crc32(data) == zlib.crc32(data)
    assert crc.crc32(memoryview(data), before) == zlib.crc32(data, before)


def test_without_the_library_zlib_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor it has no wheel for speaks the same protocol."""
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    try:
        assert importlib.reload(crc).crc32 is zlib.crc32
    finally:
        monkeypatch.undo()
        importlib.reload(crc)
