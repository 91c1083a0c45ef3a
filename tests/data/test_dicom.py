"""DICOM folders as rows: orientation, spacing, intensity, transfer syntaxes; what is not used says why."""

from __future__ import annotations

import io
import zlib
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
import pydicom

import atoll as at
from atoll.core.errors import ConfigError, DataError
from atoll.data import load_data
from atoll.data.dicomfile import SetAside, image, pixels
from atoll.data.resample import canonical, fitted, respaced
from tests.data.made_dicom import BIG, DEFLATED, EXPLICIT, IMPLICIT, MR, RLE, lettered, phantom, saved, scan

KEY = bytes(range(16))
SYNTAXES = [EXPLICIT, IMPLICIT, BIG, DEFLATED, RLE]
rng = np.random.default_rng(0)


def reason(path: Path, limit: int = 1 << 20) -> str:
    with pytest.raises(SetAside) as caught:
        pixels(image(path, limit))
    return str(caught.value)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_each_transfer_syntax_gives_the_same_pixels(tmp_path, syntax) -> None:
    values = np.random.default_rng(1).integers(-1024, 3000, (2, 5, 7))
    found = image(saved(scan(values), tmp_path / "a.dcm", syntax))
    assert (pixels(found) == values).all()


def test_colours_become_luminance(tmp_path) -> None:
    found = scan(np.zeros((2, 2)), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    found.BitsAllocated = found.BitsStored = 8
    found.HighBit, found.PixelRepresentation = 7, 0
    found.PixelData = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255])
    grey = pixels(image(saved(found, tmp_path / "a.dcm")))
    assert np.allclose(grey[0], [[76.2, 149.7], [29.1, 255.0]], atol=0.1)


@pytest.mark.parametrize(("name", "syntax"), [("JPEG2000", "4.90"), ("JPEG", "4.50")])
def test_jpeg_is_read_where_pillow_is(tmp_path, name, syntax) -> None:
    from PIL import Image
    from pydicom.encaps import encapsulate

    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    out = io.BytesIO()
    Image.fromarray(grey).save(out, name)
    found = scan(np.zeros((64, 64)), BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)
    found.PixelData = encapsulate([out.getvalue()])
    path = saved(found, tmp_path / "a.dcm", pydicom.uid.UID(f"1.2.840.10008.1.2.{syntax}"))
    assert np.abs(pixels(image(path))[0].astype(int) - grey).max() <= 4


@pytest.mark.parametrize(
    ("syntax", "advice"),
    [("4.57", "convert it"), ("4.80", "pip install pyjpegls"), ("4.201", "pylibjpeg-openjpeg")],
)
def test_what_nobody_here_decodes_says_what_would(tmp_path, syntax, advice) -> None:
    from pydicom.encaps import encapsulate

    found = scan(np.zeros((4, 4)))
    found.PixelData = encapsulate([b"\xff\xd8" * 4])
    path = saved(found, tmp_path / "a.dcm", pydicom.uid.UID(f"1.2.840.10008.1.2.{syntax}"))
    assert advice in reason(path)


def test_broken_and_oversize_files_say_why_and_nothing_else(tmp_path) -> None:
    whole = saved(
        scan(rng.integers(0, 9, (32, 32)), PatientName="Secret^Name"), tmp_path / "a.dcm"
    ).read_bytes()
    cut = tmp_path / "cut.dcm"
    reasons = set()
    for end in range(0, len(whole) - 1, 37):
        cut.write_bytes(whole[:end])
        reasons.add(reason(cut))
    for seed in range(150):
        noise = np.random.default_rng(seed)
        bad = bytearray(whole)
        for place in noise.integers(132, len(whole), 20):
            bad[place] = noise.integers(256)
        cut.write_bytes(bad)
        try:
            pixels(image(cut, 1 << 20))
        except SetAside as error:
            reasons.add(str(error))
    known = (
        "no DICOM file",
        "broken: ",
        "no image",
        "larger than 1 MiB",
        "its pixels are numbers",
        "compressed",
    )
    assert [r for r in reasons if not r.startswith(known)] == []
    assert {"no DICOM file"} < reasons
    assert not any("Secret" in r for r in reasons)


