"""What travels between members about a round: asks and answers of core/edge.py as messages.

    ask      a letter without arrays (`ask_head`), and the model (`params_message`), once for all
    answer   `answer_message`: a client's own replies as they left its chain, or an edge's partial

Laws (tests/laws/test_body.py): `task_of(ask_head(task), task.params) == task` and
`read_answer(decode(encode(answer_message(answer)))) == answer`; numbers of a ring and integer sums
take as many whole bytes as the largest needs (packed.py). Two things become their normal form: a
metric that is a bare number that is not finite travels as `Mean`, which counts it in `odd`; a reason
is cut to its last 8,192 characters.

An answer's plain values stand in an array of their own (values.py). Format: docs/reference/answers.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.aggregate import Partial, Points, Reply
from ..core.edge import Answer, Task
from ..core.errors import AtollError, CodecError, MisuseError, StateError
from ..core.rng import Rng
from ..core.update import Layout, Leaf, Rows, Update
from .coded import Coded, compact, decode, shortest
from .packed import pack, unpack
from .plain import Limits, Message
from .values import (
    VALUES,
    Part,
    Said,
    Values,
    convert,
    metrics_in,
    metrics_out,
    reason,
    values_in,
    values_out,
)

Array: TypeAlias = NDArray[Any]
_EXPONENT = 1100  # beyond it 2**exponent is 0 or infinite
_LARGE = 1 << 22  # numbers of a compact update that are unpacked to a file: many may be held at once


class _Points(msgspec.Struct):
    exponents: list[int]
    max_weight: float
    cohort: int
    wide: bool
    tables: dict[str, int]
    leaves: list[tuple[str, list[int]]] | None = None


class _Ask(msgspec.Struct):
    round: int
    key: int
    clients: list[int]
    used: list[int]
    cohort: list[int]
    want: Literal["fit", "evaluate", "note"]
    points: _Points | None = None
    note: bytes = b""
    notes: list[tuple[int, bytes]] = []


class Section(msgspec.Struct):
    """An array in the buffer: (`shape`) of `dtype`, from byte `offset`."""

    name: str
    dtype: str
    offset: int
    shape: list[int]


@dataclass(frozen=True, slots=True)
class Checked:
    """What the gate lets through: plain values, where each array stands, the layout all updates have."""

    values: Values
    sections: Sequence[Section]
    layout: Layout


def limits(size: int) -> Limits:
    """Limits for a message whose buffer has at most `size` bytes, however they are divided."""
    return Limits(bytes=size, elements=size)


# -- asks ------------------------------------------------------------------------------------


def ask_head(task: Task) -> dict[str, Any]:
    """The task as plain values, all but its params."""
    points = None
    if task.points is not None:
        p = task.points
        own = p.layout != task.params.layout
        points = _Points(
            list(p.exponents),
            float(p.max_weight),
            p.cohort,
            p.wide,
            dict(p.tables),
            _leaves(p.layout) if own else None,
        )
    ask = _Ask(
        task.round,
        _signed(task.key.key),
        list(task.clients),
        list(task.used),
        list(task.cohort),
        task.want,
        points,
        task.note,
        list(task.notes.items()),
    )
    plain: dict[str, Any] = msgspec.to_builtins(ask, builtin_types=(bytes,))
    if task.want != "note" and not task.note:
        del plain["note"], plain["notes"]
    return plain


def params_message(params: Update) -> Message:
    """The model that a round's tasks share."""
    return Message("params", {}, {"params": params})


def params_of(message: Message) -> Update:
    """The model in it. Raises CodecError for another message."""
    params = message.arrays.get("params")
    if message.kind != "params" or not isinstance(params, Update):
        raise CodecError(f"expected a message of kind 'params' with the model, got {message.kind[:40]!r}")
    return params


def task_of(head: Mapping[str, Any], params: Update) -> Task:
    """The task again; what else the head holds is left alone. Raises CodecError."""
    ask = convert(dict(head), _Ask, "an ask")
    if len(ask.used) != len(ask.clients):
        raise CodecError(f"expected the last used round of {len(ask.clients)} clients, got {len(ask.used)}")
    points = None if ask.points is None else _points(ask.points, params)
    key = Rng(ask.key & ((1 << 64) - 1))
    clients, cohort = tuple(ask.clients), tuple(ask.cohort)
    used, notes = tuple(ask.used), dict(ask.notes)
    return Task(ask.round, key, clients, used, params, points, cohort, ask.want, ask.note, notes)


def _points(p: _Points, params: Update) -> Points:
    layout = params.layout if p.leaves is None else layout_of(p.leaves)
    if len(p.exponents) != len(layout.leaves):
        raise CodecError(f"expected {len(layout.leaves)} binary points, got {len(p.exponents)}")
    if any(abs(e) > _EXPONENT for e in (*p.exponents, *p.tables.values())):
        raise CodecError(f"expected binary points within ±{_EXPONENT}")
    if not (p.max_weight > 0 and isfinite(p.max_weight) and p.cohort >= 1):
        raise CodecError("expected a positive largest weight and a cohort of at least 1")
    return Points(layout, tuple(p.exponents), p.max_weight, p.cohort, p.wide, dict(p.tables))


