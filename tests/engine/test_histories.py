"""Windows of devices as they come are the rows of a data set of windows: bit for bit, and each once."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.control.engine.readings import _windowed as dataset
from atoll.sense import history
from atoll.sense.boxes import Kept
from atoll.sense.history import Histories
from atoll.sense.window import Form, Window

FORM = Form("press", (2,), 2)
ANY = 1e9  # no reading is older


def stored(said: list[tuple[str, int, bool]], late: float) -> list[Kept]:
    """Readings as a store keeps them: none that is older than its device's newest by more than `late`."""
    kept, newest = list[Kept](), dict[str, float]()
    for device, at, labelled in said:
        if at >= newest.get(device, -ANY) - late:
            newest[device] = max(at, newest.get(device, -ANY))
            number = len(kept)
            cells = [number + 0.1, math.nan if at % 5 == 0 else at / 3, 1.0 if labelled else math.nan]
            kept.append(Kept(number, device, float(at), str(number), cells))
    return kept


def rows(kept: list[Kept], size: int) -> Counter[tuple[bytes, str]]:
    """What a data set holds: rows, with their labels."""
    x, y = dataset(sorted(kept, key=lambda r: r.at), FORM, size)
    labels = np.full(len(x), np.nan) if y is None else y
    return Counter((row.tobytes(), repr(float(label))) for row, label in zip(x, labels, strict=True))


def came(windows: list[Window]) -> Counter[tuple[bytes, str]]:
    found = Counter[tuple[bytes, str]]()
    for w in windows:
        labels = np.full(len(w), np.nan) if w.labels is None else w.labels
        found.update((row.tobytes(), repr(float(y))) for row, y in zip(w.rows, labels, strict=True))
    return found


def played(kept: list[Kept], after: int = 0, box: int = 3, **more: Any) -> list[Window]:
    made = Histories(form=FORM, after=after, **more)
    begin, _ = made.begin
    boxes = ([r for r in kept[i : i + box] if r.number >= begin] for i in range(0, len(kept), box))
    return [w for here in boxes if here for w in made.add(here)]


SAID = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.booleans()), min_size=1, max_size=60)


@given(SAID, st.integers(1, 5), st.integers(0, 12))
def test_every_final_row_of_the_data_set_comes_once_and_no_other(said, size: int, late: int) -> None:
    kept = stored(said, late)
    newest = {r.source: max(o.at for o in kept if o.source == r.source) for r in kept}
    final = [r for r in kept if r.at <= newest[r.source] - late]
    found = came(played(kept, size=size, late=float(late)))
    assert found == rows(final, size)
    assert not found - rows(kept, size), "no reading that came since belongs into them"


@given(SAID, st.integers(1, 5), st.data())
def test_who_takes_any_age_gives_rows_as_a_data_set_has_them_then(said, size: int, data) -> None:
    kept = stored(said, ANY)
    made = Histories(size, FORM)
    found = Counter[tuple[bytes, str]]()
    for i, reading in enumerate(kept):
        new = came(made.add([reading]))
        assert not new - rows(kept[: i + 1], size)
        found += new
    assert not found or max(found.values()) == 1


@pytest.mark.parametrize("late", [0.0, 1.0, 5.0, 12.0, ANY])
def test_who_is_killed_anywhere_goes_on_with_the_next(late: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BATCH", 4)
    for seed in range(12):
        draw = random.Random(seed)
        moments = (max(0, i // 2 - draw.randint(0, 8)) for i in range(60))
        kept = stored([(draw.choice("abc"), at, draw.random() < 0.7) for at in moments], late)
        more = {"size": draw.randint(1, 6), "late": late if late < ANY else 0.0, "box": draw.randint(1, 9)}
        found = played(kept, **more)
        assert found
        for at in range(0, len(found), 3):
            again = played(kept, found[at].cursor, **more)
            assert [w.cursor for w in again] == [w.cursor for w in found[at + 1 :]]
            assert came(again) == came(found[at + 1 :])


@settings(max_examples=25)
@given(st.lists(st.sampled_from("aaaab"), min_size=20, max_size=80), st.integers(2, 4), st.data())
def test_rows_lie_among_the_newest_readings_and_so_does_memory(who, size: int, data) -> None:
    kept = stored([(device, i, True) for i, device in enumerate(who)], 0)
    newest = data.draw(st.integers(size, 12))
    more = {"size": size, "newest": newest}
    found = played(kept, box=1, **more)
    for w in found:
        assert w.rows[0, 0, 0] >= w.cursor - newest
    inside = (kept[max(0, n - newest) : n] for n in range(1, len(kept) + 1))
    last = ({k for k in rows(part, size) if k[0][-8:-4] == row_end(part)} for part in inside)
    assert came(found) == Counter(k for some in last for k in some)
    if found:
        at = data.draw(st.integers(0, len(found) - 1))
        assert came(played(kept, found[at].cursor, 1, **more)) == came(found[at + 1 :])
    made = Histories(form=FORM, **more)
    for reading in kept:
        made.add([reading])
        assert sum(len(d.held) for d in made._devices.values()) <= 2 * newest


def row_end(part: list[Kept]) -> bytes:
    return np.float32(part[-1].cells[0]).tobytes()


def test_readings_that_leave_before_they_are_final_are_told(caplog) -> None:
    kept = stored([("a", i, True) for i in range(40)], 30)
    assert played(kept, size=2, late=30.0, newest=10) == []
    assert "readings left a watch of 10" in caplog.text
