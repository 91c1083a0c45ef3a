"""Exchange, promise, codec, rule, topology, in every combination: legal ones train, others are refused.

    python -m tests.worlds.product [FIRST [STEP]]      all of them, or every STEP-th from FIRST on

Each job is two rounds of sixteen clients in the deterministic world. `legal` is said here from what the parts
are for, and not read off them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np

import atoll as at
from atoll.core.errors import AtollError, CompositionError, ConfigError
from atoll.core.transform import chain
from atoll.job import Tree
from tests.exact.quadratic import Bowl, Quadratic, Sites

CLIENTS, F = 16, 0.12
SITES = Sites(
    [Bowl(np.ones(4), np.array([1.0, -2.0, 3.0, 4.0]) * (1 + k / 50), rows=4) for k in range(CLIENTS)]
)
EXCHANGES: Mapping[str, Callable[[], Any]] = {
    "plain": at.plain_sum,
    "secure": lambda: at.secure_sum(largest=64.0),
}
PROMISES: Mapping[str, Mapping[str, Any] | None] = {
    "none": None,
    "clip": {"clip": 1.0},
    "noise": {"epsilon": 50.0, "delta": 1e-3, "clip": 1.0},
    "adapt": {"epsilon": 50.0, "delta": 1e-3, "clip": 1.0, "adapt": 0.5},
    "local": {"epsilon": 50.0, "delta": 1e-3, "clip": 1.0, "noise": "local"},
}
CODECS: Mapping[str, Any] = {
    "none": None,
    "int8": at.int8(),
    "int4": at.int4(),
    "int2": at.int2(),
    "sign": at.sign(),
    "topk": at.topk(0.5),
    "randomk": at.randomk(0.5),
    "rotate, int8": chain(at.rotate(), at.int8()),
    "thin": "down",
}
RULES: Mapping[str, Any] = {
    "mean": None,
    "buffers": at.fedbuff(size=8),
    "median": at.median(),
    "trimmed mean": at.trimmed_mean(F),
    "krum": at.krum(F),
    "multi-krum": at.multi_krum(F),
    "geometric median": at.geometric_median(),
    "centred clipping": at.centred_clipping(),
    "norm bound": at.norm_bound(),
    "nnm": at.nnm(F, at.trimmed_mean(F)),
    "recommended": at.recommended(F),
    "fltrust": at.fltrust(0),
}
WHOLE = ("mean", "buffers", "fltrust")  # without buckets
BUCKETS = {"each": None, "buckets": 8}
TOPOLOGIES: Mapping[str, Any] = {"flat": None, "tree": Tree((2,))}


class Case(NamedTuple):
    """One of each."""

    exchange: str
    promise: str
    codec: str
    rule: str
    seen: str
    topology: str


def cases() -> Iterator[Case]:
    """All, in order; a mean has no buckets, nor has a buffer's, and a root none of its own among them."""
    for case in map(Case._make, product(EXCHANGES, PROMISES, CODECS, RULES, BUCKETS, TOPOLOGIES)):
        if case.seen == "each" or case.rule not in WHOLE:
            yield case


def legal(case: Case) -> bool:
    """Who needs to see each update cannot where sums are secure; noise that is added to a sum, or under its
    masks, covers that sum, or with masks each bucket's; whoever adds noise to its own update is not masked.
    Buffers without rounds are summed like any, in the open or not, and a promise about them is that each sum
    has its noise under its masks, and one clip.
    """
    if case.rule == "buffers":
        return case.promise in ("none", "clip") or (case.exchange == "secure" and case.promise == "noise")
    each = case.rule != "mean" and case.seen == "each"
    if case.exchange == "secure":
        return not each and case.promise != "local"
    return case.promise not in ("noise", "adapt") or case.rule == "mean"


def job(case: Case) -> at.Job:
    """The job, as users write it. Raises what a refused one raises."""
    algorithm = RULES["buffers"] if case.rule == "buffers" else at.fedavg(weigh="equal")
    if case.rule not in ("mean", "buffers"):
        algorithm = at.robust(RULES[case.rule], buckets=BUCKETS[case.seen])
    codec = CODECS[case.codec]
    if codec is not None:
        parts = {"up": at.int8(), "down": at.thin(0.5)} if codec == "down" else {"up": codec}
        algorithm = at.small(algorithm, **parts)
    promise = PROMISES[case.promise]
    if case.promise == "clip":
        assert promise is not None
        bounded = at.clip(promise["clip"])
        algorithm = at.Algorithm(
            "bounded",
            chain(algorithm.chain, bounded),
            rule=algorithm.rule,
            weigh="equal",
            wrap=algorithm.wrap,
            protocol=algorithm.protocol,
        )
    learner = Quadratic(lr=0.05, names=("w",), size=4)
    topology = {} if case.topology == "flat" else {"topology": TOPOLOGIES[case.topology]}
    made = at.Job(
        learner,
        algorithm,
        rounds=2,
        every=2,
        sites=False,
        cohort=at.everyone(),
        exchange=EXCHANGES[case.exchange](),
        **topology,
    )
    if promise is not None and "epsilon" in promise:
        made = made.private(**promise)
    _ = made.trained
    return made


def wrong(case: Case) -> str:
    """What is wrong with a case, "" for nothing."""
    try:
        made = job(case)
    except (CompositionError, ConfigError) as error:
        if legal(case):
            return f"refused: {error}"
        return "" if ": " in str(error) or ", and" in str(error) else f"refused without a remedy: {error}"
    if not legal(case):
        return "accepted"
    try:
        run = at.simulate(made, SITES, seed=3)
    except AtollError as error:
        return f"ended by {type(error).__name__}: {error}"
    failed = [record["failed"] for record in run.history if record.get("failed")]
    if failed:
        return f"failed: {failed[0]}"
    w = run.params["w"]
    if not (np.isfinite(w).all() and np.abs(w).max() > 0):
        return f"trained to {w}"
    chance = case.promise in ("noise", "adapt") or case.seen == "buckets"
    drawn = case.exchange == "secure" and chance  # by the members' entropy, and not by the seed
    if case.topology == "tree" and not drawn:
        flat = job(case._replace(topology="flat"))
        if at.simulate(flat, SITES, seed=3).params != run.params:
            return "another model than without edges"
    return ""


def main(words: list[str]) -> int:
    """Play them and say what is wrong."""
    first, step = (int(word) for word in (*words, "0", "1")[:2]) if words else (0, 1)
    found = 0
    asked = list(cases())[first::step]
    for case in asked:
        if why := wrong(case):
            found += 1
            sys.stdout.write(f"{', '.join((*case, why))}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(asked)} cases, {sum(map(legal, asked))} legal, {found} wrong\n")
    return found > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
