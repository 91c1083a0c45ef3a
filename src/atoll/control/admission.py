"""The rules by which an answer is let in: what it may say, given what was asked and of which model.

`Want` is what a member was asked; `examine` refuses an answer that does not fit it in every point:
run and request, clients, the leaves' names and shapes, types, ranges, weights, metrics. Nothing of an
answer has a dimension that is not the model's, so no rows can travel in it. Numbers are read once, a
block at a time, straight from the mapped file; the largest and the smallest of a leaf say all.

Pure functions; the process around them is control/gate_worker.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite, prod
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..core.aggregate import WEIGHT_UNIT, Aggregator, Buckets, Gather, Sum, whole_weight
from ..core.edge import Task
from ..core.errors import AtollError, MisuseError, ProtocolError
from ..core.metrics import Mean, from_plain
from ..core.update import Layout
from ..wire.body import opened
from ..wire.manifest import ALIGN, Message
from ..wire.packed import narrowest, unpack
from ..wire.values import VALUES, Form, Part, Said, Values, reason

Array: TypeAlias = NDArray[Any]
Tick: TypeAlias = Callable[[], None]

_BLOCK = 1 << 16  # numbers looked at together
_TICK = 1 << 22  # numbers between two signs of life
_SUM_BITS = 62
_FINE = 2.0**39  # the most that one contribution may put into the second limb of a wide sum
_SLACK = 1 + 2.0**-40  # of a product in floats


class Table(msgspec.Struct, frozen=True):
    """A leaf sent as sparse rows: (height, width), and its binary point."""

    height: int
    width: int
    exponent: int


class Want(msgspec.Struct, frozen=True):
    """What one member was asked, and so what it may answer.

    `member`: its name, for the log. `form`: what its answer is if anybody is in it: "raw" for a
    client, "sum", "gather" or "buckets" for an edge, "sites" where the task was to evaluate.
    `clients`: ids it was asked for. `leaves`: names and shapes of an update as it leaves the chain.
    `dtypes`: of real updates. `bits`: of the ring, None for real numbers. `exponents`: binary points of
    the leaves, None where a rule takes any finite number. `buckets`: how many of `clients` fall into
    each. `metrics`: how many one client may report; `plain`: how many plain values those may take.
    `kinds`: of metrics that may come, None for all that are known. `rows`: the largest weight of a
    metric. Weights: 0 to `max_weight`; `cohort`: everybody in the round.
    """

    member: str
    run: str
    request: int
    form: Form
    clients: tuple[int, ...]
    leaves: tuple[tuple[str, tuple[int, ...]], ...]
    dtypes: tuple[str, ...] = ("<f4", "<f8")
    bits: int | None = None
    exponents: tuple[int, ...] | None = None
    wide: bool = False
    max_weight: float = 2.0**20
    cohort: int = 1
    buckets: tuple[int, ...] = ()
    tables: dict[str, Table] = {}
    metrics: int = 64
    plain: int = 1 << 14
    kinds: tuple[str, ...] | None = None
    rows: float = 2.0**48

    @property
    def limit(self) -> float:
        """The largest whole number one contribution of weight 1 may put into the sum."""
        return 2.0**_SUM_BITS / (self.max_weight * self.cohort)

    @property
    def limbs(self) -> int:
        """int64 numbers that a sum takes for each of its numbers."""
        return 2 if self.wide and not self.bits else 1

    @property
    def numbers(self) -> int:
        """How many there are in one update."""
        return sum(prod(shape) for _, shape in self.leaves)

    @property
    def values(self) -> int:
        """The most plain values an answer may hold."""
        return 4096 + 12 * len(self.leaves) + (self.plain + 16) * len(self.clients)

    @property
    def text(self) -> int:
        """The most bytes its plain values may take."""
        return 10 * self.values + (1 << 14) * len(self.clients) + 512 * len(self.leaves)

    @property
    def size(self) -> int:
        """The most bytes its buffer may have."""
        if self.form == "sites":
            return self.text + ALIGN
        table = sum(t.height * (8 * t.width + 8) + 2 * ALIGN for t in self.tables.values())
        if self.form in ("sum", "buckets"):
            each, copies = (
                self.limbs * (8 * self.numbers + ALIGN * len(self.leaves)),
                max(len(self.buckets), 1),
            )
        else:
            widest = -(-self.bits // 8) if self.bits else max(np.dtype(d).itemsize for d in self.dtypes)
            each, copies = widest * self.numbers + ALIGN, len(self.clients)
        return self.text + ALIGN + copies * (each + table)


def want(
    task: Task,
    rule: Aggregator | None,
    leaves: Layout,
    *,
    member: str,
    run: str,
    request: int,
    edge: bool = False,
    **more: Any,
) -> Want:
    """What `member` may answer to `task`. `rule`: the round's aggregator, None to evaluate.

    `leaves`: the layout of an update as it leaves the chain. `edge`: whether it answers with a
    partial. `more`: other fields of Want. Raises MisuseError for a rule whose partials cannot travel.
    """
    named = tuple((name, shape) for name, shape in leaves.leaves)
    asked: dict[str, Any] = {"member": member, "run": run, "request": request, "clients": task.clients}
    if task.want == "evaluate":
        return Want(form="sites", leaves=named, **asked, **more)
    points = task.points
    if points is not None:
        asked |= {"max_weight": points.max_weight, "cohort": points.cohort, "wide": points.wide}
        if not isinstance(rule, Gather):
            asked["exponents"] = points.exponents
    form: Form = "raw"
    match rule:
        case _ if not edge:
            pass
        case Sum():
            form = "sum"
        case Gather():
            form = "gather"
        case Buckets():
            form = "buckets"
            places = [rule.place[c] for c in task.clients]
            asked["buckets"] = tuple(places.count(k) for k in range(rule.k))
        case _:
            raise MisuseError(
                f"partials of {type(rule).__name__} cannot travel: below edges use Sum, Gather or Buckets"
            )
    return Want(form=form, leaves=named, **asked, **more)


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
    look = _Look(arrays, want.limit, tick)
    for i, reply in enumerate(values.replies):
        _reply(want, i, reply, values.tables, look)
    for k, part in enumerate(values.parts):
        _part(want, k, part, values, look)
    for client, found in values.sites:
        _metrics(want, found, f"client {client}")
    look.done()
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
    spoken: list[int] | None = None  # by an edge's sum nobody can tell
    places = [part.place for part in values.parts]
    match values.form:
        case "raw" | "gather":
            spoken, fits = [said.client for said in values.replies], not (values.parts or values.sites)
        case "sites":
            spoken, fits = [client for client, _ in values.sites], not (values.parts or values.replies)
        case "none":
            spoken, fits = [], not (values.parts or values.replies or values.sites)
        case _:
            known = range(len(want.buckets)) if values.form == "buckets" else range(1)
            fits = 0 < len(set(places)) == len(places) and set(places) <= set(known)
            fits = fits and not (values.replies or values.sites)
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


def _reply(want: Want, i: int, said: Said, tables: Sequence[str], look: _Look) -> None:
    """One client's own update."""
    whose = f"client {said.client}"
    if not (isfinite(said.weight) and 0 <= said.weight <= want.max_weight):
        raise ProtocolError(f"{whose}'s weight is not a number from 0 to {want.max_weight:g}")
    if said.bits != want.bits:
        raise ProtocolError(f"{whose}'s update is in a ring of {said.bits} bits: expected {want.bits}")
    _metrics(want, said.metrics, whose)
    scale = whole_weight(said.weight, want.max_weight) * WEIGHT_UNIT
    buffer = look.take(str(i))
    if want.bits:
        look.ring(buffer, want.numbers, want.bits, whose)
        return
    if buffer.dtype.str not in want.dtypes or buffer.shape != (want.numbers,):
        raise ProtocolError(
            f"{whose}'s update is not {want.numbers} numbers of the type {' or '.join(want.dtypes)}"
        )
    start = 0
    for j, (name, shape) in enumerate(want.leaves):
        leaf = buffer[start : start + prod(shape)]
        start += len(leaf)
        unit = None if want.exponents is None else float(np.exp2(want.exponents[j]))
        look.real(leaf, unit, scale, f"{whose}'s leaf {name!r}")
    for t, name in enumerate(tables):
        if look.has(f"{i}.ids.{t}"):
            what = f"{whose}'s rows of {name!r}"
            values = look.rows(f"{i}.ids.{t}", f"{i}.rows.{t}", want.tables[name], what)
            unit = float(np.exp2(want.tables[name].exponent))
            look.real(values.reshape(-1), unit, scale, what)


