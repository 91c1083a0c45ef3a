"""A watched folder: files that appear in it become readings, then lie in done/.

A file is read once it has not changed between two looks, and unless its name begins with a dot or ends in
.part or .tmp. It is moved after its readings are on disk: killed in between, it is read again, and the store
knows its rows by their time or id; without either, by the file's bytes and the row's number.

    time,source,heat [degF],state       a CSV file: the columns that `at`, `id` and `source` name, and values
    ok/0001.png                         a picture: its folder is its label, its bytes are its id

A file that cannot be read goes to aside/, and so does a reading of it that says why.
"""

from __future__ import annotations

import asyncio
import csv
import math
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import ConfigError, DataError
from ..wire.failpoint import declare, hit
from .intake import Feed, stored
from .reading import Reading, moment
from .source import Folder, Sql

TABLES = {".csv", ".parquet", ".pq"}
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
_MISSING = frozenset(("", "?", "NA", "N/A", "na", "n/a", "NaN", "nan", "NULL", "null", "None"))
_PART = 2000  # rows of one put
_MOVED = declare("sense.folder.stored"), declare("sense.folder.moved")
_TITLE = re.compile(r"(.*?)\s*\[([^\]]*)\]")


class Picture(NamedTuple):
    """The columns that a picture and its label go to, "" for no label. `shape`: as in a contract."""

    column: str
    shape: tuple[int, ...]
    label: str = ""


async def watch(settings: Folder, path: Path, feed: Feed, picture: Picture | None = None) -> None:
    """Take in what appears in the folder, until cancelled. `picture`: where pictures go, if there are any."""
    (path / "done").mkdir(parents=True, exist_ok=True)
    (path / "aside").mkdir(exist_ok=True)
    seen: dict[Path, tuple[int, int]] = {}
    while True:
        found = await asyncio.to_thread(_looked, path, PICTURES if picture else TABLES)
        for file in sorted(found):
            if seen.get(file) == found[file]:
                await take(settings, path, file, feed, picture)
        seen = found
        await asyncio.sleep(settings.every)


async def take(settings: Folder, path: Path, file: Path, feed: Feed, picture: Picture | None = None) -> None:
    """Take one file in, then move it."""
    where = "done"
    lots = _read(settings, file, picture)
    while True:
        try:
            lot = await asyncio.to_thread(next, lots, None)
        except (DataError, OSError) as error:
            fault = str(error) if isinstance(error, DataError) else "a file that cannot be read"
            name = f"{file.relative_to(path)}"[-200:]
            lot, where = [Reading(settings.device or "folder", feed.clock(), name, fault=fault)], "aside"
        if lot is None:
            break
        if lot:
            await stored(feed, lot)
        if where == "aside":
            break
    hit(_MOVED[0])
    if where == "done" and not settings.keep:
        await asyncio.to_thread(file.unlink)
    else:
        await asyncio.to_thread(_move, file, path / where / file.relative_to(path))
    hit(_MOVED[1])


def row(
    cells: Mapping[str, Any], settings: Folder | Sql, *, otherwise: str, now: float, units: Mapping[str, str]
) -> Reading:
    """The reading of a table's row; `otherwise`: its id where it has neither id nor time."""
    values = {k: v for k, v in cells.items() if k not in (settings.at, settings.id, settings.source)}
    given, name, source = cells.get(settings.at), cells.get(settings.id), cells.get(settings.source)
    source = str(source) if source not in (None, "") else settings.device
    id_ = str(name) if name not in (None, "") else "" if given not in (None, "") else otherwise
    if not source:
        return Reading(
            "?", now, id_, fault=f"no column {settings.source!r} says whose row it is: name a device"
        )
    try:
        at = now if given in (None, "") else moment(given)
    except (ValueError, TypeError, OverflowError):
        return Reading(source, now, id_ or otherwise, fault="its time cannot be read")
    return Reading(source, at, id_, values, units)


