"""A run folder: everything a run was, in files that other tools can read.

    job.json            the job file's values and the seed
    job.toml            the same as a job file to run again, where there was one
    about.json          engine, versions, machine, times: what may differ between equal runs
    metrics.jsonl       one record per round
    metrics.csv         the same as a table: round, seconds, bytes, metrics
    sites.csv           each site's metrics, by round
    checkpoints/        the last two; --resume continues from the newest, bit for bit
    model.safetensors   the model, once the run is done

Files appear whole or not at all: written beside, synced, renamed. Two runs of one job with one
seed have equal bytes in all but about.json.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as write_arrays

from ..core.errors import StateError
from ..wire import checkpoint
from ..wire.failpoint import declare, hit
from ..wire.files import whole

_RECORD = declare("simulate.record.before"), declare("simulate.record.after")
KEPT = 2
BY_CLIENT = (
    "sites",
    "sites_failed",
    "failed",
    "scores",
)  # by client number in a record; JSON makes text of them


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all. Raises StateError where the disk is full or closed."""
    try:
        with whole(path, beside=path.name + ".part") as file:
            file.write(data)
    except OSError as error:
        raise disk_error(error, path) from None


def write_model(path: Path, params: Mapping[str, Any]) -> None:
    """Put named arrays at `path` as safetensors."""
    write(path, write_arrays({name: np.ascontiguousarray(a) for name, a in params.items()}))


def disk_error(error: OSError, path: Path) -> StateError:
    """What went wrong with a file, and what to do."""
    if error.errno == errno.ENOSPC:
        return StateError(
            f"the disk is full: {path.name} was not written; free some space, then go on with --resume"
        )
    return StateError(f"cannot write {path}: {error.strerror}")


class Folder:
    """One run's files under `root`; `records` are the types its checkpoints may hold."""

    def __init__(self, root: Path, records: checkpoint.Records = ()) -> None:
        self.root = root
        self._records = records

    def free(self) -> None:
        """Raise StateError if the folder already holds a run, or is a file."""
        if self.root.exists() and not self.root.is_dir():
            raise StateError(f"{self.root} is a file: choose a folder for the run")
        if (self.root / "job.json").exists():
            raise StateError(
                f"{self.root} already holds a run: choose another folder, or go on with --resume"
            )

    def begin(self, job: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Start a new run here. Raises StateError as `free` does, or if the disk takes no files."""
        self.free()
        write(self.root / "about.json", _json(about))
        write(self.root / "job.json", _json(job))
        write(self.root / "metrics.jsonl", b"")

    def job(self) -> dict[str, Any]:
        """The job this folder was made for. Raises StateError if there is none."""
        try:
            found: dict[str, Any] = json.loads((self.root / "job.json").read_bytes())
        except FileNotFoundError:
            raise StateError(f"{self.root} holds no run: it has no job.json") from None
        except json.JSONDecodeError:
            raise StateError(
                f"{self.root / 'job.json'} is damaged: start the run again in a new folder"
            ) from None
        return found

    def keep(self, name: str, values: Mapping[str, Any] | str) -> None:
        """One more file beside the others: text as it is, values as JSON."""
        write(self.root / name, values.encode() if isinstance(values, str) else _json(values))

    def values(self) -> dict[str, Any]:
        """The job file's values; empty where the job came from Python."""
        path = self.root / "job.toml"
        return tomllib.loads(path.read_text("utf-8")) if path.exists() else {}

    def record(self, record: Mapping[str, Any]) -> None:
        """Append one round's record."""
        path = self.root / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(_line(record))
                hit(_RECORD[0])
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that survives a power cut needs its records
                hit(_RECORD[1])
        except OSError as error:
            os.truncate(path, size)
            raise disk_error(error, path) from None

    def history(self) -> list[dict[str, Any]]:
        """All records so far."""
        path = self.root / "metrics.jsonl"
        try:
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            return [
                {**r, **{name: _by_id(r[name]) for name in BY_CLIENT if name in r}}
                for r in map(json.loads, lines)
            ]
        except json.JSONDecodeError:
            raise StateError(f"{path} is damaged: start the run again in a new folder") from None

    def save(self, number: int, state: Any) -> None:
        """Keep a checkpoint, and only the newest few."""
        where = self.root / "checkpoints"
        write(where / f"round-{number:06d}.atoll", checkpoint.dump(state, self._records))
        for old in sorted(where.glob("round-*.atoll"))[:-KEPT]:
            old.unlink()

    def resume(self) -> Any:
        """The newest checkpoint, with records after it taken back; None if there is none yet."""
        found = sorted((self.root / "checkpoints").glob("round-*.atoll"))
        if not found:
            write(self.root / "metrics.jsonl", b"")
            return None
        number = int(found[-1].stem.removeprefix("round-"))
        state = checkpoint.load(found[-1].read_bytes(), self._records)
        kept = [r for r in self.history() if r["round"] <= number]
        write(self.root / "metrics.jsonl", b"".join(_line(r) for r in kept))
        return state

    def finish(self, params: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write the tables and the model."""
        history = self.history()
        write(self.root / "metrics.csv", _table(_flat(r) for r in history))
        write(self.root / "sites.csv", _table(_by_site(history)))
        write_model(self.root / "model.safetensors", params)
        write(self.root / "about.json", _json(about))


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, sort_keys=True, default=_number) + "\n").encode()


def _number(value: Any) -> Any:
    """Numpy's numbers and arrays as plain ones."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def _by_id(found: Mapping[str, Any]) -> dict[int, Any]:
    return {int(client): value for client, value in found.items()}


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in record.items() if not isinstance(v, Mapping)}
    plain["failed"] = len(record.get("failed", {}))
    metrics = {k: v for k, v in record.get("metrics", {}).items() if isinstance(v, (int, float))}
    return {**plain, **metrics}


def _by_site(history: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for record in history:
        for site, metrics in record.get("sites", {}).items():
            yield {"round": record["round"], "site": site, **metrics}


def _table(rows: Iterable[Mapping[str, Any]]) -> bytes:
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