def _signed(key: int) -> int:
    return key - (1 << 64) if key >> 63 else key


# -- answers ---------------------------------------------------------------------------------


def answer_message(
    answer: Answer, *, run: str, request: int, most: float | None = None, packs: bool = True
) -> Message:
    """An answer to `request` of `run`. `most`: weights of replies above it are capped, as `Sum` does.

    `packs`: plain updates are packed without loss where that saves a quarter, sums to the bytes they need.
    Raises MisuseError for a metric that cannot travel.
    """
    values = Values(
        "none",
        list(answer.clients),
        [(client, reason(text)) for client, text in answer.failed.items()],
        answer.sent,
    )
    arrays: dict[str, Array] = {}
    match answer.partial:
        case None if answer.replies:
            values.form = "raw"
            _put_replies(answer.replies, most, packs, values, arrays)
        case None:
            pass
        case Partial() as partial:
            values.form = "sum"
            values.leaves = _leaves(partial.layout)
            _put_part(0, partial, packs, values, arrays)
        case tuple() as kept:
            values.form = "gather"
            _put_replies(kept, most, packs, values, arrays)
        case dict() as table if table and all(isinstance(x, Partial) for x in table.values()):
            values.form = "buckets"
            values.leaves = _leaves(next(iter(table.values())).layout)
            for place, partial in table.items():
                _put_part(place, partial, packs, values, arrays)
        case dict() as table if table and all(isinstance(note, bytes) for note in table.values()):
            values.form = "notes"
            values.notes = list(table.items())
        case dict() as table:
            values.form = "sites"
            values.sites = [(client, metrics_out(found)) for client, found in table.items()]
        case other:
            raise MisuseError(
                f"a partial of type {type(other).__name__} cannot travel:"
                " below edges use Sum, Gather or Buckets"
            )
    return Message(
        "answer",
        {"run": run, "request": request, "form": values.form},
        {VALUES: values_out(values), **arrays},
    )


def read_answer(message: Message) -> Answer:
    """The answer in a decoded message. Raises CodecError for one that `answer_message` did not make.

    Says nothing about whether its meaning is in order: a server asks its gate (control/gate/gate.py).
    """
    values, arrays = opened(message)
    return assemble(values, arrays, layout_of(values.leaves))


def answer_of(checked: Checked, path: Path) -> Answer:
    """The answer whose buffer is the file at `path`; replies are views of the file, kept mapped.

    The file may be unlinked then, never written to. Raises StateError where it cannot be read.
    """
    try:
        raw = mapped(path) if checked.sections else np.empty(0, np.uint8)
        arrays = {}
        for s in checked.sections:
            dtype = np.dtype(s.dtype)
            end = s.offset + prod(s.shape) * dtype.itemsize
            arrays[s.name] = raw[s.offset : end].view(dtype).reshape(s.shape)
    except OSError as error:
        raise StateError(f"an answer cannot be read from the disk: {error.strerror}") from None
    except (TypeError, ValueError):
        raise CodecError("an answer's arrays do not stand where they were said to") from None
    answer = assemble(checked.values, arrays, checked.layout)
    try:
        for _, reply in (*answer.replies, *(answer.partial if checked.values.form == "gather" else ())):
            if isinstance(reply.update, Coded) and reply.update.layout.size > _LARGE:
                reply.update.spool(path.parent)
    except OSError as error:
        raise StateError(f"there is no room to unpack an answer: {error.strerror}") from None
    return answer


def mapped(path: Path) -> NDArray[np.uint8]:
    """A file's bytes, read-only, mapped; `np.memmap` takes a third of a millisecond to begin.

    Raises OSError as the system does, ValueError where it is empty.
    """
    with path.open("rb", buffering=0) as file:
        return np.frombuffer(mmap(file.fileno(), 0, access=ACCESS_READ), np.uint8)


def opened(message: Message, most: int = 1 << 20) -> tuple[Values, dict[str, Array]]:
    """An answer's plain values, at most `most` of them, and its arrays by name. Raises CodecError."""
    if message.kind != "answer":
        raise CodecError(f"expected a message of kind 'answer', got {message.kind[:40]!r}")
    arrays = dict(message.arrays)
    values = values_in(arrays.pop(VALUES, None), most)
    flat = {name: array for name, array in arrays.items() if not isinstance(array, Update)}
    if len(flat) < len(arrays):
        raise CodecError("an answer holds plain arrays, and no updates")
    return values, flat


def assemble(values: Values, arrays: Mapping[str, Array], layout: Layout) -> Answer:
    """An answer from its plain values and flat arrays, all updates in one layout. Raises CodecError."""
    try:
        replies: Any = tuple(
            (said.client, _reply(i, said, arrays, layout, values.tables))
            for i, said in enumerate(values.replies)
        )
        partial: Any = None
        match values.form:
            case "gather":
                partial, replies = replies, ()
            case "sum":
                (part,) = values.parts
                partial = _partial(0, part, arrays, layout, values.tables)
            case "buckets":
                partial = {
                    p.place: _partial(k, p, arrays, layout, values.tables) for k, p in enumerate(values.parts)
                }
            case "sites":
                partial = {client: metrics_in(found) for client, found in values.sites}
            case "notes":
                partial = dict(values.notes)
        return Answer(tuple(values.clients), partial, dict(values.failed), values.sent, replies)
    except CodecError:
        raise
    except (AtollError, KeyError, ValueError, TypeError) as error:
        raise CodecError(f"the answer's arrays do not fit its values: {error}") from None


