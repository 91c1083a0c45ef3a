"""The models a site serves: a champion of each name, maybe a candidate on trial, swapped without a gap.

A model comes with a signed manifest (privacy/models.py). What was accepted once is served again after a
restart, whether or not the coordinator can be reached. place.py says how it stands on disk, rollout.py when a
candidate answers, becomes champion or is taken back, shadow.py how the two are compared.

    served = shelf.pick(name, ticket)              who is to answer: the same for the same ticket
    served, found = shelf.answer(served, rows)     its answer, or the champion's where a candidate broke
    shelf.seen(served, ticket, rows)               for the comparison, which is beside: returns at once
    shelf.feedback(name, ticket, labels)           the truth, whenever it comes
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import AtollError, MisuseError, StateError
from ..privacy.orders import Order
from . import rollout
from .evidence import Pair
from .model import Model
from .place import Place
from .rollout import Line, Move
from .row import NAME, Opened, Row, Slot, loaded, name_of, order_of, read, said, signed_for
from .shadow import Copy, Shadow, worse
from .strict import Strict

NOTED = 64  # requests compared between two notes of the evidence on disk
TICKETS = 4096  # requests whose labels may still come


class Served(NamedTuple):
    """One model in use. `trial`: it is no champion yet. `own`: above 0, this node's so-manieth own, which it
    made of the federation's `version`. `light`: a variant in integers that this node made.
    """

    name: str
    version: int
    model: Model | Strict
    trial: bool = False
    own: int = 0
    light: bool = False


class Shelf:
    """Models by name. `folder`: where they are kept, None for nowhere. `opened`: checks manifests.

    Reading what is on disk never fails as a whole: `problems` names each model that cannot be served,
    with the reason. `moved`: called with (name, move, figures) after each change, in the thread that made it.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        opened: Opened | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._opened = opened
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._own: dict[str, Served] = {}
        self._change = threading.RLock()
        self._shadow = Shadow(self._told)
        self._pairs: OrderedDict[tuple[str, str], tuple[int, Pair]] = OrderedDict()
        self.moved: list[Callable[[str, Move, Mapping[str, float]], None]] = []
        self.problems: dict[str, str] = {}
        for place in sorted(self._folder.iterdir()) if self._folder and self._folder.is_dir() else ():
            try:
                if opened is None:
                    raise MisuseError("a Shelf needs `opened` to read models from disk")
                self._rows[place.name], problem = read(Place(place), opened, clock())
                if problem:
                    self.problems[place.name] = problem
            except (AtollError, OSError) as error:
                self.problems[place.name] = said(error)

    def __iter__(self) -> Iterator[Served]:
        return iter([self._champion(name, row) for name, row in self._rows.items()])

    def get(self, name: str = "") -> Served | None:
        """The champion of that name, or of the only one there is; whoever holds it may go on using it."""
        found = self._find(name)
        return None if found is None else self._champion(*found)

    def pick(self, name: str, ticket: str) -> Served | None:
        """Who is to answer the request with this ticket: the same while a stage lasts."""
        found = self._find(name)
        if found is None:
            return None
        name, row = found
        trial, slot = row.line.candidate, row.candidate
        if trial is None or slot is None or not rollout.gives(row.line, name, ticket):
            return self._champion(name, row)
        return Served(name, trial.version, slot.strict, trial=True, light=slot.light)

    def line(self, name: str) -> Line | None:
        """How far a name's roll-out is: a record of versions, orders and counts."""
        row = self._rows.get(name)
        return None if row is None else row.line

    def run(self, name: str) -> str:
        """The run that a name's champion comes from, as its manifest says; "" for a model without one.

        Raises ProtocolError as `opened`.
        """
        row = self._rows.get(name)
        if row is None or self._opened is None or not row.champion.manifest:
            return ""
        return str(self._opened(row.champion.manifest, None)["run"])

    def seen(self, served: Served, ticket: str, rows: NDArray[np.float32]) -> None:
        """These rows were answered. Where there is a candidate, both models are compared on a copy."""
        row = self._rows.get(served.name)
        if row is None or row.candidate is None or row.line.candidate is None or not len(rows):
            return
        pair = row.champion.strict, row.candidate.strict
        version = row.line.candidate.version
        self._shadow.offer(Copy(served.name, version, ticket, rows, *pair, given=served.trial))

    def answer(self, served: Served, rows: NDArray[np.float32]) -> tuple[Served, dict[str, NDArray[Any]]]:
        """Its answers to rows (n, ...), and whose they are: the champion's where a candidate breaks on them,
        which takes the candidate back. Raises StateError where the champion cannot answer.
        """
        try:
            return served, served.model.run(rows)
        except StateError as error:
            row = self._rows.get(served.name)
            if row is None or not (served.trial or served.own):
                raise
            found = row.champion.model.run(rows)
            why = str(error)
            if served.own:
                self._own = {n: own for n, own in self._own.items() if own is not served}
            self._step(served.name, lambda line: rollout.broke(line, served.version, why))
            return _champion(served.name, row), found

    def feedback(self, name: str, ticket: str, labels: Sequence[float]) -> bool:
        """What is true of the rows of a request, in order. False where it was not compared, or long ago."""
        found = self._find(name)
        with self._change:
            kept = None if found is None else self._pairs.pop((found[0], ticket), None)
        if found is None or kept is None or not labels:
            return False
        version, pair = kept
        rows = min(len(labels), len(pair.champion))
        self._step(
            found[0],
            lambda line: rollout.labelled(line, version, worse(pair, labels), rows, self._clock()),
        )
        return True

    def take(self, manifest: bytes, data: bytes | None = None) -> Served:
        """Check a signed model, keep it on disk and begin its roll-out: what serves from now on.

        `data`: None where `holds(manifest)`. Without an order in the manifest it serves at once, in place
        of the one before, which answers until the new one is loaded. Raises ProtocolError for a signature,
        version or order that will not do, IntegrityError for other bytes, StateError for bytes that are no
        model or where the disk is full; then everything stays as it was, but that an ordered version which is
        no model for here counts as taken back.
        """
        if self._opened is None:
            raise MisuseError("a Shelf without `opened` trusts nobody's signature: use put(...)")
        name = name_of(self._opened(manifest, None))  # only to know its name
        with self._change:
            row = self._rows.get(name)
            line = Line() if row is None else row.line
            fields = self._opened(manifest, line.newest)
            version, order = int(fields["version"]), order_of(fields)
            takes_back = int(fields.get("takes_back", 0))
            after, move = rollout.accepted(line, version, order, takes_back, self._clock())
            trial = after.candidate
            if version not in (after.champion, 0 if trial is None else trial.version):
                slot, data = None, None  # it was taken back here before
            else:
                try:
                    slot = self._slot(name, fields, manifest, data, row)
                except StateError as error:
                    if row is not None and order is not None and data is not None:
                        self._refuse(name, row, version, order, str(error))
                    raise
            fresh = _placed(after, row, slot, version)
            self._write(name, fresh, row, data, slot)
            self._serve(name, fresh)
        self._say(name, move, fresh.line)
        return _champion(name, fresh)

    def _refuse(self, name: str, row: Row, version: int, order: Order, reason: str) -> None:
        """What was ordered is no model for here: whoever ordered it hears so."""
        after, move = rollout.refused(row.line, version, order, reason)
        fresh = row._replace(line=after, candidate=None if after.candidate is None else row.candidate)
        self._write(name, fresh, row, None, None)
        self._serve(name, fresh)
        self._say(name, move, row.line)

    def holds(self, manifest: bytes) -> bool:
        """Whether the bytes of this model are here. Raises ProtocolError for a signature that will not do."""
        if self._opened is None:
            return False
        fields = self._opened(manifest, None)
        row = self._rows.get(name_of(fields))
        return row is not None and fields["sha256"] in {slot.sha256 for slot in row.slots}

    def heavy(self, name: str) -> dict[str, Path]:
        """The files, by SHA-256, of the models of a name that are served as they came, not as a variant."""
        row = self._rows.get(name)
        if row is None or self._folder is None:
            return {}
        place = Place(self._folder / name)
        return {slot.sha256: place.path(slot.sha256) for slot in row.slots if not slot.light}

    def lighten(self, name: str, sha256: str, data: bytes) -> bool:
        """Serve a variant of a model in its place, from the next request on; False where that is gone.

        The variant is this node's own and is not kept: the manifest goes on to name what it was made of.
        Raises StateError for bytes that are no model.
        """
        model = Model(data, name)
        with self._change:
            row = self._rows.get(name)
            if row is None or sha256 not in {slot.sha256 for slot in row.slots}:
                return False

            light = Slot(model, Strict(model), sha256=sha256, light=True)
            slots = [light._replace(manifest=s.manifest) if s.sha256 == sha256 else s for s in row.slots]
            self._serve(name, Row(row.line, *slots), clear=False)
        return True

    def put(self, name: str, version: int, data: bytes) -> Served:
        """Serve a model of one's own, without a manifest; it is not kept. Raises StateError as `take`."""
        if not NAME.fullmatch(name):
            raise MisuseError(f"a model's name is lower-case letters, digits, dots and dashes, got {name!r}")
        model = Model(data, name)
        row = Row(Line(version, version), Slot(model, Strict(model)))
        self._serve(name, row)
        return _champion(name, row)

    def own(self, name: str, version: int, number: int, data: bytes) -> bool:
        """Answer by a model that this node made of the federation's `version`, while that is champion; False
        where it is not. `number` >= 1: the node's own count. Raises StateError for bytes that are no model.
        """
        fresh = Served(name, version, Model(data, name), own=number)
        with self._change:
            row = self._rows.get(name)
            if row is None or row.line.champion != version:
                return False
            self._own = {**self._own, name: fresh}
            return True

    def _champion(self, name: str, row: Row) -> Served:
        """Who answers: the node's own model, while what it was made of is champion, or the champion."""
        own = self._own.get(name)
        return own if own is not None and own.version == row.line.champion else _champion(name, row)

    def settle(self) -> None:
        """Wait until all requests that were taken for comparison have been compared."""
        self._shadow.settle()

    def close(self) -> None:
        """End the comparison and note how far it is."""
        self._shadow.close()
        for name, row in self._rows.items():
            if row.candidate is not None:
                with self._change:
                    self._change_line(name, row, rollout.ended(row.line), None)

    # -- changes ------------------------------------------------------------------------------

    def _find(self, name: str) -> tuple[str, Row] | None:
        rows = self._rows
        if not name and len(rows) == 1:
            return next(iter(rows.items()), None)
        row = rows.get(name)
        return None if row is None else (name, row)

    def _told(self, copy: Copy, found: Pair | str) -> None:
        """What the comparison of a request came to."""

        def step(line: Line) -> tuple[Line, Move | None]:
            if isinstance(found, str):
                return rollout.broke(line, copy.version, found)
            line = rollout.dropped(line, copy.version, self._shadow.dropped(copy.name))
            return rollout.compared(line, copy.version, found, self._clock())

        if not isinstance(found, str):
            with self._change:
                self._pairs[copy.name, copy.ticket] = copy.version, found
                while len(self._pairs) > TICKETS:
                    self._pairs.popitem(last=False)
        self._step(copy.name, step)

    def _step(self, name: str, step: Callable[[Line], tuple[Line, Move | None]]) -> None:
        with self._change:
            row = self._rows.get(name)
            if row is None:
                return
            after, move = step(row.line)
            move = self._change_line(name, row, after, move)
        self._say(name, move, row.line)

    def _change_line(self, name: str, row: Row, after: Line, move: Move | None) -> Move | None:
        """On disk first, then in memory; the move, None where it was not made.

        Where the disk takes nothing, a candidate does not go on, and goes back all the same.
        """
        fresh = row._replace(line=after)
        if move is not None and move.stage == "served" and row.candidate is not None:
            fresh = Row(after, row.candidate)
        elif after.candidate is None:
            fresh = fresh._replace(candidate=None)
        if move is not None or _due(after):
            try:
                self._write(name, fresh, row, None, None)
                self.problems.pop(name, None)
            except StateError as error:
                self.problems[name] = said(error)
                if move is not None and move.stage != "back":
                    return None
        self._serve(name, fresh, clear=False)
        return move

    def _write(self, name: str, fresh: Row, row: Row | None, data: bytes | None, new: Slot | None) -> None:
        if self._folder is None:
            return
        place = Place(self._folder / name)
        if data is not None and new is not None:
            place.add(new.sha256, data)
        if row is None or fresh.champion.manifest != row.champion.manifest:
            place.crown(fresh.champion.manifest)
        place.note(fresh.line, b"" if fresh.candidate is None else fresh.candidate.manifest)
        place.tidy(slot.sha256 for slot in fresh.slots)

    def _serve(self, name: str, fresh: Row, *, clear: bool = True) -> None:
        self._rows = {**self._rows, name: fresh}
        if clear:
            self.problems.pop(name, None)

    def _say(self, name: str, move: Move | None, line: Line) -> None:
        if move is not None:
            figures = line.candidate.seen.figures() if line.candidate is not None else {}
            for tell in self.moved:
                tell(name, move, figures)

    # -- reading ------------------------------------------------------------------------------

    def _slot(
        self, name: str, fields: Mapping[str, Any], manifest: bytes, data: bytes | None, row: Row | None
    ) -> Slot:
        """The model of a manifest: one that is loaded already, or one of these bytes."""
        digest = str(fields["sha256"])
        if data is not None:
            signed_for(fields, data)
        for slot in row.slots if row is not None else ():
            if slot.sha256 == digest:
                return slot._replace(manifest=manifest)
        if data is None:
            raise StateError(f"model {name} {fields['version']}: its bytes are not here yet")
        fresh = loaded(fields, manifest, data)
        if row is not None and "order" in fields and fresh.model.row != row.champion.model.row:
            shapes = f"{list(fresh.model.row)}, and those of version {row.line.champion}"
            raise StateError(f"{name} reads rows of shape {shapes} have {list(row.champion.model.row)}")
        return fresh


def _placed(after: Line, row: Row | None, slot: Slot | None, version: int) -> Row:
    """A name once a manifest for `version` was accepted; `slot`: its model, None for one taken back."""
    if slot is None:
        assert row is not None  # noqa: S101  it was here
        return row._replace(line=after)
    if row is None or version == after.champion:
        return Row(after, slot)
    return Row(after, row.champion, slot)


def _champion(name: str, row: Row) -> Served:
    return Served(name, row.line.champion, row.champion.model, light=row.champion.light)


def _due(line: Line) -> bool:
    """Whether the evidence is to be noted now."""
    trial = line.candidate
    return trial is not None and (trial.seen.n + trial.seen.labelled) % NOTED == 0