def _part(want: Want, k: int, part: Part, values: Values, look: _Look) -> None:
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
    _metrics(want, part.metrics, "its sum", clients)
    bound = want.limit * weight * WEIGHT_UNIT * _SLACK
    for limb in range(want.limbs):
        most = _FINE * part.count if limb else bound
        for j, (name, shape) in enumerate(want.leaves):
            what = f"its sum of leaf {name!r}"
            look.packed(look.take(f"{k}.{limb}.{j}"), prod(shape), most, want.bits, what)
    _rows(want, k, part, values.tables, bound, look)


def _rows(want: Want, k: int, part: Part, tables: Sequence[str], bound: float, look: _Look) -> None:
    """The sparse rows of a sum."""
    if len({t for t, _ in part.widths}) != len(part.widths):
        raise ProtocolError("its sum has a sparse table twice")
    for t, width in part.widths:
        if not 0 <= t < len(tables) or width != want.tables[tables[t]].width:
            raise ProtocolError("its sum has a sparse table of another width than the model's")
        what = f"its sum of rows of {tables[t]!r}"
        ids = look.ids(f"{k}.ids.{t}", want.tables[tables[t]], what)
        look.packed(look.take(f"{k}.rows.{t}"), len(ids) * width, bound, None, what)


def _metrics(want: Want, found: Mapping[str, Any], whose: str, clients: int = 1) -> None:
    """Few, with names that can be shown, each of a known kind and of a weight that can be."""
    if len(found) > want.metrics:
        raise ProtocolError(f"{whose} has {len(found)} metrics: expected at most {want.metrics}")
    for name, plain in found.items():
        if not name.isprintable():
            raise ProtocolError(f"{whose} has a metric whose name has control characters")
        if type(plain) is float:  # finite: `opened` has looked
            continue
        try:
            metric = from_plain(plain)
        except AtollError:  # its message may quote values
            raise ProtocolError(f"{whose}'s metric {name[:40]!r} is not one that merges") from None
        if want.kinds is not None and metric.kind not in want.kinds:
            raise ProtocolError(f"{whose}'s metric {name[:40]!r} is a {metric.kind}: expected {want.kinds}")
        if isinstance(metric, Mean) and metric.mass > clients * int(want.rows * 2.0**48):
            raise ProtocolError(f"{whose}'s metric {name[:40]!r} weighs more than all rows can")


