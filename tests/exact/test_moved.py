"""Dates that are moved: intervals stay, midnight is crossed, what cannot be moved is not kept."""

from __future__ import annotations

from datetime import timedelta

import pytest

pytest.importorskip("pydicom")
from pydicom.dataset import Dataset

from atoll.data.dicomfile import quiet
from atoll.data.moved import moved, shift_of

SHIFT = timedelta(days=10, seconds=3600)


def of(**values: str) -> dict[str, str]:
    found = Dataset()
    with quiet():
        for name, value in values.items():
            setattr(found, name, value)
    return {found[tag].keyword: value for tag, value in moved(found, SHIFT).items()}


@pytest.mark.parametrize(
    ("values", "new"),
    [
        (
            {"StudyDate": "20240311", "StudyTime": "103015.25"},
            {"StudyDate": "20240301", "StudyTime": "093015.25"},
        ),
        ({"StudyDate": "20240311", "StudyTime": "003000"}, {"StudyDate": "20240229", "StudyTime": "233000"}),
        ({"StudyDate": "20240311"}, {"StudyDate": "20240301"}),
        ({"StudyDate": "2024.03.11"}, {"StudyDate": "20240301"}),
        ({"StudyTime": "003000"}, {"StudyTime": "233000"}),
        ({"AcquisitionDateTime": "20240311103015.5+0100"}, {"AcquisitionDateTime": "20240301093015.5+0100"}),
        ({"AcquisitionDateTime": "202403"}, {}),
        ({"StudyDate": "20241399", "StudyTime": "1030"}, {}),
        ({"StudyDate": "00010101"}, {}),
        ({"PatientBirthDate": "19570312", "PatientBirthTime": "120000"}, {}),
    ],
)
def test_dates_move_together(values, new) -> None:
    assert of(**values) == new


def test_a_shift_is_never_nothing() -> None:
    assert shift_of(bytes(32)) == timedelta(days=1, seconds=1)
    assert timedelta(days=1) < shift_of(b"\xff" * 32) < timedelta(days=3651)
