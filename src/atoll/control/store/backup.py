"""Backup and restore: one tar file with rows, blobs and other folders, each covered by a SHA-256.

    tables/NAME.jsonl      every row, as of one moment
    blobs/NAME[.head]      the blobs those rows name
    beside/pki/…           folders of the store's folder that go along
    backup.json            last: {format, schema, created, head, files: {name: [bytes, sha256]}}

Rows and not a database's own file: what SQLite wrote, PostgreSQL restores. The file holds keys
where `pki` goes along: it is readable by its owner only, and belongs in a safe place.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sqlalchemy import select

from ...core.errors import StateError
from ...wire.failpoint import declare, hit
from . import schema as t
from .blobs import Blobs, named_by
from .database import Database
from .plain import canonical

FORMAT = 1
BESIDE = ("pki",)
MANIFEST = "backup.json"
_NAME = re.compile(r"tables/[a-z]+\.jsonl|blobs/[0-9a-f]{64}(\.head)?|beside(/[\w-][\w.-]*){2,6}")
_TRIES = 3
_COPIED = declare("store.backup.copied")


class Backup(Database):
    """A store that can be copied while it is used."""

    blobs: Blobs

    def backup(self, path: Path, *, beside: Sequence[str] = BESIDE) -> dict[str, Any]:
        """Write everything to the tar file `path`, whole or not at all; returns its manifest.

        May run in any thread, beside others that write. `beside`: subfolders of the store's folder
        that go along. Raises StateError where the disk is full or a blob is missing.
        """
        with self.blobs.lasting():
            for _ in range(_TRIES):
                with suppress(_Collected):
                    return self._backup(path, beside)
        raise StateError(
            f"a blob that a row names is missing: {path.name} was not written; see `atoll doctor`"
        )

    def _backup(self, path: Path, beside: Sequence[str]) -> dict[str, Any]:
        try:
            with self.files.whole(path) as out, tarfile.open(fileobj=out, mode="w|") as tar:
                if hasattr(os, "fchmod"):
                    os.fchmod(out.fileno(), 0o600)
                return self._fill(_Tar(tar), beside)
        except OSError as error:
            raise StateError(f"cannot write the backup {path}: {error.strerror}") from error

    def _fill(self, tar: _Tar, beside: Sequence[str]) -> dict[str, Any]:
        with self.read() as conn:
            head = conn.execute(select(t.head.c.seq, t.head.c.hash)).one()
            names = sorted({row[0] for row in conn.execute(named_by()) if row[0]})
            for name in names:
                self.blobs.touch(name)  # young, so that nobody collects it meanwhile
            for table in t.schema.sorted_tables:
                if table is not t.probes:
                    with tempfile.TemporaryFile(dir=self.folder) as rows:
                        for row in conn.execute(select(table)):
                            rows.write(canonical(dict(row._mapping)).encode() + b"\n")
                        tar.add(f"tables/{table.name}.jsonl", rows)
                        hit(_COPIED)
        for name in names:
            self._add_blob(tar, name)
        for folder in beside:
            for file in sorted(p for p in (self.folder / folder).rglob("*") if p.is_file()):
                with file.open("rb") as source:
                    tar.add(f"beside/{file.relative_to(self.folder).as_posix()}", source)
        made = {"format": FORMAT, "schema": t.REVISION, "created": self.clock(), "head": list(head)}
        manifest = {**made, "files": tar.files}
        tar.add(MANIFEST, io.BytesIO(json.dumps(manifest, indent=1).encode()))
        return manifest

    def _add_blob(self, tar: _Tar, name: str) -> None:
        try:
            with self.blobs.path(name).open("rb") as source:
                tar.add(f"blobs/{name}", source)
        except FileNotFoundError:
            raise _Collected from None
        with suppress(FileNotFoundError), self.blobs.head(name).open("rb") as source:
            tar.add(f"blobs/{name}.head", source)
        hit(_COPIED)


class _Collected(Exception):  # noqa: N818  another process took a blob away meanwhile: begin again
    pass


class _Tar:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.files: dict[str, list[Any]] = {}

    def add(self, name: str, source: IO[bytes]) -> None:
        info = tarfile.TarInfo(name)
        info.size = source.seek(0, os.SEEK_END)
        info.mode = 0o600
        source.seek(0)
        hashed = _Hashed(source)
        self._tar.addfile(info, hashed)
        self.files[name] = [info.size, hashed.digest.hexdigest()]


class _Hashed:
    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


def check(path: Path) -> dict[str, Any]:
    """Read a backup through; its manifest. Raises StateError for the first file that is not as written."""
    try:
        manifest, seen = _read_through(path)
        whole = manifest["format"] == FORMAT and bool(manifest["schema"])
        wanted = {name: list(file) for name, file in manifest["files"].items()}
    except OSError as error:
        raise StateError(f"cannot read the backup {path}: {error.strerror}") from None
    except (tarfile.TarError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StateError(f"{path} is not a whole backup ({error}): take another one") from None
    if not whole:
        raise StateError(f"{path} is a backup of a newer form: upgrade Atoll")
    for name in sorted({*seen, *wanted}):
        if seen.get(name) != wanted.get(name):
            raise StateError(f"{path}: {name} is damaged or missing: take another backup")
    return manifest


def _read_through(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    seen: dict[str, list[Any]] = {}
    manifest: dict[str, Any] = {}
    for name, size, source in members(path):
        if name == MANIFEST:
            manifest = json.loads(source.read())
            continue
        hashed = _Hashed(source)
        while hashed.read(1 << 20):
            pass
        seen[name] = [size, hashed.digest.hexdigest()]
    return manifest, seen


def members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, bytes, reader) of each file in a backup, in order; raises StateError for a wrong name."""
    with tarfile.open(path, mode="r|") as tar:
        for info in tar:
            source = tar.extractfile(info) if info.isfile() else None
            if source is None or not (info.name == MANIFEST or _NAME.fullmatch(info.name)):
                raise StateError(f"{path}: {info.name[:80]!r} does not belong in a backup")
            yield info.name, info.size, source
