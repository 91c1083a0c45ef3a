"""DICOM files made for tests, and letters to burn into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

CT, MR, US = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "6.1"))
EXPLICIT, IMPLICIT, BIG, DEFLATED, RLE = (
    UID(f"1.2.840.10008.1.2{end}") for end in (".1", "", ".2", ".1.99", ".5")
)


def scan(values: Any, **attributes: Any) -> Dataset:
    """A CT image (rows, columns) or (frames, rows, columns) of int16, with these attributes besides."""
    pixels = np.asarray(values, np.int16)
    found = Dataset()
    found.SOPClassUID, found.Modality = CT, "CT"
    found.SOPInstanceUID, found.SeriesInstanceUID, found.StudyInstanceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    found.PatientID, found.PatientName = "4711-0815", "Doe^Jane"
    found.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    found.Rows, found.Columns = pixels.shape[-2:]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 16
    found.HighBit, found.PixelRepresentation = 15, 1
    found.PixelSpacing, found.SliceThickness = [1, 1], 1
    found.ImageOrientationPatient, found.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    if pixels.ndim == 3:
        found.NumberOfFrames = len(pixels)
    found.PixelData = pixels.tobytes()
    found["PixelData"].VR = "OW"
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def saved(found: Dataset, path: Path, syntax: UID = EXPLICIT, **meta: Any) -> Path:
    """Written as a file of that transfer syntax."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found.file_meta = FileMetaDataset()
    found.file_meta.MediaStorageSOPClassUID = found.get("SOPClassUID", CT)
    found.file_meta.MediaStorageSOPInstanceUID = found.get("SOPInstanceUID", "1.2.3.9")
    found.file_meta.TransferSyntaxUID = EXPLICIT if syntax == RLE else syntax
    for name, value in meta.items():
        setattr(found.file_meta, name, value)
    if syntax == RLE:
        found.compress(RLE, generate_instance_uid=False)
    if syntax == BIG:
        found.PixelData = np.frombuffer(found.PixelData, "<i2").astype(">i2").tobytes()
    pydicom.dcmwrite(path, found, enforce_file_format=True)
    return path


def phantom(rng: np.random.Generator, size: int, top: int) -> np.ndarray:
    """Ellipses in an ellipse, blurred or not, with noise of up to a tenth of the brightest: whole numbers."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.zeros((size, size))
    for _ in range(rng.integers(3, 12)):
        at, axes, turn = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.05, 0.6, 2), rng.uniform(0, np.pi)
        u = (x - at[0]) * np.cos(turn) + (y - at[1]) * np.sin(turn)
        v = (y - at[1]) * np.cos(turn) - (x - at[0]) * np.sin(turn)
        image += rng.uniform(-0.3, 1) * ((u / axes[0]) ** 2 + (v / axes[1]) ** 2 < 1)
    image = np.clip(image, 0, None) * ((x / 0.85) ** 2 + (y / 0.7) ** 2 < 1)
    for _ in range(rng.integers(0, 4)):
        image = (image + sum(np.roll(image, s, a) for s in (-1, 1) for a in (0, 1))) / 5
    noise = rng.uniform(0, 0.1) * max(image.max(), 1e-9)
    real, imaginary = noise * rng.normal(size=(2, size, size))
    image = np.hypot(image + real, imaginary)
    if rng.random() < 0.25:
        image = np.minimum(image, np.quantile(image, 0.97))  # a detector that is full
    return np.rint(image / max(image.max(), 1e-9) * top * rng.uniform(0.3, 1)).astype(np.int64)


def lettered(image: np.ndarray, rng: np.random.Generator, height: int) -> np.ndarray:
    """The image with a line of letters, `height` points high, smooth or not, not always the brightest."""
    from PIL import Image, ImageDraw, ImageFont

    paper = Image.new("L", image.shape[::-1])
    draw = ImageDraw.Draw(paper)
    draw.fontmode = str(rng.choice(["1", "L"]))
    words = ["DOE", "JANE", "1957-03-12", "ID", "483920"][: rng.integers(2, 6)]
    place = (int(rng.integers(2, 40)), int(rng.integers(2, image.shape[0] - height - 4)))
    draw.text(place, " ".join(words), fill=255, font=ImageFont.load_default(size=height))
    ink = np.asarray(paper) / 255
    value = rng.choice([image.max(), image.max() * 0.7])
    return np.rint(image * (1 - ink) + value * ink).astype(np.int64)
