"""Any algorithm with small updates, small downloads, or both: the parts put where they belong."""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import CompositionError
from ..core.registry import part
from ..core.transform import Transform, chain
from .algorithm import Algorithm, fedavg
from .quantise import int2


@part("algorithm")
def small(
    of: Algorithm | None = None, up: Transform | None = None, down: Transform | None = None
) -> Algorithm:
    """The algorithm `of`, fedavg by default, with compact updates.

    `up`: what makes them so, int2() by default; it comes after all that a client does to its update, and
    before a clip or a ring, whose promises it would break. `down`: what makes the model's steps small, as
    thin() does; it comes last on the server. Raises CompositionError where a part fits neither place.
    """
    inner, up = of or fedavg(), up or int2()
    steps = inner.chain.steps
    if inner.protocol is not None and inner.protocol.client is not None:
        raise CompositionError(
            f"clients of {inner.name} send each other models, not updates, and {up} makes updates small"
        )
    foreign = next((t for t in steps if t.adds and t.silent), None)
    if foreign is not None:
        raise CompositionError(
            f"{inner.name} appends a number to each update while it trains, and {up} would round it:"
            " leave out one of them"
        )
    ends = (i for i, t in enumerate(steps) if t.adds or t.sets_bound is not None or t.gives == "ring")
    last = next(ends, len(steps))
    before = () if down is None else (down,)
    values = {**inner.values, "up": str(up), **({} if down is None else {"down": str(down)})}
    whole = chain(*before, *steps[:last], up, *steps[last:])
    return replace(inner, name=f"small {inner.name}", chain=whole, values=values)
