"""load_data: a dataset by name, by path, or from a table of values as in `data.toml`."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll.core.errors import ConfigError
from atoll.core.registry import build, parts

from . import tables  # noqa: F401  its parts, so that others need not be loaded for a file
from .examples import Dataset

_READERS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


def load_data(source: str | Path | Mapping[str, Any], **options: Any) -> Dataset:
    """The dataset called `source`, or your own at that path, or described by that table.

    load_data("mnist"), load_data("ai4i2020", type="onehot"), load_data("sites/*.csv", target="num"),
    load_data("scans/"), load_data({"name": "csv", "path": "sites", "target": "num"}).
    Raises ConfigError for an unknown name or option, DataError where the data do not fit.
    """
    if isinstance(source, Mapping):
        return _dataset({**source, **options})
    text = str(source)
    if Path(text).suffix not in _READERS and text in {p.name for p in parts("data")}:
        return _dataset({"name": text, **options})
    if Path(text).is_dir():
        from .scans import holds_dicom

        kinds = {_READERS[p.suffix] for p in Path(text).iterdir() if p.suffix in _READERS}
        if holds_dicom(Path(text)):
            kinds = {"dicom"}
        if len(kinds) != 1:
            raise ConfigError(
                f"folder {text} must hold CSV or Parquet files or DICOM images, one kind of them", "$.path"
            )
        return _dataset({"name": kinds.pop(), "path": text, **options})
    if Path(text).suffix in _READERS:
        return _dataset({"name": _READERS[Path(text).suffix], "path": text, **options})
    if glob.has_magic(text) or Path(text).exists():
        raise ConfigError(f"{text}: expected a .csv or .parquet file, a folder of them, or a name", "$.path")
    return _dataset({"name": text, **options})


def _dataset(values: Mapping[str, Any]) -> Dataset:
    made: Dataset = build("data", values)
    return made
