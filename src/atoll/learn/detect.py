"""Who lies: what a round's updates show of each client, and what that comes to over rounds.

    look(stack, answer)          a round's evidence about each update
    judge(records, peers, seen)  the records of all clients after the round
    record.score                 0 to 1; from SUSPECT on a client is set aside
    reinstate(records, client)   an admin's word: its record begins anew

Three things tell liars from honest clients whose data are merely unlike (docs/decisions/0014):

    length   the update's norm over the round's median
    angle    its cosine with the answer of a robust rule, over the median of all such cosines
    twin     whether another update is the same but for its length: honest ones never are

No single round decides. Angles and lengths are averaged over the rounds a client took part in, the last
twenty or so of them, and a round in which honest clients agree too little says nothing about angles. All are
functions of values: what is kept about a client is five numbers, which a coordinator stores as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2

import numpy as np

from ..core.errors import MisuseError
from ..core.update import Array
from .rules.stack import Stack

SUSPECT = 0.67
ROUNDS = 3  # of evidence before anybody is suspected
MEMORY = 20  # rounds that a mean is of: whoever was honest for long may not lie for as long
LEAST = 5  # updates: of fewer no rule tells a liar from who is merely unlike (2f + 3, f = 1)
AGREE = 0.2  # median cosine below which a round's angles say nothing
LONG, SHORT = 2.0, -2.0  # log2 of the mean length at which it alone is enough
SAME = 1e-6  # of 1, for the cosine of twins


@dataclass(frozen=True, eq=False)
class Looked:
    """What a rule was given and made of it: a stack (n, d) with its peers, and the `answer` (d,).

    `silent`: clients that had nothing to contribute.
    """

    stack: Stack
    answer: Array
    silent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """A round's, one entry an update: `length` > 0 and `angle`, in units of the round's medians; `twin`.

    `agree`: the median cosine, by which angles are divided. `refused`: clients whose answer no rule takes.
    """

    length: Array
    angle: Array
    twin: Array
    agree: float
    refused: tuple[int, ...] = ()


def look(stack: Stack, answer: Array, refused: Sequence[int] = ()) -> Evidence:
    """What a round's updates show beside the answer (d,) of a robust rule."""
    norms, gram = stack.norms, stack.gram
    usual = float(np.median(norms)) or 1.0
    safe = np.where(norms > 0, norms, 1.0)
    own = float(np.sqrt(answer @ answer)) or 1.0
    cosine = stack.dot(answer) / safe / own
    alike = gram / np.outer(safe, safe)
    np.fill_diagonal(alike, -1.0)
    agree = float(np.median(cosine))
    angle = cosine / agree if agree > 0 else cosine
    return Evidence(norms / usual, angle, alike.max(axis=1) >= 1 - SAME, agree, tuple(refused))


@dataclass(frozen=True)
class Record:
    """What is known about a client: `rounds` of evidence, `angles` how many of them said something about
    angles, means of `angle` and log2 `length`, and the share of rounds in which it was a `twin` or refused.
    """

    rounds: int = 0
    angles: int = 0
    angle: float = 1.0
    length: float = 0.0
    twin: float = 0.0

    @property
    def score(self) -> float:
        """How sure it is that this client lies, in [0, 1]; 0 before there were enough rounds."""
        if self.rounds < ROUNDS:
            return 0.0
        return float(min(max(self.bent, self.odd, self.twin), 1.0))

    @property
    def bent(self) -> float:
        """How far its updates point from everybody's; 0 where too few rounds said anything of it."""
        return 1 - max(self.angle, 0.0) if self.angles >= ROUNDS else 0.0

    @property
    def odd(self) -> float:
        """How far the length of its updates is from the usual; SUSPECT where that alone is enough."""
        return SUSPECT * max(self.length / LONG, self.length / SHORT)

    @property
    def suspect(self) -> bool:
        """Whether it is set aside."""
        return self.score >= SUSPECT


def judge(records: Mapping[int, Record], peers: Sequence[int], seen: Evidence) -> dict[int, Record]:
    """The records after a round: each of `peers`, in the order of the evidence, learns a little more."""
    if len(peers) != len(seen.length):
        raise MisuseError(f"expected evidence about {len(peers)} clients, got {len(seen.length)}")
    after = dict(records)
    for i, peer in enumerate(peers):
        old = after.get(peer, Record())
        new = _mean(old, twin=float(seen.twin[i]), length=log2(min(max(float(seen.length[i]), 1e-9), 1e9)))
        if seen.agree >= AGREE:
            angle = _moved(old.angle, old.angles, float(np.clip(seen.angle[i], -1, 2)))
            new = replace(new, angles=old.angles + 1, angle=angle)
        after[peer] = new
    for peer in seen.refused:
        after[peer] = _mean(after.get(peer, Record()), twin=1.0, length=0.0)
    return after


def _mean(old: Record, *, twin: float, length: float) -> Record:
    n = old.rounds
    return replace(old, rounds=n + 1, twin=_moved(old.twin, n, twin), length=_moved(old.length, n, length))


def _moved(mean: float, rounds: int, value: float) -> float:
    """The mean of so many rounds with one more; of MEMORY rounds at most, older ones fade."""
    n = min(rounds, MEMORY - 1)
    return (mean * n + value) / (n + 1)


def suspects(records: Mapping[int, Record]) -> tuple[int, ...]:
    """Who is set aside, by id."""
    return tuple(sorted(peer for peer, record in records.items() if record.suspect))


def why(record: Record) -> str:
    """What stands out most in a client's record, in words that say nothing of other clients' updates."""
    longer = record.length > 0
    told = {
        "its updates pointed elsewhere than those of most clients": record.bent,
        f"its updates were much {'longer' if longer else 'shorter'} than those of most clients": record.odd,
        "its updates were another client's, or were not let in": record.twin,
    }
    return max(told, key=lambda text: told[text])


def reinstate(records: Mapping[int, Record], client: int) -> dict[int, Record]:
    """The records with nothing held against one client. Raises MisuseError for one without a record."""
    if client not in records:
        raise MisuseError(f"client {client} has no record: only who took part can be reinstated")
    return {**records, client: Record()}
