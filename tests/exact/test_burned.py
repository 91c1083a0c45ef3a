"""Burnt-in text: the rules by kind, and how often the pixels' rule is right on made images."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pydicom")

from atoll.data.burned import suspicion, written
from atoll.data.dicomfile import image
from tests.data.made_dicom import US, lettered, phantom, saved, scan

SIZES, TOPS, HEIGHTS = (128, 256, 512), (255, 4095), (8, 10, 14, 20, 28)


@pytest.mark.parametrize(
    ("attributes", "waived", "words"),
    [
        ({}, (), ""),
        ({"BurnedInAnnotation": "YES"}, ("kind", "secondary", "pixels"), "the file says so"),
        ({"Modality": "US"}, (), "a kind of image"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, (), ""),
        ({"Modality": "US"}, ("kind",), ""),
        ({"SOPClassUID": US}, (), "a kind of image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, (), "a kind of image"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, (), "ImageType SECONDARY"),
        ({"ImageType": ["DERIVED", "SECONDARY"], "BurnedInAnnotation": "NO"}, (), "ImageType SECONDARY"),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, (), ""),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, ("secondary",), ""),
    ],
)
def test_what_a_file_says_of_itself(tmp_path, attributes, waived, words) -> None:
    found = image(saved(scan(np.zeros((64, 64)), **attributes), tmp_path / "a.dcm"))
    reason = suspicion(found, waived)
    assert words in reason and bool(words) == bool(reason)


def test_letters_in_one_frame_of_many_are_seen_and_can_be_waived(tmp_path) -> None:
    rng = np.random.default_rng(0)
    frames = np.stack([phantom(rng, 128, 2000) for _ in range(3)])
    frames[2] = lettered(frames[2], rng, 14)
    found = image(saved(scan(frames), tmp_path / "a.dcm"))
    assert "look like letters" in suspicion(found)
    assert suspicion(found, ("pixels",)) == ""


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64)), np.eye(64), np.ones((3, 3)), np.arange(4096.0).reshape(64, 64)]
)
def test_plain_images_are_no_letters(image) -> None:
    assert not written(image)


def test_how_often_it_is_right() -> None:
    """docs/howto/medical-images.md says what `measured(2000, 0)` came to; here is a share of it."""
    false, missed = measured(images=60, seed=1)
    assert false <= 6 and missed <= 4


def measured(images: int, seed: int) -> tuple[int, int]:
    """Of so many made images each: plain ones taken for text, lettered ones not."""
    rng = np.random.default_rng(seed)
    false = missed = 0
    for number in range(images):
        plain = phantom(rng, SIZES[number % 3], TOPS[number // 3 % 2])
        false += written(plain)
        missed += not written(lettered(plain, rng, HEIGHTS[number % 5]))
    return false, missed
