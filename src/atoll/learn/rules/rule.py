"""What a robust rule is: n updates in, the one to use out.

A rule of one's own is a function of the whole matrix, U (n, d) float64 -> (d,). The named ones are `Rule`s:
they walk over blocks (stack.py) and say how many updates they need. Both go into `Gather`, `Buckets`,
`robust` and before one another.

`f` is how many clients may be malicious. A whole number is a count: a round with fewer updates than the
rule needs for it is refused. A number below 0.5 is a share of those who answered, rounded up as far as
their number allows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, TypeAlias

import numpy as np

from ...core.errors import ConfigError, QuorumError
from ...core.update import Array
from .stack import Stack

Own: TypeAlias = Callable[[Array], Array]


def any_number(clients: int) -> int:
    """One update is enough, whoever stands behind it."""
    return 1


@dataclass(frozen=True)
class Rule:
    """A named rule: `walk(stack) -> (d,)`. `values`: its parameters. `least(clients)`: how many updates it
    needs where so many clients stand behind them all.

    `knows`: clients whose update it must be able to tell from the others. A Rule is also a function of a
    matrix (n, d).
    """

    name: str
    walk: Callable[[Stack], Array] = field(compare=False)
    values: Mapping[str, Any] = field(default_factory=dict)
    least: Callable[[int], int] = field(default=any_number, compare=False)
    knows: tuple[int, ...] = ()

    def __call__(self, updates: Array) -> Array:
        return answer(self, Stack.of(np.asarray(updates)))

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.values.items() if v is not None)})"

    def __repr__(self) -> str:
        return str(self)

    @property
    def table(self) -> dict[str, Any]:
        """The rule as a job file names it."""
        held = {k: v.table if isinstance(v, Rule) else v for k, v in self.values.items()}
        return {"name": self.name, **{k: v for k, v in held.items() if v is not None}}


def as_rule(given: Rule | Own) -> Rule:
    """A Rule as it is, a function of one's own as a Rule of its name. ConfigError for anything else."""
    if isinstance(given, Rule):
        return given
    if not callable(given):
        raise ConfigError(f"a rule is one by name, as median(), or a function (n, d) -> (d,), got {given!r}")
    name = getattr(given, "__name__", type(given).__name__).strip("<>")
    return Rule(name, lambda stack: np.asarray(given(stack.matrix()), np.float64))


def answer(rule: Rule, stack: Stack) -> Array:
    """What the rule says of a stack: (d,). Raises QuorumError where it needs more updates."""
    least = rule.least(stack.clients)
    if stack.n < least:
        raise QuorumError(f"{rule} needs at least {least} updates and {stack.n} came: {FIX}")
    return rule.walk(stack)


FIX = "ask more clients, or assume that fewer are malicious"


def fits(rule: Rule, updates: int, clients: int) -> None:
    """Raise ConfigError where so many updates, of so many clients, are too few for a rule."""
    if updates < (least := rule.least(clients)):
        raise ConfigError(f"{rule} needs at least {least} updates a round, not {updates}: {FIX}")


def holds(rule: Rule, cohort: Collection[int]) -> None:
    """Raise ConfigError for a cohort that is too small for a rule, or lacks a client it must hear."""
    fits(rule, len(cohort), len(cohort))
    if absent := set(rule.knows).difference(cohort):
        raise ConfigError(
            f"{rule} needs client {min(absent)} in every round, and this cohort lacks it: use everyone()"
        )


def checked(f: float) -> float:
    """`f`, a count or a share below one half; ConfigError for anything else."""
    if isinstance(f, bool) or not isinstance(f, (int, float)) or not f >= 0:
        raise ConfigError(f"f is how many clients may be malicious, at least 0, got {f!r}")
    if isinstance(f, float) and not f < 0.5:
        raise ConfigError(
            "f as a share is below 0.5, since no rule withstands half of all clients;"
            f" a count is a whole number, as in f = 2. Got {f}"
        )
    return f


def surely(f: float, clients: int) -> int:
    """How many of these clients are malicious if as many are as `f` allows."""
    return floor(f * clients + 1e-9) if isinstance(f, float) else f


def malicious(f: float, stack: Stack, most: int) -> int:
    """How many updates to leave out: a share is rounded up, up to the `most` that the rule withstands."""
    up = ceil(f * stack.clients - 1e-9) if isinstance(f, float) else f
    return max(min(up, most), surely(f, stack.clients))


def withstood(rule: Rule, clients: int) -> int:
    """How many malicious ones of so many clients a rule withstands: its `f`, else fewer than half."""
    counts = [withstood(inner, clients) for inner in rule.values.values() if isinstance(inner, Rule)]
    if "f" in rule.values:
        counts.append(surely(rule.values["f"], clients))
    return min(counts, default=0 if rule.name == "average" else half(clients))


def half(n: int) -> int:
    """The most of n that are fewer than the others."""
    return (n - 1) // 2
