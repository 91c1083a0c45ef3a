"""What a member was asked, and so what its answer may hold: names, shapes, ranges, sizes.

A server derives it from the task and the round's aggregator; the gate's rules (admission.py) hold an
answer against it, and a transport may refuse an upload of more than `Want.size` bytes at once.
"""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec
import numpy as np

from ...core.aggregate import Aggregator, Sum
from ...core.edge import Task
from ...core.errors import MisuseError
from ...core.rng import Rng
from ...core.transform import Context, Transform
from ...core.update import Update
from ...learn.hierarchical import heavier
from ...learn.robust import Buckets, Gather
from ...wire.manifest import ALIGN
from ...wire.values import Form

_SUM_BITS = 62


class Table(msgspec.Struct, frozen=True):
    """A leaf sent as sparse rows: (height, width), and its binary point."""

    height: int
    width: int
    exponent: int


class Want(msgspec.Struct, frozen=True):
    """What one member was asked, and so what it may answer.

    `member`: its name, for the log. `form`: what its answer is if anybody is in it: "raw" for a
    client, "sum", "gather" or "buckets" for an edge, "sites" where the task was to evaluate, "notes" where
    it was a step of the exchange.
    `clients`: ids it was asked for. `leaves`: names and shapes of an update as it leaves the chain.
    `dtypes`: of real updates. `bits`: of the ring, None for real numbers. `exponents`: binary points of
    the leaves, None where a rule takes any finite number. `buckets`: how many of `clients` fall into
    each. `metrics`: how many one client may report; `plain`: how many plain values those may take.
    `kinds`: of metrics that may come, None for all that are known. `rows`: the largest weight of a
    metric. Weights: 0 to `max_weight`; `cohort`: everybody in the round. `together`: one raw reply may
    stand for several clients, as that of an edge which trained rounds of its own. `norm`: the longest an
    update may be (L2), None for any length.
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
    plain: int = 1 << 17
    kinds: tuple[str, ...] | None = None
    rows: float = 2.0**48
    together: bool = False
    norm: float | None = None

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
        if self.form in ("sites", "notes"):
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
    *,
    member: str,
    run: str,
    request: int,
    edge: bool = False,
    together: bool = False,
    **more: Any,
) -> Want:
    """What `member` may answer to `task`. `rule`: the round's aggregator, None to evaluate.

    `edge`: whether it answers with a partial; `together`: or with one reply for all its clients, which may
    weigh as much as they. `more`: other fields of Want, such as `bits`.
    Raises MisuseError for a rule whose partials cannot travel.
    """
    asked: dict[str, Any] = {"member": member, "run": run, "request": request, "clients": task.clients}
    if task.want != "fit":
        return Want(form="sites" if task.want == "evaluate" else "notes", leaves=(), **asked, **more)
    points = task.points
    if together and points is not None:
        points = heavier(points, len(task.clients))
        asked["together"] = True
    layout = task.params.layout if points is None else points.layout
    asked["leaves"] = tuple((name, shape) for name, shape in layout.leaves)
    if points is not None:
        asked |= {"max_weight": points.max_weight, "cohort": points.cohort, "wide": points.wide}
        if not isinstance(rule, Gather):
            asked["exponents"] = points.exponents
    form: Form = "raw"
    match rule:
        case _ if together or not edge:
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
    return Want(form=form, **asked, **more)


def ring_bits(chain: Transform) -> int | None:
    """Bits of the ring in which updates leave this chain, None where they are real numbers."""
    one = Update.of({"x": np.zeros(1, np.float32)})
    for t in chain.steps:
        if t.gives == "ring" and t.takes == "real":
            return t.out(one, t.init(one), Context(Rng.of(0)))[0].bits
    return None
