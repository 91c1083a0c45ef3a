"""Laws of learn/kernel.py's `spread`: every number is worked on once, whatever the cores."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.update import Update
from atoll.learn import kernel
from atoll.learn.kernel import spread
from atoll.learn.rounds import add


@given(st.integers(0, 500), st.integers(1, 100), st.integers(1, 7))
def test_every_number_is_worked_on_once(size: int, least: int, cores: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "cores", lambda: cores)
        done, parts = np.zeros(size, np.int64), []

        def work(part: slice) -> None:
            parts.append(part)
            done[part] += 1

        spread(size, work, least)
        assert done.tolist() == [1] * size
        assert len(parts) <= max(1, min(cores, size // least))


@pytest.mark.parametrize("bad", [0, 50, 99])
def test_what_fails_in_any_part_is_raised(bad: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "cores", lambda: 4)
        ended = []

        def work(part: slice) -> None:
            ended.append(part)
            if part.start <= bad < part.stop:
                raise ValueError(bad)

        with pytest.raises(ValueError, match=str(bad)):
            spread(100, work, 1)
        assert any(part.start <= bad < part.stop for part in ended)


def test_a_large_model_is_stepped_to_the_same_bytes_on_any_number_of_cores() -> None:
    draw = np.random.default_rng(0)
    params = Update.of({"w": draw.random(9 << 20, np.float32)})
    step = Update.of({"w": draw.normal(size=9 << 20)})
    with pytest.MonkeyPatch.context() as patch:
        for cores in (1, 2, 3):
            patch.setattr(kernel, "cores", lambda: cores)  # noqa: B023
            assert np.array_equal(add(params, step).buffer, (params.buffer + step.buffer).astype(np.float32))


def test_parts_that_no_thread_is_free_for_are_worked_on_here() -> None:
    release = Event()
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "cores", lambda: 3)
        patch.setattr(kernel, "_pool", lambda: pool)
        pool.submit(release.wait)
        done = np.zeros(9, np.int64)

        def work(part: slice) -> None:
            done[part] += 1

        spread(9, work, 1)
        release.set()
    assert done.tolist() == [1] * 9