def layout_of(leaves: Sequence[tuple[str, Sequence[int]]]) -> Layout:
    """A layout from names and shapes. Raises CodecError where names repeat or a shape is negative."""
    if len({name for name, _ in leaves}) != len(leaves) or any(n < 0 for _, shape in leaves for n in shape):
        raise CodecError("expected leaves of different names, and shapes of at least 0")
    return Layout(tuple(Leaf(name, tuple(shape)) for name, shape in leaves))


def _leaves(layout: Layout) -> list[tuple[str, list[int]]]:
    return [(name, list(shape)) for name, shape in layout.leaves]


def _put_replies(
    replies: Sequence[tuple[int, Reply]],
    most: float | None,
    packs: bool,  # noqa: FBT001  see `answer_message`
    values: Values,
    arrays: dict[str, Array],
) -> None:
    values.tables = sorted({name for _, r in replies for name in r.update.rows})
    values.leaves = _leaves(replies[0][1].update.layout) if replies else []
    for i, (client, r) in enumerate(replies):
        if r.update.layout != replies[0][1].update.layout:
            raise MisuseError(f"client {client}'s update has other leaves than client {replies[0][0]}'s")
        weight = r.weight if most is None else min(r.weight, most)
        bits = r.update.bits
        values.replies.append(Said(client, float(weight), metrics_out(r.metrics, weight), bits))
        arrays[str(i)] = pack(r.update.buffer, -(-bits // 8)) if bits else shortest(r.update, packs=packs)
        for name, rows in r.update.rows.items():
            t = values.tables.index(name)
            arrays[f"{i}.ids.{t}"], arrays[f"{i}.rows.{t}"] = rows.ids, rows.values


def _reply(i: int, said: Said, arrays: Mapping[str, Array], layout: Layout, tables: Sequence[str]) -> Reply:
    buffer = arrays[str(i)]
    if said.bits:
        buffer = unpack(buffer, np.uint64)
    rows = {
        name: Rows(arrays[f"{i}.ids.{t}"], arrays[f"{i}.rows.{t}"])
        for t, name in enumerate(tables)
        if f"{i}.ids.{t}" in arrays
    }
    if compact(buffer):
        if rows:
            raise CodecError("a compact update has no sparse rows")
        update: Update = Coded(layout, decode(buffer, layout.size), buffer)
        return Reply(update, said.weight, metrics_in(said.metrics))
    return Reply(Update(layout, buffer, bits=said.bits, rows=rows), said.weight, metrics_in(said.metrics))


def _put_part(
    place: int,
    partial: Partial,
    packs: bool,  # noqa: FBT001  see `answer_message`
    values: Values,
    arrays: dict[str, Array],
) -> None:
    k, slices = len(values.parts), list(partial.layout.slices.values())
    wide = None if packs else -(-(partial.bits or 64) // 8)
    for limb, sums in enumerate(partial.sums):
        for leaf, where in enumerate(slices):
            arrays[f"{k}.{limb}.{leaf}"] = pack(sums[where], wide)
    widths = []
    for name, rows in partial.rows.items():
        if name not in values.tables:
            values.tables.append(name)
        t = values.tables.index(name)
        widths.append((t, rows.values.shape[1]))
        arrays[f"{k}.ids.{t}"] = rows.ids
        arrays[f"{k}.rows.{t}"] = pack(rows.values.reshape(-1), wide)
    weight = (partial.weight >> 32, partial.weight & 0xFFFF_FFFF)
    metrics = metrics_out(partial.metrics)
    values.parts.append(Part(place, weight, partial.count, metrics, len(partial.sums), partial.bits, widths))


def _partial(
    k: int, part: Part, arrays: Mapping[str, Array], layout: Layout, tables: Sequence[str]
) -> Partial:
    sums = np.empty((part.limbs, layout.size), np.uint64 if part.bits else np.int64)
    for limb in range(part.limbs):
        for leaf, where in enumerate(layout.slices.values()):
            unpack(_planes(arrays[f"{k}.{limb}.{leaf}"]), sums.dtype, sums[limb, where])
    rows = {}
    for t, wide in part.widths:
        values = unpack(_planes(arrays[f"{k}.rows.{t}"])).reshape(-1, wide)
        rows[tables[t]] = Rows(arrays[f"{k}.ids.{t}"], values)
    whole, units = part.weight
    weight = (whole << 32) + units
    return Partial(layout, sums, weight, part.count, metrics_in(part.metrics), part.bits, rows)


def _planes(packed: Array) -> Array:
    if packed.dtype != np.uint8 or packed.ndim != 2 or len(packed) > 8:
        raise CodecError("expected packed numbers of at most 8 bytes")
    return packed
