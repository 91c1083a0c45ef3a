"""A plan: how a network learns, as values. Graphs of standard operators, and the figures that go with them.

A device needs numpy and ONNX Runtime to follow it. `torch_plan` makes plans from PyTorch learners; why and
how: docs/decisions/0004-training-plan.md. As a file it is

    "ATOLLPLN"  version (2 bytes)  length of the head (4)   head: MessagePack   the graphs   first values

numbers little-endian, the graphs and the first values (float32) one after the other, as long as the head
says, and nothing after them. Who reads one lets plan_gate.py look at its graphs before anything runs them.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..core.errors import ProtocolError, StateError
from ..core.update import Layout, Leaf, Update
from ..wire.files import whole

MAGIC, VERSION = b"ATOLLPLN", 1
HEAD = struct.Struct("<8sHI")
GRAPHS = ("step", "pulled", "evaluate", "predict", "clipped")
NEEDED = ("step", "evaluate", "predict")
MEMORY = "memory/"  # the prefix of the optimiser's leaves among a step's inputs

Shape = tuple[int, ...]


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `torch_learner` was told; see there. The optimiser's own figures are in the graph as well."""

    optimizer: str
    lr: float
    epochs: int
    momentum: float
    schedule: str | None
    betas: tuple[float, float]
    clip: float | None
    decay: float


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan's graphs are for.

    `leaves`: names and shapes of the params. `trained`: those that have gradients; `statistics`: those that
    follow the rows instead (BatchNorm's); all others are frozen. `memory`: the optimiser's leaves, zero at
    first. `batch`: rows of a step; `row`: the shape of one;
    `out`: of the module's answer to one. `head`, `norms`: leaves of the last layer, and of layers that
    follow a site's own statistics.
    """

    leaves: tuple[tuple[str, Shape], ...]
    trained: tuple[str, ...]
    statistics: tuple[str, ...]
    memory: tuple[tuple[str, Shape], ...]
    batch: int
    row: Shape
    out: Shape
    loss: str
    training: Training
    head: tuple[str, ...]
    norms: tuple[str, ...]

    @property
    def moving(self) -> tuple[str, ...]:
        """The leaves that a step gives anew, in the order of its answers."""
        return (*self.trained, *self.statistics)


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    about: About
    graphs: dict[str, int]
    first: int


@dataclass(frozen=True, eq=False)
class Plan:
    """A training step, its loss and its predictions; made by `torch_learner(...).plan` or `Plan.read`.

    `graphs`: ONNX by name. All take the leaves, and

        step      memory, "x" (batch, *row), "y", "mask" (batch,), "lr" (): "new/" + each moving leaf and
                  memory, "loss" (). Adam takes "t" (), steps from 1; clipping "moves", 1 for leaves that move
        pulled    the same with "mu", "anchor/" + and "slope/" + each trained leaf: core.message.Pull
        evaluate  "x", "y", "mask": "loss", and "hits" for classifiers, both summed over the rows
        predict   "x" with any number of rows: what serving answers
        clipped   "x", "y", "mask", "norm" (): "sum/" + each trained leaf, the sum of clipped gradients

    `first`: first values, None where whoever trains is sent them anyway.
    """

    graphs: Mapping[str, bytes] = field(repr=False)
    about: About = field(repr=False)
    first: Update | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Plan({self.sha256[:12]}, {self.layout.size} numbers, batches of {self.about.batch})"

    @cached_property
    def layout(self) -> Layout:
        """The params' leaves."""
        return Layout(tuple(Leaf(name, shape) for name, shape in self.about.leaves))

    @cached_property
    def sha256(self) -> str:
        """Names it, whatever its first values are: 64 hex digits."""
        return hashlib.sha256(self.bare().dump()).hexdigest()

    def bare(self) -> Plan:
        """The same without first values, for those who are sent the params."""
        return self if self.first is None else replace(self, first=None)

    def dump(self) -> bytes:
        """The file's bytes; the same plan gives the same."""
        numbers = b"" if self.first is None else self.first.buffer.astype("<f4").tobytes()
        graphs = {name: self.graphs[name] for name in GRAPHS if name in self.graphs}
        head = _Head(self.about, {name: len(data) for name, data in graphs.items()}, len(numbers))
        text = msgspec.msgpack.encode(head)
        return b"".join((HEAD.pack(MAGIC, VERSION, len(text)), text, *graphs.values(), numbers))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to `path`, whole or not at all. Raises StateError where that cannot be written."""
        file = Path(path)
        try:
            with whole(file) as out:
                out.write(self.dump())
        except OSError as error:
            raise StateError(f"{file} cannot be written: {error.strerror}") from None
        return file

    @classmethod
    def read(cls, source: bytes | str | os.PathLike[str], **limits: Any) -> Plan:
        """A plan from a file or its bytes, once its graphs are found to be such as may run here.

        `limits`: those of plan_gate.Limits that differ: `bytes`, `memory`, `nodes`, `seconds`.
        Raises ProtocolError with the reason for any other, StateError for a file that is not there.
        """
        from .plan_gate import Limits, admit

        allowed = Limits(**limits)
        data = source if isinstance(source, bytes) else _opened(Path(source), allowed.bytes)
        if len(data) > allowed.bytes:
            raise ProtocolError(f"a plan has at most {allowed.bytes} bytes here, and this has more")
        plan = _parsed(data)
        admit(plan, allowed)
        return plan


def _opened(path: Path, most: int) -> bytes:
    """The file's bytes, or one more than `most`."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; expected a plan's file") from None


def _parsed(data: bytes) -> Plan:
    if len(data) < HEAD.size or data[:8] != MAGIC:
        raise ProtocolError("this is no plan: one begins with ATOLLPLN")
    _, version, length = HEAD.unpack_from(data)
    if version != VERSION:
        raise ProtocolError(f"this plan has format {version}, and {VERSION} is read here: export it again")
    try:
        head = msgspec.msgpack.decode(data[HEAD.size : HEAD.size + length], type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ProtocolError("the plan's head cannot be read: it is damaged, or of another version") from None
    sizes = [*head.graphs.values(), head.first]
    at = HEAD.size + length
    if min(sizes) < 0 or at + sum(sizes) != len(data):
        raise ProtocolError(f"the plan's parts have {sum(sizes)} bytes, and {len(data) - at} came")
    graphs = {}
    for name, size in head.graphs.items():
        graphs[name] = data[at : at + size]
        at += size
    plan = Plan(graphs, head.about)
    return replace(plan, first=_first(plan, memoryview(data)[at:])) if head.first else plan


def _first(plan: Plan, data: memoryview) -> Update:
    if len(data) != 4 * plan.layout.size:
        raise ProtocolError(f"first values are {plan.layout.size} float32, and {len(data)} bytes came")
    found = Update(plan.layout, np.frombuffer(data, "<f4").astype(np.float32))
    if not found.finite():
        raise ProtocolError("the plan's first values hold a NaN or an infinity")
    return found
