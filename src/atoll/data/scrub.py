"""De-identify DICOM images: PS3.15 Annex E, Basic Application Level Confidentiality Profile.

    report = deidentify("pacs/", "scans/", key=key)      key: bytes that stay at this site

An image is written anew: every attribute of table E.1-1 (profile.py) at any depth by its action, private
and unknown ones out, curves and overlays out, file meta and preamble made fresh. The same key gives the same
patient the same pseudonym and each UID the same other one, in every run; without the key neither leads back.
The bytes of the pixels are not touched, so an image that may show text is set aside instead.

Laws (tests/laws/test_deidentify.py): no listed attribute's value is left anywhere in the bytes; the bytes of
the pixels are the same; the same input and key give the same file.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from atoll.core.errors import ConfigError, DataError
from atoll.wire.files import whole

from .burned import Rule, suspicion
from .dicomfile import LIMIT, SetAside, files, image, pydicom, quiet
from .moved import moved, shift_of
from .profile import ACTIONS, CHARACTERISTICS, EDITION, METHODS, Action

Dates = Literal["remove", "shift"]
KEY = 16  # bytes, at least
_STANDARD = "1.2.840.10008."  # UIDs of the standard itself name nobody
_DUMMY = "ANONYMIZED"
_DUMMIES = {
    "AS": "000Y",
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    "DS": "0",
    "IS": "0",
    "UR": "urn:anonymized",
    **dict.fromkeys(("AT", "FL", "FD", "SL", "SS", "SV", "UL", "US", "UV", "US or SS"), 0),
    **dict.fromkeys(("OB", "OW", "UN", "OD", "OF", "OL", "OV", "OB or OW", "US or OW"), bytes(8)),
}
_TEXT = ("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT", "UR")


@dataclass(frozen=True)
class Report:
    """What became of the files. `aside`: those not written, by path, with the reason; their paths may name
    patients, so `str(report)` counts them only.
    """

    read: int = 0
    written: int = 0
    patients: int = 0
    aside: dict[Path, str] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """How many files were set aside, by reason."""
        return dict(Counter(self.aside.values()).most_common())

    def __str__(self) -> str:
        lines = [f"{self.read} files read, {self.written} images of {self.patients} patients written"]
        return "\n".join([*lines, *(f"  {n} set aside: {reason}" for reason, n in self.reasons.items())])


def deidentify(
    folder: str | Path,
    out: str | Path,
    *,
    key: bytes,
    dates: Dates = "remove",
    characteristics: bool = False,
    classes: bool = False,
    waive: Collection[Rule] = (),
    limit: int = LIMIT,
) -> Report:
    """De-identified copies of all images below `folder`, in `out/PSEUDONYM/SERIES/IMAGE.dcm`.

    `key`: 16 bytes or more; keep it, or pseudonyms of a later run will differ. `dates`: "remove", or "shift"
    all of a patient's by one amount, so that intervals stay. `characteristics`: keep sex, age, size and
    weight. `classes`: `folder` holds one folder for each class; their names stay, on top. `waive`: rules on
    burnt-in text that do not apply here, for somebody has looked at the images: "kind", "secondary",
    "pixels". `limit`: bytes of the largest file and image.
    What cannot be read, holds no image or may show text is not written and stands in the Report.
    Raises ConfigError for wrong options, DataError where there are no files.
    """
    source, target = Path(folder), Path(out)
    if len(key) < KEY:
        raise ConfigError(f"expected a key of {KEY} bytes or more, got {len(key)}", "$.key")
    if not source.is_dir():
        raise DataError("there is no such folder of images")
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigError("write outside the folder that is read, or a second run reads the first's", "$.out")
    rules = Rules(key, dates, characteristics=characteristics)
    done: dict[str, Path] = {}
    patients: set[str] = set()
    aside: dict[Path, str] = {}
    paths = list(files(source))
    for path in paths:
        try:
            found = image(path, limit)
            reason = suspicion(found, waive) or _unseen(found)
            if reason:
                raise SetAside(reason)
            pseudonym = cleaned(found, rules)
            if str(found.SOPInstanceUID) in done:
                raise SetAside("the same image again")
            label = path.relative_to(source).parts[:-1][: int(classes)]
            place = target.joinpath(*label, pseudonym, str(found.SeriesInstanceUID))
            _write(found, place / f"{found.SOPInstanceUID}.dcm")
        except SetAside as error:
            aside[path] = str(error)
        else:
            done[str(found.SOPInstanceUID)] = path
            patients.add(pseudonym)
    if not paths:
        raise DataError("the folder holds no files")
    return Report(len(paths), len(done), len(patients), aside)


@dataclass(frozen=True)
class Rules:
    """How one site de-identifies: its key and the options it takes."""

    key: bytes = field(repr=False)
    dates: Dates = "remove"
    characteristics: bool = False

    def __post_init__(self) -> None:
        if self.dates not in ("remove", "shift"):
            raise ConfigError(f'dates = "remove" or "shift", got {self.dates!r}', "$.dates")

    def digest(self, what: str, value: str) -> bytes:
        """32 bytes that only the key leads to."""
        return hmac.digest(self.key, f"{what}:{value}".encode("utf-8", "surrogateescape"), hashlib.sha256)

    def uid(self, value: str) -> str:
        """Another UID: 2.25 and a UUID of version 8 (RFC 9562). UIDs of the standard stay."""
        if not value or value.startswith(_STANDARD):
            return value
        bits = int.from_bytes(self.digest("uid", value)[:16])
        bits = bits & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62
        return f"2.25.{UUID(int=bits).int}"

    def pseudonym(self, patient: str) -> str:
        """16 hexadecimal digits in capitals."""
        return self.digest("patient", patient.strip()).hex()[:16].upper()


def cleaned(found: Any, rules: Rules) -> str:
    """De-identify a data set in place; the patient's pseudonym.

    Raises SetAside where it cannot be done in whole.
    """
    with quiet():
        try:
            patient = _patient(found)
            telling = _telling(found)
            shift = shift_of(rules.digest("shift", patient)) if rules.dates == "shift" else None
            _clean(found, rules, shift)
            if any(word in text for text in _texts(found) for word in telling):
                raise SetAside("the patient's name or number also stands where the profile does not look")
            found.PatientID = found.PatientName = name = rules.pseudonym(patient)
            _say(found, rules)
            _meta(found, rules)
        except SetAside:
            raise
        except Exception as error:
            raise SetAside("broken: an attribute is not well-formed") from error
    return name


def _patient(found: Any) -> str:
    """Whom it shows: the number, or where there is none, the study."""
    names = ("PatientID", "StudyInstanceUID", "SOPInstanceUID")
    return next((str(found[n].value).strip() for n in names if n in found and found[n].value), "")


def _telling(found: Any) -> list[str]:
    """What must not be found in any text that is left: the number and the parts of the name, four letters
    or more; shorter ones are in any text.
    """
    name = str(found.get("PatientName", "") or "").replace("^", " ").replace("=", " ").split()
    words = [str(found.get("PatientID", "") or "").strip(), *name]
    return [word.casefold() for word in words if len(word) >= 4]


def _texts(found: Any) -> Iterator[str]:
    for element in found:
        if element.VR == "SQ":
            for item in element.value:
                yield from _texts(item)
        elif element.VR in _TEXT and element.value != _DUMMY:
            yield str(element.value).casefold()


def _clean(found: Any, rules: Rules, shift: Any) -> None:
    dates = {} if shift is None else moved(found, shift)
    for tag in list(found.keys()):
        action = _action(tag, rules)
        if action == "X" and tag not in dates:
            del found[tag]
            continue
        element = found[tag]
        if tag in dates:
            element.value = dates[tag]
        elif element.VR in ("DA", "TM", "DT") and action is None:
            del found[tag]  # no date is left where none is said to be
        elif element.VR == "SQ":
            _sequence(element, action, rules, shift)
        elif action == "U":
            element.value = _each(element.value, rules.uid)
        elif action == "Z" or (element.VR == "PN" and action is None):
            element.value = element.empty_value
        elif action == "D":
            element.value = _dummy(element, rules)


def _action(tag: Any, rules: Rules) -> Action | None:
    """What becomes of an attribute; None where the profile lets it be."""
    if rules.characteristics and tag in CHARACTERISTICS:
        return None
    if tag in ACTIONS:
        return ACTIONS[tag]
    gone = tag.is_private or tag.group in (0, 2) or tag.group >> 8 in (0x50, 0x60) or tag.element == 0
    return "X" if gone or not pydicom().datadict.dictionary_has_tag(tag) else None


def _sequence(element: Any, action: Action | None, rules: Rules, shift: Any) -> None:
    if action == "Z":
        element.value = []
    for item in element.value:
        _clean(item, rules, shift)
        if action == "D":
            _blank(item, rules)


def _blank(item: Any, rules: Rules) -> None:
    """Every value of an item that must have one becomes a dummy."""
    for element in item:
        if element.VR == "SQ":
            for below in element.value:
                _blank(below, rules)
        else:
            element.value = _dummy(element, rules)


def _dummy(element: Any, rules: Rules) -> Any:
    return _each(element.value, rules.uid) if element.VR == "UI" else _DUMMIES.get(element.VR, _DUMMY)


def _each(value: Any, change: Any) -> Any:
    if value is None or isinstance(value, str):
        return change(str(value or ""))
    return [change(str(one)) for one in value]


def _say(found: Any, rules: Rules) -> None:
    """Write down that it was done, and how."""
    library = pydicom()
    methods = ["basic", *(["shift"] if rules.dates == "shift" else [])]
    methods += ["characteristics"] if rules.characteristics else []
    found.PatientIdentityRemoved = "YES"
    found.DeidentificationMethod = f"Atoll: DICOM PS3.15 {EDITION}, table E.1-1"
    found.DeidentificationMethodCodeSequence = items = library.Sequence()
    for method in methods:
        item = library.Dataset()
        item.CodeValue, item.CodeMeaning = METHODS[method]
        item.CodingSchemeDesignator = "DCM"
        items.append(item)
    found.LongitudinalTemporalInformationModified = "MODIFIED" if rules.dates == "shift" else "REMOVED"


def _meta(found: Any, rules: Rules) -> None:
    """The file's own header, made fresh: what stood in the old one and in its preamble is gone."""
    library = pydicom()
    meta = library.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = found.SOPClassUID
    meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    meta.TransferSyntaxUID = found.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID = library.uid.PYDICOM_IMPLEMENTATION_UID
    found.file_meta, found.preamble = meta, bytes(128)


def _unseen(found: Any) -> str:
    """Why it cannot be done here: graphics within the pixels, which are not to be touched."""
    overlays = {tag.group for tag in found.keys() if tag.group >> 8 == 0x60}  # noqa: SIM118  not of elements
    if any((group, 0x3000) not in found and (group, 0x0102) in found for group in overlays):
        return "an overlay lies in the unused bits of its pixels"
    return (
        "" if "SOPInstanceUID" in found and "SeriesInstanceUID" in found else "broken: it has no identifier"
    )


def _write(found: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), whole(path) as file:
        pydicom().dcmwrite(file, found, enforce_file_format=True)
