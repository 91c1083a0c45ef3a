"""Answers on the disk as a transport leaves them, and a model to answer about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.control.gate.gate_worker import Case, Verdict, look
from atoll.control.gate.want import Table, Want, want
from atoll.core.aggregate import Reply, Sum, fold, points
from atoll.core.edge import Answer, Task
from atoll.core.metrics import AUC, Count, Mean
from atoll.core.rng import Rng
from atoll.core.transform import Context, Transform
from atoll.core.update import Rows, Update
from atoll.learn.compress import sign, topk
from atoll.learn.quantise import int8
from atoll.learn.robust import Buckets, Gather
from atoll.wire.body import Checked, Section, answer_message, layout_of, limits
from atoll.wire.codec import HEADER, Message, encode
from atoll.wire.manifest import aligned
from atoll.wire.values import VALUES, Values, values_in, values_out


def spool(message: Message, path: Path) -> bytes:
    """Put the message's buffer at `path`, as a transport does; its frame 0."""
    head, *data = (frame[HEADER:] for frame in encode(message, limits(1 << 40)))
    path.write_bytes(b"".join(data))
    return head


def checked(message: Message, path: Path) -> Checked:
    """The message as a gate that refuses nothing would give it."""
    spool(message, path)
    values = values_in(message.arrays[VALUES], 1 << 20)
    sections, start = [], 0
    for name, a in message.arrays.items():
        if name != VALUES:
            sections.append(Section(name, a.dtype.str, start, list(a.shape)))
        start += aligned(a.nbytes)
    return Checked(values, sections, layout_of(values.leaves))


RUN, REQUEST = "r0001", 4
CLIENTS = (1, 2, 3, 4)


class Round:
    """One round over a small model: what is asked, and the honest answers to it.

    `form`: how the answer travels; `bits`: of a ring; `wide`: a float64 model; `table`: a sparse leaf;
    `part`: makes updates compact.
    """

    def __init__(
        self,
        form: str = "raw",
        *,
        bits: int | None = None,
        wide: bool = False,
        table: bool = False,
        part: Transform | None = None,
        n: int = 40,
    ) -> None:
        rng = np.random.default_rng(7)
        dtype = "f8" if wide else "f4"
        leaves = {"w": rng.normal(size=(n, 7)).astype(dtype), "b": np.ones(7, dtype), "s": np.ones((), dtype)}
        self.params = Update.of(leaves)
        self.layout = self.params.layout
        self.form, self.bits, self.wide, self.table, self.part = form, bits, wide, table, part
        at = points(self.params, len(CLIENTS), 64.0)
        self.points = replace(at, tables={"t": 30}) if table else at
        rules = {"gather": Gather(median), "buckets": Buckets(2, median)}
        self.rule: Any = rules.get(form, Sum()).at(self.points, CLIENTS, Rng.of(3))
        what: Any = {"sites": "evaluate", "notes": "note"}.get(form, "fit")
        self.task = Task(3, Rng.of(1), CLIENTS, (-1,) * 4, self.params, self.points, CLIENTS, what)
        self.replies = [(c, self.reply(c, rng)) for c in CLIENTS]

    def reply(self, client: int, rng: np.random.Generator) -> Reply:
        """An honest client's."""
        metrics = {"loss": 0.5 * client, "auc": AUC([0, 1, 1], [0.1 * client, 0.3, 0.4])}
        if self.bits:
            numbers = rng.integers(0, 1 << self.bits, self.layout.size, np.uint64, endpoint=False)
            return Reply(Update(self.layout, numbers, bits=self.bits), 2.0 * client, metrics)
        numbers = rng.normal(size=self.layout.size).astype(self.params.buffer.dtype)
        rows = {}
        if self.table:
            ids = np.sort(rng.choice(50, 6, replace=False))
            rows = {"t": Rows(ids, rng.normal(size=(6, 3)).astype("f4"))}
        update = Update(self.layout, numbers, rows=rows)
        if self.part is not None:
            update, _ = self.part.out(update, update.zeros(), Context(Rng.of(client)))
        return Reply(update, 2.0 * client, metrics)

    @property
    def edge(self) -> bool:
        """Whether the answer is an edge's."""
        return self.form in ("sum", "gather", "buckets")

    def want(self, clients: tuple[int, ...] = CLIENTS, **more: Any) -> Want:
        """What the member may answer that stands for these clients."""
        if self.table:
            more["tables"] = {"t": Table(50, 3, 30)}
        rule = None if self.form in ("sites", "notes") else self.rule
        named = {"member": "bank-a", "run": RUN, "request": REQUEST, "edge": self.edge, "bits": self.bits}
        return want(self.task.only(clients), rule, **{**named, **more})

    def answer(self, clients: tuple[int, ...] = CLIENTS) -> Answer:
        """What it honestly answers for them."""
        mine = [(c, r) for c, r in self.replies if c in clients]
        if self.form == "sites":
            found = {c: {"loss": Mean(0.5 * c, 10), "hits": Count(c)} for c in clients}
            return Answer(clients, found)
        if self.form == "notes":
            return Answer(clients, {c: bytes([c]) * 40 for c in clients}, {}, 40 * len(clients))
        if self.edge:
            return Answer(clients, fold(self.rule, mine), {}, 100)
        return Answer(clients, None, {}, 100, tuple(mine))

    def message(self, clients: tuple[int, ...] = CLIENTS, *, packs: bool = True) -> Message:
        """The same as it travels; not `packs`: as under a promise of privacy."""
        return answer_message(self.answer(clients), run=RUN, request=REQUEST, packs=packs)


ROUNDS = {
    "raw": {},
    "raw wide": {"wide": True},
    "raw ring": {"bits": 20},
    "raw sparse": {"table": True},
    "raw int8": {"part": int8()},
    "raw topk": {"part": topk(0.1)},
    "raw wide topk": {"part": topk(0.2, bits=4), "wide": True},
    "gather sign": {"form": "gather", "part": sign()},
    "sum": {"form": "sum"},
    "sum wide": {"form": "sum", "wide": True},
    "sum ring": {"form": "sum", "bits": 20},
    "sum sparse": {"form": "sum", "table": True},
    "gather": {"form": "gather"},
    "buckets": {"form": "buckets"},
    "sites": {"form": "sites"},
    "notes": {"form": "notes"},
}


def median(U: Any) -> Any:
    """A robust rule."""
    return np.median(U, axis=0)


def verdict(want: Want, message: Message, path: Path) -> Verdict:
    """What the gate's worker says, in this process."""
    return look(Case(1, want, spool(message, path), str(path), 0))


def opened(message: Message) -> Values:
    """Its plain values, to be forged."""
    return values_in(message.arrays[VALUES], 1 << 20)


def forged(message: Message, said: Values | None = None, /, **arrays: Any) -> Message:
    """The message with other plain values, or other arrays by name; None leaves one out.

    Only what the format itself forbids cannot be forged: its hashes are right.
    """
    held, head = {**message.arrays, **arrays}, dict(message.head)
    if said is not None:
        held[VALUES], head["form"] = values_out(said), said.form
    return Message(message.kind, head, {n: a for n, a in held.items() if a is not None})
