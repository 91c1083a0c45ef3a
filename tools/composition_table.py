"""Writes docs/reference/composition.md: which transforms, rules and exchanges fit together.

    python -m tools.composition_table

The page follows from what the parts declare (core/compose.py); a test compares it with the
committed one and runs every pair it allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.aggregate import Sum
from atoll.core.compose import check
from atoll.core.errors import CompositionError
from atoll.core.transform import Transform, chain
from atoll.learn.algorithm import Algorithm
from atoll.learn.buffered import fedasync, fedbuff
from atoll.learn.compress import randomk, sign, topk
from atoll.learn.cyclic import cyclic
from atoll.learn.defend import momentum
from atoll.learn.feddyn import settle
from atoll.learn.fednova import nova
from atoll.learn.gossip import gossip
from atoll.learn.hierarchical import hierarchical
from atoll.learn.personal import stay
from atoll.learn.quantise import int2, int8
from atoll.learn.ring import ring
from atoll.learn.robust import Buckets, Gather
from atoll.learn.rotate import rotate
from atoll.learn.secure import secure_sum
from atoll.learn.server import adam, mean, sgd
from atoll.learn.thin import thin
from atoll.privacy import dp
from atoll.privacy.dp import clip, gaussian

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "composition.md"
PARTS: Sequence[tuple[Transform, str]] = (
    (adam(), "Adam on the server; adagrad and yogi are like it"),
    (sgd(lr=1.0, momentum=0.9), "SGD with momentum on the server"),
    (settle(0.1), "FedDyn's step on the server"),
    (thin(0.5), "moves only some of the model's numbers a round, those that want to move most"),
    (mean(), "divides the sum by the total weight"),
    (nova(), "FedNova: per local step at the client, times the mean number of steps on the server"),
    (stay(), "leaves that never leave their client"),
    (rotate(), "a random rotation of each leaf, undone on the sum"),
    (topk(0.1), "the largest entries, with error feedback"),
    (randomk(0.5), "entries drawn for all clients alike, with error feedback"),
    (sign(), "signs, with error feedback"),
    (int8(), "eight bits a number, right in the mean; int4 is like it"),
    (int2(), "two bits a number, right in the mean"),
    (momentum(0.9), "a running mean of a client's updates, kept by it"),
    (clip(1.0), "bounds the L2 norm of an update"),
    (ring(32), "fixed point modulo 2**32, for masks and exact sums"),
)
RULES: Mapping[str, Any] = {
    "`Sum()`": Sum(),
    "`Gather(rule)`": Gather(lambda U: np.median(U, axis=0)),
    "`Buckets(k, rule)`": Buckets(2, lambda U: np.median(U, axis=0)),
}
OWN: Mapping[str, Algorithm] = {
    "`fedbuff()`": fedbuff(),
    "`fedasync()`": fedasync(),
    "`hierarchical()`": hierarchical(),
    "`hierarchical(asynchronous=True)`": hierarchical(asynchronous=True),
    "`cyclic()`": cyclic(),
    "`gossip()`": gossip(),
}

HEAD = """\
# What combines with what

<!-- written by tools/composition_table.py: change the parts' declarations, not this page -->

A chain reads from the model (left) to the wire (right). Going out a client runs it left to right; coming back
the server runs it right to left, once, on the aggregate. Each part declares what it does to the numbers, and
a job with an order that breaks a declaration is refused before anything runs, with the order that works. This
page is made from the same declarations.

## Parts

| part | what it does |
|---|---|
"""
PAIRS = """
## Pairs

The row stands left of the column. A tick means that the pair runs; where neither part divides the sum, a
`mean()` stands where it serves both. A number names the reason of the refusal below.

"""
NOISY = """
## With noise

Where each part may stand in a private chain: `mean(share=0.1)`, `clip(1)`, `gaussian(1)`, and every client
weighs the same. Error feedback adds what it kept back, and rounding may lengthen: both stand before the clip,
which bounds all that leaves the client. Where single rows are hidden the learner has clipped them, and
nothing may change their sum afterwards.

"""
PLACES = ("left of the mean", "before the clip", "between clip and noise", "nearest the wire")
SUMMED = """
## Under a secure sum

What runs with `exchange = "secure_sum"`: each part beside a mean, and in each place beside noise, which the
clients then add. Compact updates stay what they are in the sum, but under masks they travel as whole
numbers, all of them; behind `randomk` only those at the places that all clients drew.

| part | with a mean | beside noise |
|---|---|---|
"""
ROUNDS = """
## Algorithms with rounds of their own

Whether they run under a secure sum, and there beside noise of the clients. For a buffer updates wait at their
clients until enough are ready; then one sum is made of them. Beside noise the cohort is `everyone()`, and the
clip does not follow the updates.

| algorithm | with a secure sum | beside noise |
|---|---|---|
"""
RULED = """
## Rules and exchanges

Whether an aggregator works where the exchange shows each update or, as under secure summation, only their
sum; and whether a chain that ends in a `ring` may feed it.

