"""Which parts fit together, decided before anything runs.

Each transform declares what it does to the numbers (see Transform); reading a chain once from
left to right (out) and once from right to left (back) finds every order that breaks a promise.
The message names both parts and the order that works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .errors import CompositionError
from .transform import Domain, Transform

_WORDS = {"real": "real numbers", "ring": "integers of a ring"}


def check(
    algorithm: Transform,
    sees: Literal["sum", "each"] = "sum",
    shows: Literal["sum", "each"] = "each",
    *,
    rings: bool = True,
) -> None:
    """Refuse a chain, an aggregator and an exchange that do not fit.

    `sees`: what the aggregator needs; `shows`: what the exchange reveals of single updates;
    `rings`: whether the aggregator adds integers of a ring.
    Raises CompositionError with the order that would fit.
    """
    if sees == "each" and shows == "sum":
        raise CompositionError(
            "this rule must see each update and the exchange shows only their sum:"
            " use Buckets(k, rule), which applies the rule to sums of a few"
        )
    turns = next((part for part in algorithm.steps if part.gives == "ring"), None)
    if turns is not None and not rings:
        raise CompositionError(
            f"this rule compares real numbers and {turns} gives integers that mean nothing one by one:"
            " use Sum, or leave the ring out"
        )
    _outward(algorithm.steps)
    _inward(algorithm.steps, sees)


def _outward(parts: Sequence[Transform]) -> None:
    domain: Domain = "real"
    turned, bounded, added = None, None, None
    noisy = next((part for part in parts if part.needs_bound), None)
    for part in parts:
        if part.takes != domain:
            fix = f"put {part} before {turned}" if turned else f"put ring(...) before {part}"
            source = turned or "the learner"
            raise CompositionError(
                f"{part} takes {_WORDS[part.takes]}, {source} gives {_WORDS[domain]}: {fix}"
            )
        if part.adds and noisy is not None:
            raise CompositionError(
                f"{part} appends a number that no bound covers, so {noisy} cannot protect it:"
                " leave out one of them"
            )
        if part.whole and added is not None:
            raise CompositionError(
                f"{part} would change the number that {added} appends: put {part} before {added}"
            )
        added = part if part.adds else added
        if part.needs_bound and bounded is None:
            raise CompositionError(f"{part} adds noise to a sum nobody bounds: put clip(...) before {part}")
        if part.loses_bound and bounded is not None:
            raise CompositionError(f"{part} adds back what {bounded} removed: put {part} before {bounded}")
        noised = part.needs_bound and not part.silent  # at the client: what comes behind it needs no bound
        bounded = part if part.sets_bound is not None else None if noised else bounded
        if part.gives != domain:
            domain, turned = part.gives, part


def _inward(parts: Sequence[Transform], sees: Literal["sum", "each"]) -> None:
    averaged = None
    for part in reversed(parts):
        if part.on_mean and averaged is None:
            later = next((p for p in parts if p.averages), None)
            fix = f"put {part} before {later}" if later else f"put mean() after {part}"
            raise CompositionError(f"{part} takes a step on the mean update but gets the sum: {fix}")
        if part.averages:
            if averaged is not None:
                raise CompositionError(f"{part} and {averaged} both divide the sum: keep one")
            averaged = part
    if averaged is None:
        raise CompositionError("nobody divides the sum of the updates: add mean() to the chain")
