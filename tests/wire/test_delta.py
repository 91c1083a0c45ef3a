"""Deltas give back every word, whatever it stands for, and are small where models moved by few units."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import CodecError
from atoll.core.update import Update
from atoll.transport import delta
from atoll.transport.frames import FrameFile
from atoll.wire.body import params_message
from atoll.wire.codec import Message, encode
from atoll.wire.coded import Code
from atoll.wire.coded import decode as unpacked
from atoll.wire.coded import encode as packed

ODD = np.array([0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF], "<u4")


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Old and new words: numbers that moved by units, by anything, or words that are no numbers at all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1, 16, 1000, 70_000]))
    old = (rng.normal(size=size) * 10.0 ** draw(st.integers(-30, 30))).astype("<f4")
    unit = np.float32(2.0 ** draw(st.integers(-120, 90)))
    moves = rng.integers(-draw(st.integers(0, 300)), 301, size) * (rng.random(size) < draw(st.floats(0, 1)))
    with np.errstate(all="ignore"):
        new = old + moves.astype("<f4") * unit
    for words in (old, new):
        some = rng.random(size) < draw(st.sampled_from([0, 0.01, 0.5]))
        words.view("<u4")[some] = rng.choice(ODD, some.sum())
    some = rng.random(size) < draw(st.sampled_from([0, 0.1, 1]))
    new.view("<u4")[some] = rng.integers(0, 1 << 32, some.sum())
    return old, new


@given(pairs())
def test_old_and_delta_give_every_bit_of_new(pair: tuple[np.ndarray, np.ndarray]) -> None:
    old, new = pair
    moves, rest = (unpacked(code, len(old)) for code in delta._packed(old, new))
    back = delta.moved(old, moves).view("<u4") ^ rest.numbers().view("<u4")
    assert back.tobytes() == new.tobytes()


def files(folder: Path, *models: np.ndarray) -> list[Path]:
    paths = [folder / str(i) for i in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        path.write_bytes(b"".join(encode(params_message(Update.of({"w": model})))))
    return paths


def test_moves_of_few_units_take_few_bytes_also_over_many_rounds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    models = [(rng.normal(size=400_000) * 0.05).astype("f4")]
    for _ in range(10):
        moves = rng.choice([-1, 0, 1], 400_000, p=[0.025, 0.95, 0.025]) * 2.0**-8
        models.append(models[-1] + moves.astype("f4"))
    paths = files(tmp_path, *models)
    whole = paths[0].stat().st_size
    for apart, share in ((1, 0.02), (10, 0.09)):
        old, new = paths[0], paths[apart]
        assert delta.make(FrameFile.of(old), FrameFile.of(new), tmp_path / "delta")
        assert (tmp_path / "delta").stat().st_size < share * whole
        delta.restore(old, tmp_path / "delta", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == new.read_bytes()


def test_a_delta_of_other_words_is_refused(tmp_path: Path) -> None:
    old, new = files(tmp_path, np.ones(64, "f4"), np.full(64, 2, "f4"))
    head = FrameFile.of(new).read(0, 1)[0][24:]
    wide = packed(Code(64, np.dtype("<f8"), np.zeros(0, np.int64), np.zeros(0)))
    plain = packed(Code(64, np.dtype("<f4"), None, np.ones(64, "<f4")))
    for codes in ((wide, plain), (plain, wide), (plain,), (plain[:-1], plain)):
        body = b"".join(len(c).to_bytes(4, "little") + c.tobytes() for c in codes)
        values = {"from": "", "to": "", "head": bytes(head)}
        message = Message("delta", values, {"packed": np.frombuffer(body, "u1")})
        (tmp_path / "bad").write_bytes(b"".join(encode(message)))
        with pytest.raises(CodecError):
            delta.restore(old, tmp_path / "bad", tmp_path / "back")
