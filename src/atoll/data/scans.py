"""Images in DICOM files as rows to learn from: one orientation, one spacing, one scale of intensity.

    load_data("scans/", shape=(128, 128), spacing=1.0)            each slice is a row, (1, 128, 128)
    load_data("scans/", shape=(64, 128, 128), spacing=2.0)        each series is a row, (1, 64, 128, 128)

What cannot be read as told is set aside and counted by reason (dicomfile.py); it is no row.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atoll.core.errors import ConfigError, DataError
from atoll.core.registry import part

from .columns import read_csv, text_column
from .dicomfile import LIMIT, SetAside, files, image, is_dicom, pixels, quiet
from .examples import Array, Dataset, Examples
from .resample import canonical, fitted, respaced

Intensity = Literal["auto", "stored", "window", "zscore", "percentiles"]
log = logging.getLogger("atoll.data")
_EVEN = 0.1  # of the distance of two slices: how much others may differ


@part("data")
def dicom(
    path: str,
    *,
    shape: Sequence[int] = (128, 128),
    spacing: float = 0.0,
    intensity: Intensity = "auto",
    window: Sequence[float] = (40.0, 400.0),
    labels: str = "",
    limit: int = LIMIT,
) -> Dataset:
    """DICOM images below a folder, as rows of one shape.

    `shape`: (rows, columns), each slice by itself, or (slices, rows, columns), each series as a volume; the
    middle is kept, what is missing has the smallest value. `spacing`: mm between samples, 0 for as they are.
    `intensity`: "stored" values, rescaled as the file says (CT: Hounsfield units); "window", of these, to
    0..1 by `window` (centre, width); "zscore", mean 0 and deviation 1; "percentiles", 1 and 99 to 0 and 1;
    "auto": window for CT, zscore for MR, percentiles for others.
    `labels`: a CSV with the columns patient (the files' PatientID) and label; "" takes the names of the
    folders right below `path`. `limit`: bytes of the largest file and image.
    x: (n, 1, *shape) float32. Raises ConfigError for wrong options, DataError where no image is left.
    """
    _check(shape, spacing, window)
    root = Path(path).expanduser()
    known = _labels(root, labels) if labels else None
    seen = scan(
        root, tuple(shape), spacing, Look(intensity, (float(window[0]), float(window[1]))), known, limit
    )
    if not seen.images:
        raise DataError(f"no image could be taken: {_counted(seen.aside) or 'the folder is empty'}")
    if seen.aside:
        log.warning("%d files or series were set aside: %s", seen.aside.total(), _counted(seen.aside))
    classes = tuple(sorted(set(seen.labels)))
    y = np.array([classes.index(label) for label in seen.labels], np.int64)
    said = f"{len(seen.images)} images of {len(set(seen.patients))} patients"
    return Dataset(
        "dicom",
        Examples(np.stack(seen.images)[:, None], y),
        classes=classes,
        source=f"{said}, {seen.aside.total()} set aside" if seen.aside else said,
        subjects=np.array(seen.patients, dtype=np.str_),
    )


@dataclass(frozen=True)
class Look:
    """What becomes of intensities: see `dicom`."""

    intensity: Intensity = "auto"
    window: tuple[float, float] = (40.0, 400.0)

    def __call__(self, values: Array, modality: str) -> Array:
        how: str = self.intensity
        if how == "auto":
            how = {"CT": "window", "MR": "zscore"}.get(modality, "percentiles")
        if how == "window":
            centre, width = self.window
            values = np.clip((values - (centre - width / 2)) / width, 0, 1)
        if how == "zscore":
            values = (values - values.mean()) / max(float(values.std()), 1e-6)
        if how == "percentiles":
            low, high = np.percentile(values, (1, 99))
            values = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
        return values.astype(np.float32)


@dataclass(frozen=True)
class Scans:
    """What a folder held: images (each of one shape, float32), their labels and patients, and how many
    files or series were set aside for which reason.
    """

    images: list[Array]
    labels: list[str]
    patients: list[str]
    aside: Counter[str]


@dataclass(frozen=True)
class _Slice:
    values: Array  # (rows, columns) float32, rescaled
    axes: Array  # (3, 3): see resample.canonical
    along: float  # mm along the normal
    spacing: tuple[float, float, float]  # mm between slices, rows, columns; 0 for unknown
    modality: str
    patient: str
    series: str


def scan(
    root: Path,
    shape: tuple[int, ...],
    spacing: float,
    look: Look,
    known: Mapping[str, str] | None = None,
    limit: int = LIMIT,
) -> Scans:
    """All images below a folder. `known`: labels by patient, None for those of the folders."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    seen = Scans([], [], [], Counter())
    series: dict[tuple[str, str], list[_Slice]] = {}
    for path in files(root):
        if path.suffix == ".csv":
            continue
        try:
            for one in _slices(image(path, limit)):
                label = _label(path, root, one.patient, known)
                if len(shape) == 2:
                    _take(seen, [one], label, shape, spacing, look)
                else:
                    series.setdefault((one.series, label), []).append(one)
        except SetAside as reason:
            seen.aside[str(reason)] += 1
    for (_, label), slices in series.items():
        try:
            _take(seen, slices, label, shape, spacing, look)
        except SetAside as reason:
            seen.aside[str(reason)] += 1
    return seen


def _take(
    seen: Scans, slices: list[_Slice], label: str, shape: tuple[int, ...], spacing: float, look: Look
) -> None:
    first = slices[0]
    array = first.values
    steps: tuple[float, ...] = first.spacing[1:]
    if len(shape) == 3:
        array, steps = _volume(slices)
    if spacing and not all(steps):
        raise SetAside("its spacing is not said")
    array, steps = canonical(array, steps, first.axes)
    if spacing:
        array = respaced(array, steps, spacing)
    seen.images.append(fitted(look(array, first.modality), shape))
    seen.labels.append(label)
    seen.patients.append(first.patient)


def _volume(slices: list[_Slice]) -> tuple[Array, tuple[float, ...]]:
    """Slices of one series in their order along the normal. Raises SetAside where some are missing."""
    slices = sorted(slices, key=lambda one: one.along)
    first = slices[0]
    for one in slices:
        if one.values.shape != first.values.shape or not np.allclose(one.axes, first.axes, atol=1e-3):
            raise SetAside("the slices of its series differ in shape or direction")
    step = first.spacing[0]
    if len(slices) > 1:
        steps = np.diff([one.along for one in slices])
        step = float(np.median(steps))
        if step <= 0 or (np.abs(steps - step) > _EVEN * step).any():
            raise SetAside("slices of its series are missing or twice there")
    return np.stack([one.values for one in slices]), (step, *first.spacing[1:])


def _slices(found: Any) -> Iterator[_Slice]:
    """The frames of a file, each with its place in the patient."""
    stored = pixels(found)
    with quiet():
        try:
            yield from [_slice(found, frame, number) for number, frame in enumerate(stored)]
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise SetAside("broken: an attribute of its geometry is not well-formed") from error


def _slice(found: Any, frame: Array, number: int) -> _Slice:
    turned = np.array(
        [float(v) for v in _said(found, number, "ImageOrientationPatient") or (1, 0, 0, 0, 1, 0)]
    )
    row, column = turned[:3], turned[3:]
    axes = np.stack([np.cross(row, column), column, row])
    place = np.array([float(v) for v in _said(found, number, "ImagePositionPatient") or (0, 0, number)])
    between = _said(found, number, "PixelSpacing") or found.get("ImagerPixelSpacing") or (0, 0)
    thick = _said(found, number, "SpacingBetweenSlices") or _said(found, number, "SliceThickness") or 0
    slope, intercept = (_said(found, number, f"Rescale{what}") for what in ("Slope", "Intercept"))
    values = frame.astype(np.float32)
    if (padding := found.get("PixelPaddingValue")) is not None and (out := frame == padding).any():
        values[out] = values[~out].min() if not out.all() else 0
    values = values * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
    if found.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values
    if not np.isfinite(values).all() or not np.isfinite(axes).all():
        raise SetAside("broken: values that are no numbers")
    return _Slice(
        values,
        axes,
        float(axes[0] @ place),
        (float(thick), float(between[0]), float(between[1])),
        str(found.get("Modality", "")),
        str(found.get("PatientID", "")),
        str(found.get("SeriesInstanceUID", "")),
    )


_GROUPS = ("PixelMeasures", "PlanePosition", "PlaneOrientation", "PixelValueTransformation")


def _said(found: Any, number: int, name: str) -> Any:
    """An attribute of one frame: its own, one shared by all frames, or the file's."""
    own = list(found.get("PerFrameFunctionalGroupsSequence") or ())[number : number + 1]
    for groups in (*own, *list(found.get("SharedFunctionalGroupsSequence") or ())[:1]):
        for macro in _GROUPS:
            items = groups.get(f"{macro}Sequence")
            if items and name in items[0]:
                return items[0][name].value
    return found.get(name)


def _label(path: Path, root: Path, patient: str, known: Mapping[str, str] | None) -> str:
    if known is not None:
        if patient not in known:
            raise SetAside("no label is given for its patient")
        return known[patient]
    folders = path.relative_to(root).parts[:-1]
    if not folders:
        raise SetAside("it lies in no folder, whose name would be its label")
    return folders[0]


def _labels(root: Path, name: str) -> dict[str, str]:
    path = Path(name).expanduser()
    table = read_csv(path if path.is_file() else root / name, ["patient", "label"])
    return dict(zip(text_column(table["patient"]), text_column(table["label"]), strict=True))


def _counted(aside: Counter[str]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in aside.most_common())


def _check(shape: Sequence[int], spacing: float, window: Sequence[float]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ConfigError("shape is (rows, columns) or (slices, rows, columns), each 1 or more", "$.shape")
    if spacing < 0:
        raise ConfigError(f"spacing is in mm, 0 for as it is, got {spacing:g}", "$.spacing")
    if len(window) != 2 or window[1] <= 0:
        raise ConfigError("window is (centre, width), the width above 0", "$.window")


def holds_dicom(folder: Path) -> bool:
    """Whether a folder is one of DICOM images: one of its first files is."""
    return any(is_dicom(path) for path, _ in zip(files(folder), range(8), strict=False))
