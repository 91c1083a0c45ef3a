"""No value of a listed attribute is left in a de-identified file, at any depth; its pixels are as before."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from atoll.data.dicomfile import image
from atoll.data.profile import ACTIONS
from atoll.data.scrub import Rules, cleaned
from tests.data.made_dicom import BIG, DEFLATED, EXPLICIT, IMPLICIT, RLE, saved, scan

KEY = bytes(range(16))
UNLISTED = (0x00409096, 0x00081115, 0x00189346)  # sequences the profile lets be
TEXT = ("LO", "SH", "LT", "ST", "UT", "UC", "PN", "AE", "CS")
LISTED = sorted(t for t in ACTIONS if dictionary_has_tag(t) and t >> 16 not in (0, 2, 4, 0xFFFC, 0xFFFA))


def value_of(vr: str, number: int) -> tuple[object, bytes | None]:
    """A value of that kind made of `number` (below 1e9), and its bytes where they are too many for chance."""
    text = f"QZ{number:09}"
    if vr in TEXT:
        return text, text.encode()
    made: dict[str, tuple[object, bytes | None]] = {
        "UI": (f"1.2.826.77.{number:09}", f"77.{number:09}".encode()),
        "UR": (f"http://{text}", text.encode()),
        "DT": (
            f"19{number % 60 + 10}0311120000.{number % 10**6:06}",
            f"0311120000.{number % 10**6:06}".encode(),
        ),
        "DA": (f"{1930 + number % 60}0317", None),
        "TM": (
            f"1203{number % 60:02}.{number % 10**6:06}",
            f"1203{number % 60:02}.{number % 10**6:06}".encode(),
        ),
        "AS": (f"{number % 90 + 10:03}Y", None),
        "DS": (f"{number:09}.5", f"{number:09}.5".encode()),
        "IS": (f"{number:09}", f"{number:09}".encode()),
        "US": (number % 60_000 + 1, None),
    }
    if vr in ("OB", "OW", "UN"):
        return text.encode() * 2, text.encode()
    return made[vr]


@st.composite
def marked(draw: st.DrawFn) -> tuple[Dataset, list[bytes], list[tuple[int, object]]]:
    """An image with listed attributes, private blocks, overlays and the like at random depths; what of
    their values must not be found in the bytes, and by attribute.
    """
    root = scan(np.arange(16).reshape(4, 4))
    found: list[bytes] = []
    values: list[tuple[int, object]] = []
    places = [root]
    for tag in draw(st.lists(st.sampled_from(UNLISTED), max_size=3)):
        inner, above = Dataset(), draw(st.sampled_from(places))
        above[tag] = DataElement(tag, "SQ", Sequence([inner]))
        places = [p for p in places if p is root or p is above] + [inner]
    for tag in draw(st.lists(st.sampled_from(LISTED), min_size=1, max_size=12, unique=True)):
        place, number = draw(st.sampled_from(places)), draw(st.integers(10**8, 10**9 - 1))
        vr = dictionary_VR(tag)
        if vr == "SQ":
            inner = Dataset()
            inner.CodeMeaning, inner.ReferencedSOPInstanceUID = f"QZ{number:09}", f"1.2.826.77.{number:09}"
            place[tag] = DataElement(tag, vr, Sequence([inner]))
            found.append(f"77.{number:09}".encode())
            if ACTIONS[tag] != "U":
                found.append(f"QZ{number:09}".encode())
            continue
        value, bits = value_of(vr, number)
        place[tag] = DataElement(tag, vr, value)
        values.append((tag, value))
        found += [] if bits is None else [bits]
    for place in places[: draw(st.integers(0, 2))]:
        number = draw(st.integers(10**8, 10**9 - 1))
        for tag, vr in ((0x00091001, "LO"), (0x50000110, "OW"), (0x60000022, "LO"), (0x00089998, "LO")):
            place[tag] = DataElement(tag, vr, value_of(vr, number)[0])
        place[0x00090010] = DataElement(0x00090010, "LO", f"QZ{number:09}")
        found.append(f"QZ{number:09}".encode())
    return root, found, values


def every(place: Dataset) -> list[tuple[int, object]]:
    below = [pair for e in place if e.VR == "SQ" for item in e.value for pair in every(item)]
    return [(int(e.tag), e.value) for e in place if e.VR != "SQ"] + below


def bare(found: Dataset) -> bytes:
    out = io.BytesIO()
    pydicom.dcmwrite(out, found, enforce_file_format=True)
    return out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scans") / "one.dcm"


@settings(max_examples=150)
@given(
    made=marked(), syntax=st.sampled_from([EXPLICIT, IMPLICIT]), dates=st.sampled_from(["remove", "shift"])
)
def test_no_listed_value_is_left(place, made, syntax, dates) -> None:
    root, found, values = made
    root.preamble = b"QZ-preamble".ljust(128, b"\0")
    saved(root, place, syntax, SourceApplicationEntityTitle="QZ-sender", PrivateInformation=b"QZ-hidden!")
    found = [*found, b"QZ-sender", b"QZ-hidden!"]
    before = place.read_bytes()
    assert [bits for bits in found if bits not in before] == []  # control: without the profile they are there
    data = image(place)
    cleaned(data, Rules(KEY, dates))
    after = bare(data)
    assert [bits for bits in found if bits in after] == []
    left = every(pydicom.dcmread(io.BytesIO(after)))
    assert [pair for pair in values if pair in left] == []
    assert all(value in (None, "", "0", "000Y", "19000101") or tag not in ACTIONS or dates == "shift"
               for tag, value in left if dictionary_VR(tag) in ("DA", "AS"))  # fmt: skip


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED, RLE], ids=lambda uid: uid.name)
def test_its_pixels_are_the_same_bytes(place, syntax) -> None:
    saved(scan(np.random.default_rng(0).integers(-1000, 2000, (3, 8, 9))), place, syntax)
    before, data = pydicom.dcmread(place), image(place)
    cleaned(data, Rules(KEY))
    after = pydicom.dcmread(io.BytesIO(bare(data)))
    assert after.PixelData == before.PixelData
    assert after.file_meta.TransferSyntaxUID == syntax
    assert (after.pixel_array == before.pixel_array).all()


def test_the_same_key_gives_the_same_file_and_another_one_another(place) -> None:
    def done(key: bytes) -> bytes:
        data = image(saved(scan(np.zeros((4, 4))), place))
        cleaned(data, Rules(key))
        return bare(data)

    assert done(KEY) == done(KEY)
    one, other = (pydicom.dcmread(io.BytesIO(done(key))) for key in (KEY, bytes(16)))
    for name in ("PatientID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert one[name].value != other[name].value


def test_references_still_lead_to_what_they_named(place) -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID = "1.2.3.1", "1.2.840.10008.5.1.4.1.1.2"
    data = image(saved(scan(np.zeros((4, 4)), ReferencedImageSequence=Sequence([item])), place))
    cleaned(data, Rules(KEY))
    (kept,) = data.ReferencedImageSequence
    assert kept.ReferencedSOPInstanceUID == data.SOPInstanceUID != "1.2.3.1"
    assert kept.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert Tag("SOPInstanceUID") in ACTIONS