class _Look:
    """Reads the arrays, each once, and knows which ones nobody expected."""

    def __init__(self, arrays: Mapping[str, Array], limit: float, tick: Tick) -> None:
        self._arrays = arrays
        self._limit = limit
        self._left = set(arrays)
        self._tick = tick
        self._read = 0

    def has(self, name: str) -> bool:
        """Whether this array has come, and nobody took it yet."""
        return name in self._left

    def take(self, name: str) -> Array:
        """The array of this name. Raises ProtocolError if there is none."""
        if name not in self._left:
            raise ProtocolError("one of the model's arrays is missing in it")
        self._left.remove(name)
        return self._arrays[name]

    def done(self) -> None:
        """Raise ProtocolError if an array is left that nobody took."""
        if self._left:
            raise ProtocolError(f"it holds {len(self._left)} arrays that the model has not")

    def real(self, leaf: Array, unit: float | None, scale: float, what: str) -> None:
        """Finite, and within the range that the sum refuses to go beyond: the same test as its own."""
        low, high = self._ends(leaf)
        largest = max(high, -low)
        if not isfinite(largest):
            raise ProtocolError(f"{what} holds a NaN or an infinity")
        if unit is not None and not np.rint(largest * unit * scale) <= self._limit * scale:
            raise ProtocolError(f"{what} is beyond this round's range: its training diverged")

    def ids(self, name: str, table: Table, what: str) -> Array:
        """Ids of a table's rows, increasing."""
        ids = self.take(name)
        if ids.dtype.str != "<i8" or ids.ndim != 1:
            raise ProtocolError(f"{what}: expected ids of type <i8")
        if len(ids) and (ids[0] < 0 or ids[-1] >= table.height or (ids[1:] <= ids[:-1]).any()):
            raise ProtocolError(f"{what}: expected increasing ids below {table.height}")
        return ids

    def rows(self, ids: str, values: str, table: Table, what: str) -> Array:
        """Values of sparse rows, (k, width)."""
        k, found = len(self.ids(ids, table, what)), self.take(values)
        if found.dtype.kind != "f" or found.shape != (k, table.width):
            raise ProtocolError(f"{what}: expected rows of {table.width} real numbers")
        return found

    def ring(self, planes: Array, size: int, bits: int, what: str) -> None:
        """Packed integers of a ring: only the highest byte can be out of it."""
        if planes.dtype != np.uint8 or planes.shape != (-(-bits // 8), size):
            raise ProtocolError(f"{what}'s update is not {size} packed integers of {bits} bits")
        if bits % 8 and self._ends(planes[-1])[1] >> bits % 8:
            raise ProtocolError(f"{what}'s update has a number out of the ring of {bits} bits")

    def packed(self, planes: Array, size: int, most: float, bits: int | None, what: str) -> None:
        """Packed integers of a sum: as many bytes as they need, none larger than `most`."""
        if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != size or len(planes) > 8:
            raise ProtocolError(f"{what} is not {size} packed integers")
        low = high = 0
        for block in self._blocks(size):
            x = unpack(planes[:, block], np.uint64 if bits else np.int64)
            low, high = min(low, int(x.min())), max(high, int(x.max()))
        if narrowest(low, high, signed=not bits) != len(planes):
            raise ProtocolError(f"{what} is packed wider than it needs")
        if high >> bits if bits else max(high, -low) > most:
            raise ProtocolError(f"{what} is beyond what its clients can have added")

    def _ends(self, x: Array) -> tuple[Any, Any]:
        """The smallest and the largest number, and 0; NaN if there is one."""
        low = high = x.dtype.type(0)
        with np.errstate(invalid="ignore"):
            for block in self._blocks(len(x)):
                part = x[block]
                low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
        return low.item(), high.item()

    def _blocks(self, size: int) -> Iterator[slice]:
        for start in range(0, size, _BLOCK):
            yield slice(start, start + _BLOCK)
            self._read += _BLOCK
            if self._read >= _TICK:
                self._read = 0
                self._tick()