def test_sizes_are_looked_at_before_memory_is_taken(tmp_path) -> None:
    huge = saved(scan(np.zeros((4, 4)), Rows=60_000, Columns=60_000, NumberOfFrames=9), tmp_path / "a.dcm")
    assert reason(huge) == "larger than 1 MiB"
    assert reason(huge, limit=100) == "larger than 0 MiB"
    short = saved(scan(np.zeros((4, 4)), Rows=5), tmp_path / "b.dcm")
    assert "another length" in reason(short)
    hidden = scan(np.zeros((4, 4)))
    hidden.PixelData += b"a name hidden after the pixels"
    assert "another length" in reason(saved(hidden, tmp_path / "c.dcm"))
    padded = scan(rng.integers(0, 99, (4, 4)))
    padded.PixelData = pydicom.encaps.encapsulate([bytes(1 << 18)])
    assert "more bytes" in reason(_kept(padded, tmp_path))


def _kept(found, folder: Path) -> Path:
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = RLE
    found.file_meta.MediaStorageSOPClassUID, found.file_meta.MediaStorageSOPInstanceUID = (
        found.SOPClassUID,
        "1.2",
    )
    pydicom.dcmwrite(folder / "kept.dcm", found, enforce_file_format=True)
    return folder / "kept.dcm"


def test_a_deflated_bomb_is_not_unpacked(tmp_path) -> None:
    whole = saved(scan(np.zeros((64, 64))), tmp_path / "a.dcm", DEFLATED).read_bytes()
    meta = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(bytes(64 << 20)) + packer.flush()
    (tmp_path / "b.dcm").write_bytes(whole[:meta] + bomb)
    assert (tmp_path / "b.dcm").stat().st_size < 1 << 17
    assert "once it is unpacked" in reason(tmp_path / "b.dcm")
    assert pixels(image(tmp_path / "a.dcm", 1 << 20)).shape == (1, 64, 64)  # control


# -- one orientation, one spacing, one shape ---------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_a_body_lies_the_same_way_however_it_was_scanned(order, signs) -> None:
    body = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # (S, P, L)
    mm = (2.0, 1.5, 1.0)
    scanned = np.transpose(body, order)
    axes = np.zeros((3, 3))
    for place, (own, sign) in enumerate(zip(order, signs, strict=True)):
        axes[place, 2 - own] = sign
        if sign < 0:
            scanned = np.flip(scanned, place)
    turned, steps = canonical(scanned, [mm[own] for own in order], axes)
    assert (turned == body).all()
    assert steps == mm


def test_an_oblique_slice_is_turned_to_the_nearest_axes() -> None:
    a = np.deg2rad(20)
    row, column = np.array([-np.cos(a), np.sin(a), 0]), np.array([0, 0, -1.0])  # coronal, mirrored, head up
    axes = np.stack([np.cross(row, column), column, row])
    turned, steps = canonical(np.array([[1, 2], [3, 4]]), (2.0, 1.0), axes)
    assert turned.tolist() == [[4, 3], [2, 1]]
    assert steps == (2.0, 1.0)


@pytest.mark.parametrize("wanted", [0.5, 0.7, 2.0, 5.0])
def test_a_slope_stays_a_slope_at_any_spacing(wanted) -> None:
    had = (1.0, 2.0, 0.8)
    at = [(np.arange(n) + 0.5) * s for n, s in zip((12, 10, 14), had, strict=True)]
    slope = (3 * at[0][:, None, None] - 2 * at[1][:, None] + at[2]).astype(np.float32)
    new = respaced(slope, had, wanted)
    to = [(np.arange(n) + 0.5) * wanted for n in new.shape]
    true = 3 * to[0][:, None, None] - 2 * to[1][:, None] + to[2]
    inside = tuple(
        np.flatnonzero((t >= a[0]) & (t <= a[-1])) for t, a in zip(to, at, strict=True)
    )  # outside the centres, the edge's value stands
    assert np.abs(new - true)[np.ix_(*inside)].max() < 1e-3
    assert new.shape == tuple(max(1, round(n * s / wanted)) for n, s in zip(slope.shape, had, strict=True))


