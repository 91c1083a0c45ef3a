"""The models a site serves: the newest of each name, kept on disk, swapped without a gap.

A model comes with a signed manifest (privacy/models.py). What was accepted once is served again after a
restart, whether or not the coordinator can be reached. On disk each name has a folder:

    <name>/signed.json      the manifest, written last: it names the model file by its SHA-256
    <name>/<sha256>.onnx
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ..core.errors import AtollError, IntegrityError, MisuseError, StateError
from ..wire.files import whole
from .model import Model

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

# (manifest, above) -> its fields, or ProtocolError where the signature will not do or the version is not
# above `above`; that is None where it was accepted before and is read from this site's own disk.
Opened: TypeAlias = Callable[[bytes, int | None], Mapping[str, Any]]


class Served(NamedTuple):
    """One model in use. `newest`: the version that the next one must exceed."""

    name: str
    version: int
    model: Model
    newest: int


class Shelf:
    """Models by name. `folder`: where they are kept, None for nowhere. `opened`: checks manifests.

    Reading what is on disk never fails as a whole: `problems` names each model that cannot be served,
    with the reason.
    """

    def __init__(self, folder: str | Path | None = None, opened: Opened | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._opened = opened
        self._served: dict[str, Served] = {}
        self.problems: dict[str, str] = {}
        for place in sorted(self._folder.iterdir()) if self._folder and self._folder.is_dir() else ():
            try:
                self._served[place.name] = self._read(place)
            except (AtollError, OSError) as error:
                self.problems[place.name] = f"{type(error).__name__}: {error}"

    def __iter__(self) -> Iterator[Served]:
        return iter(tuple(self._served.values()))

    def get(self, name: str = "") -> Served | None:
        """The model of that name, or the only one there is; whoever holds it may go on using it."""
        if not name and len(self._served) == 1:
            return next(iter(self._served.values()), None)
        return self._served.get(name)

    def take(self, manifest: bytes, data: bytes) -> Served:
        """Check a signed model, keep it on disk and serve it from now on, in place of the one before.

        The old one answers until the new one is loaded. Raises ProtocolError for a signature or a
        version that will not do, IntegrityError for other bytes, StateError for bytes that are no model
        or where the disk is full; then the old one stays.
        """
        if self._opened is None:
            raise MisuseError("a Shelf without `opened` trusts nobody's signature: use put(...)")
        told = self._opened(manifest, None)  # only to know its name
        old = self._served.get(_name(told))
        fields = self._opened(manifest, 0 if old is None else old.newest)
        fresh = _served(fields, data)
        if self._folder is not None:
            self._keep(self._folder / fresh.name, manifest, str(fields["sha256"]), data)
        return self._serve(fresh)

    def put(self, name: str, version: int, data: bytes) -> Served:
        """Serve a model of one's own, without a manifest; it is not kept. Raises StateError as `take`."""
        if not NAME.fullmatch(name):
            raise MisuseError(f"a model's name is lower-case letters, digits, dots and dashes, got {name!r}")
        return self._serve(Served(name, version, Model(data, name), version))

    def _serve(self, fresh: Served) -> Served:
        self._served = {**self._served, fresh.name: fresh}
        self.problems.pop(fresh.name, None)
        return fresh

    def _read(self, place: Path) -> Served:
        if self._opened is None:
            raise MisuseError("a Shelf needs `opened` to read models from disk")
        fields = self._opened((place / "signed.json").read_bytes(), None)
        if _name(fields) != place.name:
            raise StateError(f"the folder {place.name!r} holds the model {_name(fields)!r}: move it back")
        return _served(fields, (place / _file(str(fields["sha256"]))).read_bytes())

    def _keep(self, place: Path, manifest: bytes, digest: str, data: bytes) -> None:
        model = place / _file(digest)
        try:
            for file, content in ((model, data), (place / "signed.json", manifest)):
                with whole(file) as out:
                    out.write(content)
                _sync(place)
        except OSError as error:
            raise StateError(f"{place} cannot be written: {error.strerror}") from None
        for other in place.glob("*.onnx"):
            if other != model:
                with suppress(OSError):
                    other.unlink()


def _served(fields: Mapping[str, Any], data: bytes) -> Served:
    name, version = _name(fields), int(fields["version"])
    if hashlib.sha256(data).hexdigest() != fields["sha256"]:
        raise IntegrityError(f"model {name} {version}: the bytes are not those that were signed")
    return Served(name, version, Model(data, name), max(version, int(fields.get("takes_back", 0))))


def _name(fields: Mapping[str, Any]) -> str:
    name = str(fields["name"])
    if not NAME.fullmatch(name):
        raise StateError("a model's name is lower-case letters, digits, dots and dashes")
    return name


def _file(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise StateError("a manifest names its model by a SHA-256 in hex")
    return f"{digest}.onnx"


def _sync(folder: Path) -> None:
    """A rename lasts only once the folder is on disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
