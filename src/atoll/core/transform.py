"""Transform: a two-sided step that an update takes out to the wire, and its total takes back.

    init(params) -> state
    out(update, state, ctx)  -> (update, state)    at the contributor, left to right
    back(total, state, ctx)  -> (total, state)     once, on the aggregate, right to left

In a chain left is nearest the model and right nearest the wire: `chain(adam(), mean(), clip(1.0))`
clips at the client; the server then divides the sum and takes the Adam step. A transform
declares what it does to ranges and sums, and `compose.check` refuses orders that break it.

Laws (tests/laws/test_transform.py): `chain(chain(a, b), c) == chain(a, b, c)`; `chain()` is
neutral; state goes in and comes out, nothing is kept inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from .errors import MisuseError
from .rng import Rng
from .update import Update

State: TypeAlias = Any
Domain: TypeAlias = Literal["real", "ring"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a transform may know of the round.

    `weight`: of this contribution going out, of all of them together coming back.
    `count`: contributors, 1 going out. `population`: clients of the job, sampled or not.
    `steps`: local optimiser steps of this contribution. `key`: a random stream of this place.
    `own`: coming back, whether nobody else holds the total's numbers, so that they may be overwritten.
    """

    key: Rng
    round: int = 0
    weight: float = 1.0
    count: int = 1
    population: int = 1
    steps: int = 1
    own: bool = False


Step: TypeAlias = Callable[[Update, State, Context], tuple[Update, State]]


def _pass(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
    return update, state


def _stateless(params: Update) -> State:
    return None


@dataclass(frozen=True)
class Transform:
    """One two-sided step, or a chain of them in `parts`; make it with `transform` or `chain`.

    `takes`, `gives`: the domain of the numbers going out. `sets_bound`: after it the L2 norm of
    an update is at most this. `needs_bound`: somebody to its left must have set one.
    `loses_bound`: it may add again what a bound removed. `averages`: coming back it turns the
    sum into the model's change. `on_mean`: coming back it needs that change, not the sum.
    `whole`: it looks at all leaves together (a norm, the largest of them), so nobody to its left
    may append one. `adds`: one-number leaves it appends going out and removes coming back, with their largest
    magnitude. `drops`: names of leaves it keeps at the client, and fills with zeros coming back.
    `keeps`: the side that holds its state.
    """

    name: str
    out: Step = _pass
    back: Step = _pass
    init: Callable[[Update], State] = _stateless
    takes: Domain = "real"
    gives: Domain = "real"
    sets_bound: float | None = None
    needs_bound: bool = False
    loses_bound: bool = False
    whole: bool = False
    averages: bool = False
    on_mean: bool = False
    adds: Mapping[str, float] = field(default_factory=dict)
    drops: Callable[[str], bool] | None = None
    keeps: Literal["out", "back", "none"] = "none"
    parts: tuple[Transform, ...] = ()

    @property
    def steps(self) -> tuple[Transform, ...]:
        """Its parts in order; a single transform is its own only part."""
        return self.parts if self.name == "chain" else (self,)

    @property
    def silent(self) -> bool:
        """Whether contributions leave as they are: every part acts on the way back only."""
        return all(t.out is _pass for t in self.steps)

    def outgoing(self, params: Update) -> Update:
        """`params` with the leaves an update has when it leaves: some dropped, some appended."""
        for t in self.steps:
            if t.drops is not None:
                params = params.pick(lambda name, drops=t.drops: not drops(name))  # type: ignore[misc]
            if t.adds:
                params = params.join(Update.of({name: np.zeros(1, params.buffer.dtype) for name in t.adds}))
        return params

    def start(self, params: Update, side: Literal["out", "back"]) -> State:
        """The first state of one side, None where nothing is kept there; for a chain, one a part.

        Each part begins with the leaves that reach it, after the parts to its left.
        """
        slots = []
        for t in self.steps:
            slots.append(t.init(params) if t.keeps == side else None)
            params = t.outgoing(params)
        return tuple(slots) if self.name == "chain" else slots[0]

    def __str__(self) -> str:
        return f"chain({', '.join(map(str, self.parts))})" if self.name == "chain" else self.name


def transform(name: str, out: Step = _pass, back: Step = _pass, **declared: Any) -> Transform:
    """A transform of your own: `out`, `back`, or both, and what it declares (see Transform).

    Stateless unless `init` and `keeps` are given.
    """
    if name == "chain":
        raise MisuseError("'chain' names the composition of transforms: choose another name")
    return Transform(name, out, back, **declared)


def chain(*transforms: Transform) -> Transform:
    """Transforms in order, left nearest the model, right nearest the wire; itself a transform."""
    parts = tuple(part for t in transforms for part in t.steps)

    def out(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
        after = list(state)
        for i, part in enumerate(parts):
            update, after[i] = part.out(update, after[i], ctx)
        return update, tuple(after)

    def back(total: Update, state: State, ctx: Context) -> tuple[Update, State]:
        after = list(state)
        for i in reversed(range(len(parts))):
            if parts[i].back is not _pass:
                total, after[i] = parts[i].back(total, after[i], ctx)
                ctx = replace(ctx, own=False)  # a part may keep in its state what it gives
        return total, tuple(after)

    return _Chain("chain", out, back, parts=parts)


class _Chain(Transform):
    """A Transform equal to another with the same parts, however they were nested."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Chain) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(tuple(part.name for part in self.parts))


def only(prefix: str, inner: Transform) -> Transform:
    """`inner` for the leaves whose name starts with `prefix`; the others pass untouched.

    `inner` may not append leaves or change the domain: raises MisuseError.
    """
    if inner.adds or inner.gives != "real" or inner.name == "chain":
        raise MisuseError(f"only() takes one real transform that appends no leaf, got {inner}")

    def split(step: Step) -> Step:
        def both(update: Update, state: State, ctx: Context) -> tuple[Update, State]:
            mine, state = step(update.pick(lambda n: n.startswith(prefix)), state, ctx)
            merged = update.buffer.astype(update.buffer.dtype)
            for name in mine:
                merged[update.layout.slices[name]] = mine[name].reshape(-1)
            return Update(update.layout, merged, rows={**update.rows, **mine.rows}), state

        return both

    return replace(
        inner,
        name=f"only({prefix!r}, {inner.name})",
        out=inner.out if inner.out is _pass else split(inner.out),
        back=inner.back if inner.back is _pass else split(inner.back),
        init=lambda params: inner.init(params.pick(lambda n: n.startswith(prefix))),
        sets_bound=None,
    )
