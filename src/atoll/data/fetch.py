"""Find a dataset's files: your folder, then the cache, then the publisher.

`locate("mnist", files)` looks for `$ATOLL_DATA/mnist/<file>`, then for `<cache>/mnist/<file>` where
<cache> is `$ATOLL_CACHE` or `~/.cache/atoll`, and downloads what is still missing. A download is
read in blocks into a temporary file, at most its declared size, and takes its name only after
length and SHA-256 agree: a file in the cache is whole or absent. Files in `$ATOLL_DATA` are yours
and are not compared; every parser checks its own format.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from atoll.core.errors import DataError
from atoll.wire.files import whole

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class File:
    """One file of a publisher: `size` bytes with this SHA-256 (hex) at `url`."""

    name: str
    url: str
    size: int
    sha256: str


def folders(env: Mapping[str, str]) -> tuple[Path | None, Path]:
    """The user's data folder (or None) and the cache folder, as `env` says."""
    cache = env.get("ATOLL_CACHE") or str(Path.home() / ".cache" / "atoll")
    return Path(env["ATOLL_DATA"]) if env.get("ATOLL_DATA") else None, Path(cache)


def locate(dataset: str, files: Sequence[File], env: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Where each file is, by name, downloading it if need be.

    `env`: where to read the two folders from, by default the process's environment.
    Raises DataError, saying which files to put where, if one cannot be had.
    """
    own, cache = folders(os.environ if env is None else env)
    places = [own] * (own is not None) + [cache]
    found: dict[str, Path] = {}
    for file in files:
        here = [folder / dataset / file.name for folder in places if folder is not None]
        path = next((p for p in here if p.is_file()), None)
        found[file.name] = path or _fetched(dataset, file, files, cache / dataset / file.name)
    return found


def download(file: File, path: Path, timeout: float = 30.0) -> Path:
    """Fetch `file` to `path`, whole or not at all. `timeout`: seconds without a byte, > 0.

    Raises DataError if the server fails, or sends other bytes than declared.
    """
    import http.client  # four megabytes, which who has the files does without
    import urllib.error
    import urllib.request

    try:
        with whole(path) as out, urllib.request.urlopen(file.url, timeout=timeout) as answer:  # noqa: S310  ours
            _copy(answer, out, file)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection open
        raise DataError(f"{file.url}: {error}") from error
    return path


def _copy(answer: BinaryIO, out: BinaryIO, file: File) -> None:
    seen, digest = 0, hashlib.sha256()
    while block := answer.read(min(_BLOCK, file.size - seen + 1)):  # one byte over is enough to know
        seen += len(block)
        if seen > file.size:
            raise DataError(f"{file.url}: expected {file.size} bytes and more came; nothing was kept")
        digest.update(block)
        out.write(block)
    if seen != file.size:
        raise DataError(f"{file.url}: expected {file.size} bytes, {seen} came; nothing was kept, try again")
    if digest.hexdigest() != file.sha256:
        raise DataError(f"{file.url}: the SHA-256 is not the expected one; nothing was kept")


def _fetched(dataset: str, file: File, files: Sequence[File], path: Path) -> Path:
    try:
        return download(file, path)
    except DataError as error:
        wanted = "\n".join(f"  {f.name}  from {f.url}" for f in files)
        raise DataError(
            f"{dataset}: {file.name} is neither in $ATOLL_DATA/{dataset} nor in {path.parent},"
            f" and could not be downloaded ({error}).\nPut these files into $ATOLL_DATA/{dataset}:\n{wanted}"
        ) from None
