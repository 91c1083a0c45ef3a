"""Text burnt into an image, a name or a date: which images a person has to look at before they leave.

suspicion(data set) -> why, "" for none

Three signs, the cheap ones first: what the file says of itself, what kind of image it is, how its pixels
look. None of them proves anything: an image may carry a face or a ring with a name on it.

Text is drawn in strokes of a few pixels, far brighter or darker than what lies left and right of them, line
by line. So the pixels' rule marks pixels that stand out on both sides within a stroke's width, and looks for
rows with several such strokes, as many rows one below the other as the lowest letters are high. What it
finds and what it takes for text on made images: docs/howto/medical-images.md.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from .dicomfile import pixels
from .examples import Array

Rule = Literal["kind", "secondary", "pixels"]
_KINDS = {"US", "IVUS", "XA", "RF", "ES", "XC", "OT", "SC", "DOC", "GM", "SM", "OP"}  # drawn on, or filmed
_CLASSES = (  # secondary capture, ultrasound, angiography, fluoroscopy, visible light
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.6",
    "1.2.840.10008.5.1.4.1.1.3",
    "1.2.840.10008.5.1.4.1.1.12",
    "1.2.840.10008.5.1.4.1.1.77.1",
)
_SCREENS = {"SECONDARY", "SCREEN SAVE", "SCREENSHOT", "CAPTURE"}
STANDS_OUT = 0.3  # of the range of values
WIDEST = 6  # pixels of a stroke
STROKES, ROWS = 4, 5  # in a row of pixels, and such rows one below the other
BRIGHT = 20  # so many pixels may be brighter, or darker, than the range's end: a defect is not a range


def suspicion(found: Any, waived: Collection[Rule] = ()) -> str:
    """Why text may be burnt into this image; "" where nothing says so.

    `waived`: rules that do not apply at this site, for somebody has looked. What a file says of itself
    (BurnedInAnnotation = YES) cannot be waived; where it says NO, its kind is not held against it.
    """
    said = str(found.get("BurnedInAnnotation", "")).upper()
    if said == "YES":
        return "burnt-in text: the file says so"
    kind, name = str(found.get("Modality", "")), str(found.get("SOPClassUID", ""))
    among = kind in _KINDS or any(name == c or name.startswith(f"{c}.") for c in _CLASSES)
    if "kind" not in waived and said != "NO" and among:
        return "burnt-in text suspected: a kind of image that is often drawn on"
    types = {str(word).upper() for word in found.get("ImageType") or ()}
    if "secondary" not in waived and types & _SCREENS:
        return "burnt-in text suspected: derived after the examination (ImageType SECONDARY)"
    if "pixels" in waived:
        return ""
    frames = pixels(found)
    looked = frames[[0, len(frames) // 2, -1]] if len(frames) > 3 else frames
    if any(written(frame) for frame in looked):
        return "burnt-in text suspected: its pixels look like letters"
    return ""


def written(frame: Array) -> bool:
    """Whether lines of text seem to be drawn in an image (rows, columns)."""
    values = frame.astype(np.float32)
    if values.size <= 2 * BRIGHT:
        return False
    ends = np.partition(values.ravel(), (BRIGHT, values.size - BRIGHT))
    low, high = float(ends[BRIGHT]), float(ends[-BRIGHT])
    if high <= low:
        return False
    bright = (values - low) / (high - low)
    return _lines(bright) or _lines(1 - bright)


def _lines(values: Array) -> bool:
    """Whether enough rows, one below the other, hold enough strokes."""
    width, (left, right) = values.shape[1], np.full((2, *values.shape), np.inf, np.float32)
    padded = np.pad(values, ((0, 0), (WIDEST, WIDEST)))
    for far in range(1, WIDEST + 1):
        np.minimum(left, padded[:, WIDEST - far :][:, :width], out=left)
        np.minimum(right, padded[:, WIDEST + far :][:, :width], out=right)
    strokes = values - np.maximum(left, right) >= STANDS_OUT
    near = np.pad(strokes, 1)
    near = near[:, :-2] | near[:, 1:-1] | near[:, 2:]  # a stroke goes on above or below; noise does not
    strokes &= near[:-2] | near[2:]
    begins = strokes & ~np.pad(strokes, ((0, 0), (1, 0)))[:, :-1]
    full = np.pad(begins.sum(axis=1) >= STROKES, 1)
    turns = np.flatnonzero(np.diff(full))
    return bool((turns[1::2] - turns[::2] >= ROWS).any())
