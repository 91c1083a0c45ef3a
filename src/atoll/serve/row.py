"""What a shelf serves of one name at this moment, and how it is read from disk again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from ..core.errors import AtollError, IntegrityError, StateError
from ..privacy.orders import Order
from . import rollout
from .model import Model
from .place import Place
from .rollout import Line
from .strict import Strict, looked_at

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

# (manifest, above) -> its fields, or ProtocolError where the signature will not do or the version is not
# above `above`; that is None where it was accepted before and is read from this site's own disk.
Opened: TypeAlias = Callable[[bytes, int | None], Mapping[str, Any]]


class Slot(NamedTuple):
    """A loaded model and what names it on disk. `light`: it is a variant that this node made of that."""

    model: Model
    strict: Strict
    manifest: bytes = b""
    sha256: str = ""
    light: bool = False


class Row(NamedTuple):
    """One name as it is served. It is replaced as a whole, so who reads it sees one state."""

    line: Line
    champion: Slot
    candidate: Slot | None = None

    @property
    def slots(self) -> list[Slot]:
        """What is loaded."""
        return [self.champion, *([] if self.candidate is None else [self.candidate])]


def read(place: Place, opened: Opened, now: float) -> tuple[Row, str]:
    """A name as it was left, and what keeps its candidate from being tried, if anything does.

    Whatever is wrong with a candidate, the champion is served. Raises the errors of Atoll and OSError where
    that cannot be.
    """
    name, manifest = place.folder.name, place.champion()
    fields = opened(manifest, None)
    if name_of(fields) != name:
        raise StateError(f"the folder {name!r} holds the model {name_of(fields)!r}: move it back")
    champion = loaded(fields, manifest, place.model(str(fields["sha256"])), look=False)
    line, trial, problem = _line(place, fields)
    line, move = rollout.started(line, now)
    if move is None:
        return Row(line, champion), problem
    with suppress(StateError):  # counted before it is loaded, where the disk takes it
        place.note(line, b"" if line.candidate is None else trial)
    if line.candidate is None:
        return Row(line, champion), move.reason
    try:
        told = opened(trial, None)
        return Row(line, champion, loaded(told, trial, place.model(str(told["sha256"])), look=False)), problem
    except (AtollError, OSError) as error:
        line = replace(line, candidate=None, number=line.number - 1)  # the same order may bring it again
        return Row(line, champion), f"a candidate is not tried: {said(error)}"


def _line(place: Place, fields: Mapping[str, Any]) -> tuple[Line, bytes, str]:
    """The line as it was written, or what the champion's manifest says where that is newer."""
    version, order = int(fields["version"]), order_of(fields)
    newest, number = max(version, int(fields.get("takes_back", 0))), 0 if order is None else order.number
    try:
        line, trial = place.line()
    except StateError as error:
        return Line(version, newest, number), b"", said(error)
    if line.champion == version and number <= line.number:
        return line, trial, ""
    return Line(version, max(newest, line.newest), max(number, line.number), None, line.back), b"", ""


def loaded(fields: Mapping[str, Any], manifest: bytes, data: bytes, *, look: bool = True) -> Slot:
    """A manifest's model. Raises IntegrityError for other bytes, StateError for no model; `look`: or for one
    that answers nothing.
    """
    name = name_of(fields)
    signed_for(fields, data)
    model = Model(data, name)
    if look:
        looked_at(model, name)
    return Slot(model, Strict(model), manifest, str(fields["sha256"]))


def signed_for(fields: Mapping[str, Any], data: bytes) -> None:
    """Raises IntegrityError for other bytes than a manifest names."""
    if hashlib.sha256(data).hexdigest() != fields["sha256"]:
        what = f"model {fields['name']} {fields['version']}"
        raise IntegrityError(f"{what}: the bytes are not those that were signed")


def order_of(fields: Mapping[str, Any]) -> Order | None:
    """A manifest's order, None for none."""
    told = fields.get("order")
    return None if told is None else msgspec.convert(told, Order)


def name_of(fields: Mapping[str, Any]) -> str:
    """A manifest's name. Raises StateError for one that is no folder's."""
    name = str(fields["name"])
    if not NAME.fullmatch(name):
        raise StateError("a model's name is lower-case letters, digits, dots and dashes")
    return name


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"
