"""The rules by which an answer is let in: it fits what was asked in every point.

`examine` refuses an answer to another run or request, for other clients, with other leaves, shapes or
types than the model's, with numbers, weights or metrics that cannot be. Nothing in it has a dimension
that is not the model's, so no rows can travel in it.

Pure functions; the process around them is gate_worker.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, prod
from typing import Any

import numpy as np

from ...core.aggregate import WEIGHT_UNIT, whole_weight
from ...core.errors import AtollError, ProtocolError
from ...core.metrics import Mean, from_plain
from ...wire.body import opened
from ...wire.coded import compact
from ...wire.plain import Message
from ...wire.values import VALUES, Part, Said, Values, reason
from .reading import Array, Reading, Tick
from .want import Want

_FINE = 2.0**39  # the most that one contribution may put into the second limb of a wide sum
_ROUNDED = 1 + 2.0**-20  # of an update whose numbers were rounded to float32 once it was clipped
_HELD = {  # what an answer of each form holds
    "raw": "replies",
    "gather": "replies",
    "sum": "parts",
    "buckets": "parts",
    "sites": "sites",
    "notes": "notes",
}
_SLACK = 1 + 2.0**-40  # of a product in floats


def examine(want: Want, message: Message, tick: Tick = lambda: None) -> tuple[Values, dict[str, Array]]:
    """The answer's plain values and flat arrays. Raises ProtocolError with the reason, without values.

    `tick` is called now and then while numbers are read.
    """
    said = message.arrays.get(VALUES)
    if isinstance(said, np.ndarray) and said.size > want.text:
        raise ProtocolError(f"its plain values take more than {want.text} bytes")
    values, arrays = opened(message, want.values)
    head = {"run": want.run, "request": want.request, "form": values.form}
    if dict(message.head) != head:
        raise ProtocolError(f"it belongs to another run or request than {want.run!r}, {want.request}")
    if values.form not in ("none", want.form):
        raise ProtocolError(f"it is of the form {values.form!r}: expected {want.form!r}")
    _clients(want, values)
    _leaves(want, values)
    reading = Reading(arrays, want.limit, tick)
    for i, reply in enumerate(values.replies):
        _reply(want, i, reply, values.tables, reading)
    for k, part in enumerate(values.parts):
        _part(want, k, part, values, reading)
    for client, found in values.sites:
        _metrics(want, found, f"client {client}", bare=False)
    reading.done()
    return values, arrays


def _clients(want: Want, values: Values) -> None:
    """Everybody in it was asked, is in it once, and did not fail as well."""
    named = [*values.clients, *(client for client, _ in values.failed)]
    if not set(named) <= set(want.clients):
        raise ProtocolError("it speaks for clients that were not asked")
    if len(set(named)) != len(named):
        raise ProtocolError("it names a client twice")
    if any(reason(text) != text for _, text in values.failed):
        raise ProtocolError("a reason of failure is too long or has control characters")
    if not 0 <= values.sent <= 4 * len(want.clients) * (want.size + (1 << 20)):
        raise ProtocolError("so many bytes as it says cannot have been sent")
    held = {"replies": values.replies, "parts": values.parts, "sites": values.sites, "notes": values.notes}
    own = _HELD.get(values.form, "")
    fits = not any(found for name, found in held.items() if name != own)
    spoken: list[int] | None = []
    match own:
        case "replies":
            spoken = [said.client for said in values.replies]
            if want.together and len(spoken) == 1 and spoken[0] in values.clients:
                spoken = values.clients
        case "sites" | "notes":
            spoken = [client for client, _ in (*values.sites, *values.notes)]
        case "parts":
            spoken = None  # by an edge's sum nobody can tell
            places = [part.place for part in values.parts]
            known = range(len(want.buckets)) if values.form == "buckets" else range(1)
            fits = fits and 0 < len(set(places)) == len(places) and set(places) <= set(known)
    if not fits or (spoken is not None and sorted(spoken) != sorted(values.clients)):
        raise ProtocolError(f"what it holds is not what the form {values.form!r} does")


def _leaves(want: Want, values: Values) -> None:
    """Every update, and every sum, has the model's leaves in the model's order."""
    named = [(name, list(shape)) for name, shape in want.leaves]
    leaves = [(name, list(shape)) for name, shape in values.leaves]
    if leaves != named and (values.leaves or values.parts or values.replies):
        raise ProtocolError(f"its leaves are not the model's: {_other(leaves, named)}")
    if not set(values.tables) <= set(want.tables):
        raise ProtocolError("it has sparse rows of a leaf that this round does not sum")


def _other(got: Sequence[tuple[str, list[int]]], model: Sequence[tuple[str, list[int]]]) -> str:
    """The first leaf of either side that the other lacks in that shape."""
    sides = ((got, model), (model, got))
    first = [next((f"{n[:40]!r} {shape}" for n, shape in a if (n, shape) not in b), "none") for a, b in sides]
    return f"expected {first[1]}, got {first[0]}"


def _reply(want: Want, i: int, said: Said, tables: Sequence[str], reading: Reading) -> None:
    """One client's own update."""
    whose = f"client {said.client}"
    if not (isfinite(said.weight) and 0 <= said.weight <= want.max_weight):
        raise ProtocolError(f"{whose}'s weight is not a number from 0 to {want.max_weight:g}")
    if said.bits != want.bits:
        raise ProtocolError(f"{whose}'s update is in a ring of {said.bits} bits: expected {want.bits}")
    _metrics(want, said.metrics, whose)
    scale = whole_weight(said.weight, want.max_weight) * WEIGHT_UNIT
    buffer = reading.take(str(i))
    if want.bits:
        reading.ring(buffer, want.numbers, want.bits, whose)
        return
    if compact(buffer):
        buffer = reading.unpacked(buffer, want.numbers, whose)
    if buffer.dtype.str not in want.dtypes or buffer.shape != (want.numbers,):
        raise ProtocolError(
            f"{whose}'s update is not {want.numbers} numbers of the type {' or '.join(want.dtypes)}"
        )
    start = 0
    for j, (name, shape) in enumerate(want.leaves):
        leaf = buffer[start : start + prod(shape)]
        start += len(leaf)
        unit = None if want.exponents is None else float(np.exp2(want.exponents[j]))
        reading.real(leaf, unit, scale, f"{whose}'s leaf {name!r}")
    if want.norm is not None and not reading.length(buffer) <= want.norm * _ROUNDED:
        raise ProtocolError(f"{whose}'s update is longer than {want.norm:g}, to which it should be clipped")
    for t, name in enumerate(tables):
        if reading.has(f"{i}.ids.{t}"):
            what = f"{whose}'s rows of {name!r}"
            values = reading.rows(f"{i}.ids.{t}", f"{i}.rows.{t}", want.tables[name], what)
            unit = float(np.exp2(want.tables[name].exponent))
            reading.real(values.reshape(-1), unit, scale, what)


