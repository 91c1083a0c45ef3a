"""One DICOM file, opened with care: sizes are looked at before memory is taken, and nothing is told but why.

pydicom reads and RLE-decodes; it is imported here, inside the functions. A file that cannot be used raises
SetAside with one of a few fixed reasons: neither a value nor a file's name ever stands in one, for both may
name a patient.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import DataError

from .examples import Array

LIMIT = 1 << 29  # bytes of one file and of its decoded pixels: 1,000 slices of 512 x 512, 16 bits each
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NEEDS = {  # who decodes what, for those who have such files; Pillow is used where it is installed
    "JPEG Baseline": "pillow",
    "JPEG 2000": "pillow",
    "JPEG-LS": "pyjpegls",
    "High-Throughput JPEG 2000": "pylibjpeg-openjpeg",
}


class SetAside(Exception):  # noqa: N818  it is a verdict, not a mistake of ours
    """This file is not used; the message is the reason, without any value of the file."""


def pydicom() -> Any:
    """The library. Raises DataError, with what to install, where it is not."""
    try:
        import pydicom as library
    except ImportError as error:
        raise DataError("DICOM files need pydicom: pip install 'atoll-fl[dicom]'") from error
    return library


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom neither judges values nor writes any of them into a warning or a log."""
    library, log = pydicom(), logging.getLogger("pydicom")
    level = log.level
    with warnings.catch_warnings(), library.config.disable_value_validation():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(level)


def files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in one order; links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from files(path)
        elif path.is_file() and not path.is_symlink():
            yield path


def is_dicom(path: Path) -> bool:
    """Whether it begins as such a file does: 128 bytes of anything, then DICM."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def image(path: Path, limit: int = LIMIT) -> Any:
    """The file's data set, which holds an image of at most `limit` bytes. Raises SetAside."""
    try:
        if path.stat().st_size > limit:
            raise SetAside(f"larger than {limit >> 20} MiB")
        if not is_dicom(path):
            raise SetAside("no DICOM file")
        with quiet():
            _inflates(path, limit)
            found = pydicom().dcmread(path)
            _fits(found, limit)
    except (SetAside, DataError):
        raise
    except Exception as error:  # a broken file breaks a parser in any way
        raise SetAside("broken: it ends early or is no well-formed data set") from error
    return found


def _inflates(path: Path, limit: int) -> None:
    """A deflated data set is unpacked as a whole by whoever reads it: see first that it is not a bomb."""
    from pydicom import filereader

    meta = filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    with path.open("rb") as file:
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS)
        unpacked.decompress(file.read(), limit)
    if not unpacked.eof:
        raise SetAside(f"larger than {limit >> 20} MiB, or cut off, once it is unpacked")


def _fits(found: Any, limit: int) -> None:
    if not any(name in found for name in _PIXELS):
        raise SetAside("no image")
    rows, columns = int(found.Rows), int(found.Columns)
    frames, samples = int(found.get("NumberOfFrames") or 1), int(found.get("SamplesPerPixel", 1))
    if min(rows, columns, frames, samples) < 1:
        raise SetAside("broken: an image without pixels")
    bits = rows * columns * frames * samples * int(found.BitsAllocated)
    if bits > 8 * limit:
        raise SetAside(f"larger than {limit >> 20} MiB")
    held = next(len(found[name].value or b"") for name in _PIXELS if name in found)
    if "YBR_FULL_422" in str(found.get("PhotometricInterpretation")):
        return
    if found.file_meta.TransferSyntaxUID.is_compressed:
        if "RLE" in found.file_meta.TransferSyntaxUID.name and 8 * held > 1.1 * bits + 8 * 1024 * frames:
            raise SetAside("broken: more bytes than its pixels need")
    elif held != (bits + 7) // 8 + (bits + 7) // 8 % 2:
        raise SetAside("broken: its pixels have another length than it says")


def pixels(found: Any) -> Array:
    """Its pixels as stored: (frames, rows, columns); of colours, the luminance.

    Raises SetAside where they cannot be decoded here, with what would.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    name = found.file_meta.TransferSyntaxUID.name
    colours = str(found.get("PhotometricInterpretation", ""))
    if colours == "PALETTE COLOR":
        raise SetAside("its pixels are numbers of a palette, not intensities")
    with quiet():
        try:
            able = get_decoder(found.file_meta.TransferSyntaxUID).is_available
        except NotImplementedError:
            able = False
        if not able:
            needs = next((p for begin, p in _NEEDS.items() if name.startswith(begin)), "")
            advice = f"pip install {needs}" if needs else "convert it to RLE or uncompressed"
            raise SetAside(f"compressed as {name}: {advice}")
        try:
            array = pixel_array(found)
        except Exception as error:  # decoders raise whatever they like
            raise SetAside("broken: its pixels cannot be decoded") from error
    if int(found.get("SamplesPerPixel", 1)) == 3:
        array = array @ np.array([0.299, 0.587, 0.114], np.float32)
    return array.reshape(-1, int(found.Rows), int(found.Columns))