def pixels(data: bytes, shape: tuple[int, ...]) -> bytes:
    """The pixels of a picture, one byte a channel. Raises DataError unless it has this shape and is whole."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError("pictures need Pillow: pip install 'atoll-fl[images]'") from None
    import io

    try:
        with Image.open(io.BytesIO(data)) as image:  # so far it has read the header alone
            if image.size != (shape[1], shape[0]):
                raise DataError(f"a picture of another size than {shape[1]} x {shape[0]}")
            return image.convert("RGB" if len(shape) == 3 else "L").tobytes()
    except DataError:
        raise
    except Exception:  # noqa: BLE001  its decoders raise what they like
        raise DataError("a picture that cannot be read") from None


def _looked(path: Path, kinds: set[str]) -> dict[Path, tuple[int, int]]:
    found = {}
    for file in path.rglob("*"):
        inner = file.relative_to(path)
        if inner.parts[0] in ("done", "aside") or file.name.startswith("."):
            continue
        if file.suffix.lower() in kinds and file.is_file():
            about = file.stat()
            found[file] = about.st_size, about.st_mtime_ns
    return found


def _read(settings: Folder, file: Path, picture: Picture | None) -> Iterator[list[Reading]]:
    about = file.stat()
    if picture is not None:
        data = file.read_bytes()
        name = sha256(data).hexdigest()[:32]
        device = settings.device or "folder"
        values: dict[str, Any] = {picture.column: pixels(data, picture.shape)}
        if picture.label:
            values[picture.label] = file.parent.name
        yield [Reading(device, about.st_mtime, name, values)]
        return
    with file.open("rb") as opened:
        digest = sha256()
        while part := opened.read(1 << 20):
            digest.update(part)
    rows = _csv(file) if file.suffix.lower() == ".csv" else _parquet(file)
    names, said = _titles(next(rows))
    units = {**settings.units, **said}
    lot: list[Reading] = []
    try:
        for i, cells in enumerate(rows):
            known = f"{digest.hexdigest()[:32]}:{i}"
            told = dict(zip(names, cells, strict=True))
            lot.append(row(told, settings, otherwise=known, now=about.st_mtime, units=units))
            if len(lot) == _PART:
                yield lot
                lot = []
    except DataError:  # what stands before the broken line is good
        yield lot
        raise
    yield lot


def _titles(header: list[Any]) -> tuple[list[str], dict[str, str]]:
    """Names of columns, and the units that stand behind them: "heat [degF]"."""
    found = [_TITLE.fullmatch(title) for title in header]
    names = [title if match is None else match[1] for title, match in zip(header, found, strict=True)]
    if len(set(names)) != len(names) or not any(names):
        raise DataError("a table without a header, or with a column twice")
    return names, {match[1]: match[2] for match in found if match}


def _csv(file: Path) -> Iterator[list[Any]]:
    """The header, then rows of text, None for missing cells."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            header = [name.strip() for name in next(reader, [])]
            yield header
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise DataError(f"line {reader.line_num} has another number of cells than the header")
                if cells:
                    yield [None if c.strip() in _MISSING else c.strip() for c in cells]
    except (UnicodeDecodeError, csv.Error):
        raise DataError("a file that is no CSV") from None


def _parquet(file: Path) -> Iterator[list[Any]]:
    """As `_csv`, a part of the file at a time."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("Parquet files need pyarrow: pip install 'atoll-fl[data]'") from None
    try:
        opened = parquet.ParquetFile(file)
        yield list(opened.schema_arrow.names)
        for batch in opened.iter_batches(_PART):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield [None if isinstance(v, float) and math.isnan(v) else v for v in cells]
    except OSError:
        raise
    except Exception:  # noqa: BLE001  pyarrow raises classes of its own
        raise DataError("a file that is no Parquet") from None


def _move(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    name, n = to, 1
    while name.exists():
        name, n = to.with_name(f"{to.stem}-{n}{to.suffix}"), n + 1
    file.replace(name)
