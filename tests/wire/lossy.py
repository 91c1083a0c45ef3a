"""A disk that may forget whatever was not synced: `Lossy` works like Files until `survivors` is asked for.

What POSIX promises after a power cut, and no more:

- the bytes of a file are those of its last sync, or the written ones, or any mixture by sector;
- each change of a folder (a new name, a rename, a removal) since its last sync happened or not, on its own;
- a rename is one change: the old name or the new one, never neither.

`tear` does the same to a file others write, such as a database: given what it held when it was last synced.
"""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from atoll.wire.files import Files

SECTOR = 512


@dataclass(eq=False)
class Content:
    """A file without its name; `synced`: its bytes on disk, None before there were any."""

    synced: bytes = b""


@dataclass
class Change:
    """Names that appear and vanish together."""

    new: dict[Path, Content] = field(default_factory=dict)
    gone: tuple[Path, ...] = ()


class Lossy(Files):
    """Files of one folder tree; what was there before is on disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._now: dict[Path, Content] = {}
        self._disk: dict[Path, Content] = {}
        self._folders: dict[Path, list[Change]] = {}
        for path in root.rglob("*"):
            if path.is_file():
                self._now[path] = self._disk[path] = Content(path.read_bytes())

    def create(self, path: Path) -> BinaryIO:
        file = super().create(path)
        self._now[path] = Content()
        self._changed(path.parent, Change({path: self._now[path]}))
        return file

    def _sync(self, file: BinaryIO) -> None:
        super()._sync(file)
        path = Path(file.name)
        self._now.setdefault(path, Content()).synced = path.read_bytes()

    def _replace(self, old: Path, new: Path) -> None:
        super()._replace(old, new)
        self._now[new] = self._now.pop(old, Content())
        self._changed(new.parent, Change({new: self._now[new]}, (old,)))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        if self._now.pop(path, None):
            self._changed(path.parent, Change(gone=(path,)))

    def _sync_folder(self, folder: Path) -> None:
        super()._sync_folder(folder)
        for change in self._folders.pop(folder, []):
            self._apply(change)

    def survivors(self, draw: random.Random, into: Path) -> None:
        """What a disk may hold after a power cut now, as a tree of its own under `into`."""
        shutil.copytree(self._root, into, ignore=lambda at, names: self._known(Path(at), names))
        disk = dict(self._disk)
        for changes in self._folders.values():
            keep = draw.random()
            for change in changes:
                if draw.random() < keep:
                    self._apply(change, disk)
        now = {content: path for path, content in self._now.items()}
        for path, content in disk.items():
            written = now[content].read_bytes() if content in now else content.synced
            target = into / path.relative_to(self._root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tear(draw, content.synced, written))

    def _known(self, at: Path, names: list[str]) -> list[str]:
        return [name for name in names if at / name in self._now or at / name in self._disk]

    def _changed(self, folder: Path, change: Change) -> None:
        self._folders.setdefault(folder, []).append(change)

    def _apply(self, change: Change, disk: dict[Path, Content] | None = None) -> None:
        disk = self._disk if disk is None else disk
        for path in change.gone:
            disk.pop(path, None)
        disk.update(change.new)


def tear(draw: random.Random, synced: bytes, written: bytes) -> bytes:
    """What may be left of `written` where only `synced` is sure: either, or some sectors of each."""
    kind = draw.random()
    if kind < 0.25 or synced == written:
        return synced
    if kind < 0.5:
        return written
    end = draw.choice([len(written), draw.randint(0, max(len(written), len(synced)))])
    out = bytearray(max(end, min(len(synced), len(written))))
    keep = draw.random()
    for at in range(0, len(out), SECTOR):
        source = written if draw.random() < keep else synced
        piece = source[at : at + SECTOR][: len(out) - at]
        out[at : at + len(piece)] = piece  # zeros where the source had nothing yet
    return bytes(out)