def _part(want: Want, k: int, part: Part, values: Values, reading: Reading) -> None:
    """An edge's sum over some of its clients."""
    clients = len(values.clients)
    if values.form == "buckets":
        clients = min(clients, want.buckets[part.place])
    whole, units = part.weight
    weight = (whole << 32) + units
    if not (whole >= 0 and 0 <= units < 1 << 32):
        raise ProtocolError("the weight of its sum is not a number of at least 0")
    if weight > clients * whole_weight(want.max_weight, want.max_weight):
        raise ProtocolError(f"its sum weighs more than {clients} clients may, {want.max_weight:g} each")
    if not (0 <= part.count <= clients and part.count <= weight and (part.count > 0) == (weight > 0)):
        raise ProtocolError(f"its sum counts more or fewer contributions than {clients} clients can make")
    if part.bits != want.bits or part.limbs != want.limbs:
        raise ProtocolError("its sum is in another ring or precision than this round's")
    _metrics(want, part.metrics, "its sum", clients, bare=False)
    bound = want.limit * weight * WEIGHT_UNIT * _SLACK
    for limb in range(want.limbs):
        most = _FINE * part.count if limb else bound
        for j, (name, shape) in enumerate(want.leaves):
            what = f"its sum of leaf {name!r}"
            reading.packed(reading.take(f"{k}.{limb}.{j}"), prod(shape), most, want.bits, what)
    _rows(want, k, part, values.tables, bound, reading)


def _rows(want: Want, k: int, part: Part, tables: Sequence[str], bound: float, reading: Reading) -> None:
    """The sparse rows of a sum."""
    if len({t for t, _ in part.widths}) != len(part.widths):
        raise ProtocolError("its sum has a sparse table twice")
    for t, width in part.widths:
        if not 0 <= t < len(tables) or width != want.tables[tables[t]].width:
            raise ProtocolError("its sum has a sparse table of another width than the model's")
        what = f"its sum of rows of {tables[t]!r}"
        ids = reading.ids(f"{k}.ids.{t}", want.tables[tables[t]], what)
        reading.packed(reading.take(f"{k}.rows.{t}"), len(ids) * width, bound, None, what)


def _metrics(
    want: Want, found: Mapping[str, Any], whose: str, clients: int = 1, *, bare: bool = True
) -> None:
    """Few, with names that can be shown, each of a known kind and of a weight that can be.

    `bare`: whether they may be numbers that their client's weight will weigh.
    """
    if len(found) > want.metrics:
        raise ProtocolError(f"{whose} has {len(found)} metrics: expected at most {want.metrics}")
    for name, plain in found.items():
        if not name.isprintable():
            raise ProtocolError(f"{whose} has a metric whose name has control characters")
        if bare and type(plain) is float:  # finite: `opened` has looked
            continue
        try:
            metric = from_plain(plain)
        except AtollError:  # its message may quote values
            raise ProtocolError(f"{whose}'s metric {name[:40]!r} is not one that merges") from None
        if want.kinds is not None and metric.kind not in want.kinds:
            raise ProtocolError(f"{whose}'s metric {name[:40]!r} is a {metric.kind}: expected {want.kinds}")
        if isinstance(metric, Mean) and metric.mass > clients * int(want.rows * 2.0**48):
            raise ProtocolError(f"{whose}'s metric {name[:40]!r} weighs more than all rows can")