def test_fitting_takes_the_middle_and_fills_with_the_smallest() -> None:
    values = np.arange(12.0).reshape(3, 4) + 5
    assert fitted(values, (1, 2)).tolist() == [[10, 11]]
    assert fitted(values, (5, 4))[[0, 4]].tolist() == [[5] * 4] * 2


# -- folders ----------------------------------------------------------------------------------------


def series(folder: Path, values: np.ndarray, number: int, **attributes) -> None:
    """A volume (slices, rows, columns), in files whose order is not that of the slices."""
    for k in np.random.default_rng(number).permutation(len(values)):
        found = scan(values[k], SOPInstanceUID=f"1.2.{number}.{k}", SeriesInstanceUID=f"1.3.{number}")
        found.ImagePositionPatient, found.PatientID = [0, 0, float(k)], f"P{number}"
        for name, value in attributes.items():
            setattr(found, name, value)
        saved(found, folder / f"{number}-{(k * 7) % 11}.dcm")


def test_a_folder_of_classes_as_slices_and_as_volumes(tmp_path) -> None:
    volumes = rng.integers(0, 1000, (4, 5, 8, 8))
    for number, volume in enumerate(volumes):
        series(tmp_path / ("ill" if number % 2 else "well"), volume, number)
    (tmp_path / "well" / "notes.txt").write_text("nothing")
    slices = load_data(tmp_path, shape=(8, 8), intensity="stored")
    assert (len(slices.train), slices.train.x.shape[1:], slices.classes) == (20, (1, 8, 8), ("ill", "well"))
    assert slices.source == "20 images of 4 patients, 1 set aside"
    whole = load_data(tmp_path, shape=(5, 8, 8), intensity="stored")
    assert sorted(whole.train.y.tolist()) == [0, 0, 1, 1]
    assert {x.tobytes() for x in whole.train.x} == {v.astype(np.float32).tobytes() for v in volumes}
    half = load_data(tmp_path, shape=(10, 4, 4), spacing=0.5)
    assert half.train.x.shape == (4, 1, 10, 4, 4)


def test_a_holdout_is_of_patients(tmp_path) -> None:
    """As slices of constant volumes: which patient an image is of stands in its pixels."""
    for number in range(8):
        series(tmp_path / ("ill" if number % 2 else "well"), np.full((4, 4, 4), number + 1), number)
    data = load_data(tmp_path, shape=(4, 4), intensity="stored")
    (site,) = sites = at.partition(data, clients=1, holdout=0.25, seed=2)
    trained, tested = ({int(x.max()) for x in rows.x} for rows in (site, sites.tests[0]))
    assert (len(trained), len(tested)) == (6, 2)
    assert trained.isdisjoint(tested)


def test_labels_by_pseudonym(tmp_path) -> None:
    for number in range(3):
        series(tmp_path, rng.integers(0, 9, (1, 4, 4)), number)
    (tmp_path / "labels.csv").write_text("patient,label\nP0,ill\nP1,well\n")
    data = load_data({"name": "dicom", "path": str(tmp_path), "labels": "labels.csv", "shape": [4, 4]})
    assert (len(data.train), data.classes) == (2, ("ill", "well"))
    assert "1 set aside" in data.source


def test_a_volume_with_a_hole_is_set_aside_and_one_of_few_slices_is_not(tmp_path) -> None:
    series(tmp_path / "a", rng.integers(0, 9, (6, 4, 4)), 1)
    series(tmp_path / "a", rng.integers(0, 9, (6, 4, 4)), 2)
    next((tmp_path / "a").glob("1-10.dcm")).unlink()
    data = load_data(tmp_path, shape=(6, 4, 4))
    assert data.source == "1 images of 1 patients, 1 set aside"


