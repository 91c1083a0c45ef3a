"""Suspects between rounds: what a round adds to the records, and who is left out of the next one.

    total ─► witnessed: judge what the rule looked at, and who was refused ─► Progress.records
    Progress.records ─► aside: the worst of them, no more than the rule withstands ─► choose

Which clients lie is told by detect.py. Records stand in the run's progress: they are in its checkpoints, and
a run that is cut off goes on with the very same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from . import detect
from .detect import Evidence, Looked, Record
from .failure import NOT_LET_IN
from .rules.rule import Rule, withstood
from .select import Cohort

NOBODY = np.empty(0)


def witnessed(records: Mapping[int, Record], looked: Looked, clients: Sequence[int]) -> Mapping[int, Record]:
    """The records after a round: what the rule saw, and who of the `clients` sent what never came before it.

    Of few updates none stands out.
    """
    peers = looked.stack.peers
    gone = sorted(set(clients).difference(peers, looked.silent))
    if len(peers) < detect.LEAST:
        return _judged(records, gone)
    return detect.judge(records, peers, detect.look(looked.stack, looked.answer, gone))


def refused(records: Mapping[int, Record], failed: Mapping[int, str]) -> Mapping[int, Record]:
    """The records after a round: it tells against a client that its answer was not let in."""
    return _judged(records, sorted(c for c, why in failed.items() if NOT_LET_IN in why))


def _judged(records: Mapping[int, Record], gone: Sequence[int]) -> Mapping[int, Record]:
    return detect.judge(records, (), Evidence(NOBODY, NOBODY, NOBODY, 0.0, tuple(gone)))


def aside(
    rule: Rule | None, records: Mapping[int, Record], clients: Sequence[int], cohort: Cohort
) -> tuple[int, ...]:
    """Who of the `clients` is left out of a round, by id; nobody without a rule.

    The worst suspects come first. Never more than the rule withstands, nor so many that a round would be too
    small for rule or cohort, nor a client that the rule must hear.
    """
    if rule is None:
        return ()
    named = [c for c in detect.suspects(records) if c not in rule.knows]
    named.sort(key=lambda c: (-records[c].score, c))
    named = named[: withstood(rule, len(clients))]
    while named and not _enough(rule, cohort, len(clients) - len(named)):
        named.pop()
    return tuple(sorted(named))


def _enough(rule: Rule, cohort: Cohort, clients: int) -> bool:
    """Whether a round that is drawn from so many clients is one that the rule can do with."""
    size = getattr(cohort, "size", int)
    try:
        asked: int = size(clients)
    except ConfigError:
        return False
    return asked >= max(1, rule.least(asked))


def told(records: Mapping[int, Record], cohort: Sequence[int], out: Sequence[int]) -> dict[str, Any]:
    """What a round's record says: `scores` of whoever was in it or left out, who is suspect by now."""
    if not records:
        return {}
    scores = {c: round(records[c].score, 4) for c in sorted({*cohort, *out}) if c in records}
    return {"scores": scores, "suspects": list(detect.suspects(records)), "aside": list(out)}