| aggregator | shows each update | shows only the sum | after `ring` |
|---|---|---|---|
"""


def pair(left: Transform, right: Transform) -> list[Transform]:
    """Both, with a mean where it serves them."""
    both = [left, right]
    if not any(part.averages for part in both):
        both.insert(2 if right.on_mean else 1 if left.on_mean else 0, mean())
    return both


def table(parts: Sequence[Transform]) -> list[tuple[str, str, str]]:
    """For every ordered pair (left, right) of different parts: "yes", or why it is refused."""
    return [(str(a), str(b), _pair(a, b)) for a in parts for b in parts if a is not b]


def _pair(left: Transform, right: Transform) -> str:
    try:
        check(chain(*pair(left, right)))
    except CompositionError as error:
        return str(error)
    return "yes"


def page() -> str:
    """The whole page."""
    parts = "".join(f"| `{part}` | {what} |\n" for part, what in PARTS)
    return (
        HEAD
        + parts
        + PAIRS
        + _pairs()
        + NOISY
        + _noisy()
        + SUMMED
        + _summed()
        + ROUNDS
        + _own()
        + RULED
        + _rules()
    )


def private(part: Transform, place: int) -> Transform:
    """The private chain with one part more, at that place of PLACES."""
    steps = [mean(share=0.1), clip(1.0), gaussian(1.0)]
    return chain(*steps[:place], part, *steps[place:])


def judged(part: Transform, place: int) -> str:
    """Whether it runs: a tick, or why not."""
    try:
        Algorithm("private", private(part, place), weigh="equal")
    except CompositionError as error:
        return str(error)
    return "✓"


def summed(algorithm: Transform) -> str:
    """Whether a chain runs under a secure sum: a tick, or why not."""
    try:
        Algorithm("summed", algorithm, weigh="equal", exchange=secure_sum())
    except CompositionError as error:
        return str(error)
    return "✓"


def _own() -> str:
    lines = ""
    for name, algorithm in OWN.items():
        verdicts = []
        for noise in (False, True):
            try:
                made = replace(algorithm, exchange=secure_sum())
                chained = dp.private(made.chain, 1.0, 1.0, mean(over=10)) if noise else made.chain
                replace(made, chain=chained, weigh="equal")
                verdicts.append("✓")
            except CompositionError as error:
                verdicts.append("–" if noise else str(error))
        lines += f"| {name} | {' | '.join(verdicts)} |\n"
    return lines


def _summed() -> str:
    lines = ""
    for part, _ in PARTS:
        alone = [part] if part.averages else [mean(), part] if not part.on_mean else [part, mean()]
        places = [p for p in range(len(PLACES)) if judged(part, p) == "✓"]
        noisy = all(summed(private(part, p)) == "✓" for p in places)
        beside = (
            "–" if not places else "✓ wherever it may stand" if noisy else summed(private(part, places[0]))
        )
        lines += f"| `{part}` | {summed(chain(*alone))} | {beside} |\n"
    return lines


def _noisy() -> str:
    found = {(str(part), place): judged(part, place) for part, _ in PARTS for place in range(len(PLACES))}
    reasons = list(dict.fromkeys(v for v in found.values() if v != "✓"))
    lines = [f"| | {' | '.join(PLACES)} |", "|---" * (len(PLACES) + 1) + "|"]
    for part, _ in PARTS:
        verdicts = [found[str(part), place] for place in range(len(PLACES))]
        cells = [v if v == "✓" else str(reasons.index(v) + 1) for v in verdicts]
        lines.append(f"| `{part}` | {' | '.join(cells)} |")
    lines += ["", *(f"{n}. {reason}" for n, reason in enumerate(reasons, 1))]
    return "\n".join(lines) + "\n"


def _pairs() -> str:
    names = [str(part) for part, _ in PARTS]
    found = {(left, right): verdict for left, right, verdict in table([part for part, _ in PARTS])}
    reasons = list(dict.fromkeys(v for v in found.values() if v != "yes"))

    def cell(left: str, right: str) -> str:
        verdict = found.get((left, right), "")  # nothing stands beside itself
        return "✓" if verdict == "yes" else str(reasons.index(verdict) + 1) if verdict else ""

    lines = ["| | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| `{a}` | " + " | ".join(cell(a, b) for b in names) + " |" for a in names]
    lines += ["", *(f"{n}. {reason}" for n, reason in enumerate(reasons, 1))]
    return "\n".join(lines) + "\n"


def _rules() -> str:
    lines = ""
    for name, rule in RULES.items():
        verdicts = [
            _verdict(chain(mean()), rule, "each"),
            _verdict(chain(mean()), rule, "sum"),
            _verdict(chain(mean(), ring(32)), rule, "each"),
        ]
        lines += f"| {name} | " + " | ".join(verdicts) + " |\n"
    return lines


def _verdict(algorithm: Transform, rule: Any, shows: Any) -> str:
    try:
        check(algorithm, rule.sees, shows, rings=rule.rings)
    except CompositionError as error:
        return str(error)
    return "✓"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