def test_intensity_by_kind(tmp_path) -> None:
    values = rng.integers(0, 4000, (1, 16, 16))
    series(tmp_path / "ct", values, 1, RescaleSlope=2, RescaleIntercept=-1024)
    series(tmp_path / "mr", values, 2, Modality="MR", SOPClassUID=MR)
    series(tmp_path / "pt", values, 3, Modality="PT", PhotometricInterpretation="MONOCHROME1")
    x = load_data(tmp_path, shape=(16, 16)).train.x[:, 0]
    assert np.allclose(x[0], np.clip((2.0 * values[0] - 1024 + 160) / 400, 0, 1), atol=1e-5)
    assert abs(x[1].mean()) < 1e-4 and abs(x[1].std() - 1) < 1e-4
    assert x[2].min() == 0 and x[2].max() == 1
    assert np.corrcoef(x[2].ravel(), values.ravel())[0, 1] < -0.99
    stored = load_data(tmp_path, shape=(16, 16), intensity="stored").train.x[:, 0]
    assert np.allclose(stored[0], 2.0 * values[0] - 1024)


def test_padding_around_a_round_field_is_no_value(tmp_path) -> None:
    values = np.full((1, 8, 8), 100)
    values[0, 0] = -2000
    series(tmp_path / "a", values, 1, PixelPaddingValue=-2000)
    assert (load_data(tmp_path, shape=(8, 8), intensity="stored").train.x == 100).all()


def test_frames_of_an_enhanced_file_have_places_of_their_own(tmp_path) -> None:
    values = rng.integers(0, 99, (3, 4, 4))
    found = scan(values)
    del found.ImagePositionPatient, found.PixelSpacing, found.SliceThickness
    found.PerFrameFunctionalGroupsSequence = frames = pydicom.Sequence()
    for k in (2, 0, 1):
        groups, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, 3.0 * k]
        groups.PlanePositionSequence = [place]
        frames.append(groups)
    shared, measures = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2, 2], 3
    shared.PixelMeasuresSequence = [measures]
    found.SharedFunctionalGroupsSequence = [shared]
    saved(found, tmp_path / "a" / "one.dcm")
    data = load_data(tmp_path, shape=(3, 4, 4), intensity="stored")
    assert (data.train.x[0, 0] == values[[1, 2, 0]]).all()
    assert load_data(tmp_path, shape=(9, 8, 8), spacing=1.0).train.x.shape == (1, 1, 9, 8, 8)


@pytest.mark.parametrize(
    ("options", "path"),
    [({"shape": (4,)}, "$.shape"), ({"spacing": -1.0}, "$.spacing"), ({"window": (1.0, 0.0)}, "$.window")],
)
def test_wrong_options_are_refused(tmp_path, options, path) -> None:
    saved(scan(np.zeros((4, 4))), tmp_path / "a" / "a.dcm")
    with pytest.raises(ConfigError) as caught:
        load_data(tmp_path, **options)
    assert caught.value.path == path


def test_a_folder_without_a_usable_image_says_why(tmp_path) -> None:
    saved(scan(np.zeros((4, 4))), tmp_path / "a.dcm")
    with pytest.raises(DataError, match="1 x it lies in no folder"):
        load_data(tmp_path)


def test_the_samples_of_pydicom(atoll_data, tmp_path) -> None:
    samples = atoll_data / "dicom_samples"
    plain, packed = (pixels(image(samples / f"MR_small{end}.dcm")) for end in ("", "_RLE"))
    assert (plain == packed).all()
    ct = image(samples / "CT_small.dcm")
    assert (pixels(ct).shape, int(pixels(ct).max())) == ((1, 128, 128), 2191)
    report = at.deidentify(samples, tmp_path, key=KEY, waive=("secondary",))
    assert (report.read, report.written, report.patients) == (3, 2, 2)
    kept = next(tmp_path.rglob("*.dcm"))
    assert b"CompressedSamples" not in kept.read_bytes()


# -- de-identified copies -----------------------------------------------------------------------------


def test_a_folder_is_copied_without_names_and_reads_back(tmp_path) -> None:
    pacs, out = tmp_path / "pacs", tmp_path / "scans"
    for number in range(3):
        series(
            pacs / ("ill" if number else "well"), rng.integers(0, 9, (2, 4, 4)), number, StudyDate="20240311"
        )
    saved(scan(np.zeros((4, 4)), Modality="US"), pacs / "ill" / "us.dcm")
    saved(scan(np.zeros((4, 4)), ImageComments="x", Manufacturer="for Jane Doe"), pacs / "ill" / "named.dcm")
    text = lettered(phantom(rng, 128, 2000), rng, 14)
    saved(scan(text), pacs / "ill" / "text.dcm")
    (pacs / "ill" / "list.txt").write_text("Jane Doe")
    report = at.deidentify(pacs, out, key=KEY, classes=True, dates="shift")
    assert (report.read, report.written, report.patients) == (10, 6, 3)
    assert report.reasons == {
        "burnt-in text suspected: a kind of image that is often drawn on": 1,
        "burnt-in text suspected: its pixels look like letters": 1,
        "no DICOM file": 1,
        "the patient's name or number also stands where the profile does not look": 1,
    }
    assert "Jane" not in str(report) and "us.dcm" not in str(report)
    data = load_data(out, shape=(2, 4, 4))
    assert (sorted(data.train.y.tolist()), data.classes) == ([0, 0, 1], ("ill", "well"))
    assert not any(b"P1" in p.read_bytes() or "P1" in str(p.relative_to(out)) for p in out.rglob("*.dcm"))
    found = pydicom.dcmread(next(out.rglob("*.dcm")))
    assert found.PatientIdentityRemoved == "YES"
    codes = [item.CodeValue for item in found.DeidentificationMethodCodeSequence]
    assert (codes, found.LongitudinalTemporalInformationModified) == (["113100", "113107"], "MODIFIED")
    assert found.StudyDate not in ("", "20240311")


def test_the_same_patient_keeps_one_pseudonym_and_one_shift(tmp_path) -> None:
    for number, day in enumerate(("20240311", "20240321")):
        found = scan(np.zeros((4, 4)), SOPInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.3.{number}")
        found.StudyDate, found.StudyTime = day, "120000"
        saved(found, tmp_path / "pacs" / f"{number}.dcm")
    at.deidentify(tmp_path / "pacs", tmp_path / "out", key=KEY, dates="shift")
    (patient,) = (tmp_path / "out").iterdir()
    days = sorted(pydicom.dcmread(p).StudyDate for p in patient.rglob("*.dcm"))
    from datetime import datetime

    first, second = (datetime.strptime(d, "%Y%m%d") for d in days)  # noqa: DTZ007
    assert (second - first).days == 10


def test_characteristics_are_kept_where_asked_and_it_is_written_down(tmp_path) -> None:
    body = {"PatientSex": "F", "PatientAge": "067Y", "PatientWeight": 71, "PatientBirthDate": "19570312"}
    saved(scan(np.zeros((4, 4)), **body), tmp_path / "pacs" / "a.dcm")
    at.deidentify(tmp_path / "pacs", tmp_path / "out", key=KEY, characteristics=True)
    found = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert (found.PatientSex, found.PatientAge, found.PatientWeight) == ("F", "067Y", 71)
    assert not found.PatientBirthDate
    assert [i.CodeValue for i in found.DeidentificationMethodCodeSequence] == ["113100", "113108"]


def test_graphics_in_unused_bits_are_set_aside(tmp_path) -> None:
    found = scan(np.zeros((4, 4)))
    found[0x60000102] = pydicom.DataElement(0x60000102, "US", 12)
    saved(found, tmp_path / "pacs" / "a.dcm")
    report = at.deidentify(tmp_path / "pacs", tmp_path / "out", key=KEY)
    assert list(report.reasons) == ["an overlay lies in the unused bits of its pixels"]


def test_wrong_calls_are_refused(tmp_path) -> None:
    saved(scan(np.zeros((4, 4))), tmp_path / "pacs" / "a.dcm")
    with pytest.raises(ConfigError, match="16 bytes"):
        at.deidentify(tmp_path / "pacs", tmp_path / "out", key=b"short")
    with pytest.raises(ConfigError, match="outside the folder"):
        at.deidentify(tmp_path / "pacs", tmp_path / "pacs" / "out", key=KEY)
    with pytest.raises(ConfigError, match="remove"):
        at.deidentify(tmp_path / "pacs", tmp_path / "out", key=KEY, dates="keep")
    with pytest.raises(DataError, match="no such folder"):
        at.deidentify(tmp_path / "nowhere", tmp_path / "out", key=KEY)
