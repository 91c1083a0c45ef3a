"""What is known of a candidate beside its champion, and when that is enough to stop it.

Rates (wrong, different, slower) are tested by betting: Waudby-Smith & Ramdas, "Estimating means of bounded
random variables by betting", JRSS-B 86 (2024), section 4. Against H0: mean <= m one bets a part `lam` of
one's wealth on each x in [0, 1]: W_t = W_{t-1} (1 + lam_t (x_t - m)). Where H0 holds, W >= 1/alpha ever
happens with probability <= alpha (Ville), however often one looks: a gate may be asked after every request.
`lam` is what would have served best so far (aGRAPA), from before x_t.

Drift of answers is a PSI over eight classes of equal mass, looked at when 32, 64, 128, ... requests have been
compared, each look at its own alpha/2, alpha/4, ... of the chance to be wrong; its noise under no drift
is that of a chi-square with 2/n (Yurdakul & Naranjo, "Statistical properties of the population stability
index", 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import msgspec

from ..privacy.orders import Gates
from .drift.psi import index

FEW = 32  # requests: nothing but a broken answer stops a candidate before
FLOOR = 5e-4  # seconds: a difference below is no difference
TAIL = 0.02  # of requests may take longer than the champion's 99th percentile times the limit
APART = 0.5  # numbers differ where they are further apart than this many of the champion's deviations
CLASSES = 64  # labels told apart; the others count as one
_OCTILES = tuple(NormalDist().inv_cdf(k / 8) for k in range(1, 8))
_STEP = math.log(1.1)  # width of a class of run times


class Pair(msgspec.Struct, frozen=True):
    """Both models' answers to the rows of one request, as labels or as numbers, and the seconds each took.
    `given`: whether the candidate's was the answer.
    """

    champion: Sequence[int] | Sequence[float]
    candidate: Sequence[int] | Sequence[float]
    labels: bool
    took: tuple[float, float]
    given: bool = False


class Bet(msgspec.Struct, frozen=True):
    """A test of H0: the mean of x in [0, 1] is at most m. `wealth`: its logarithm."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    wealth: float = 0.0

    @property
    def mean(self) -> float:
        """Of what was seen; 0 before."""
        return self.total / self.n if self.n else 0.0

    def bet(self, x: float, m: float) -> Bet:
        """After one more x."""
        mu = (m + self.total) / (self.n + 1)
        var = (0.25 + self.squares - 2 * mu * self.total + self.n * mu * mu) / (self.n + 1)
        lam = min(max(0.0, (mu - m) / (var + (mu - m) ** 2)), 0.5 / m if m else math.inf)
        wealth = self.wealth + math.log1p(lam * (x - m))
        return Bet(self.n + 1, self.total + x, self.squares + x * x, wealth)


class Evidence(msgspec.Struct, frozen=True):
    """Of one stage. `n`: requests compared; `given`: those the candidate answered; `dropped`: those that were
    not compared because the machine was busy. Counts and moments: no answer stands in it.
    """

    n: int = 0
    given: int = 0
    dropped: int = 0
    labelled: int = 0
    mean: float = 0.0  # of the champion's numbers
    m2: float = 0.0
    differs: Bet = Bet()
    error: Bet = Bet()
    slower: Bet = Bet()
    tail: Bet = Bet()
    times: tuple[Mapping[int, int], Mapping[int, int]] = ({}, {})
    answers: tuple[Mapping[int, int], Mapping[int, int]] = ({}, {})

    def compared(self, pair: Pair, gates: Gates) -> Evidence:
        """After one more request, with its first row for the drift and all of them for the difference."""
        n = self.n + 1
        first = pair.champion[0]
        gap = first - self.mean
        mean = self.mean + gap / n
        here = msgspec.structs.replace(
            self,
            n=n,
            given=self.given + pair.given,
            mean=mean,
            m2=self.m2 + gap * (first - mean),
            times=_counted(self.times, *map(_class, pair.took)),
        )
        if pair.labels or n > FEW // 4:  # before, nobody knows how far numbers are apart
            here = here._differing(pair, gates.disagreement or 0.0)
        return here if gates.latency is None else here.timed(pair.took, gates.latency)

    def _differing(self, pair: Pair, limit: float) -> Evidence:
        wide = APART * self.deviation
        apart = [
            (a != b) if pair.labels else abs(a - b) > wide
            for a, b in zip(pair.champion, pair.candidate, strict=True)
        ]
        classes = (self.of(pair.champion[0], pair.labels), self.of(pair.candidate[0], pair.labels))
        return msgspec.structs.replace(
            self,
            differs=self.differs.bet(sum(apart) / len(apart), limit),
            answers=_counted(self.answers, *classes),
        )

    def timed(self, took: tuple[float, float], limit: float) -> Evidence:
        """Whether the candidate took longer than it may, at the median and beyond the 99th percentile."""
        slow = took[1] > limit * took[0] + FLOOR
        tail = self.tail
        if self.n > FEW:
            tail = tail.bet(float(took[1] > limit * quantile(self.times[0], 0.99) + FLOOR), TAIL)
        return msgspec.structs.replace(self, slower=self.slower.bet(float(slow), 0.5), tail=tail)

    def judged(self, worse: float, rows: int, gates: Gates) -> Evidence:
        """Labels came for a request: `worse`, from -1 to 1, is how much oftener the candidate was wrong."""
        error = self.error.bet((worse + 1) / 2, _middle(gates.error or 0.0))
        return msgspec.structs.replace(self, error=error, labelled=self.labelled + rows)

    @property
    def deviation(self) -> float:
        """Of the champion's numbers."""
        return math.sqrt(self.m2 / self.n) if self.n else 0.0

    def of(self, answer: float, labels: bool) -> int:  # noqa: FBT001  a pair's
        """The class of an answer: the label itself, or an octile as the champion's moments have it."""
        if labels:
            return int(answer) if 0 <= answer < CLASSES else CLASSES
        z = (answer - self.mean) / self.deviation if self.deviation else answer - self.mean
        return sum(z > edge for edge in _OCTILES)

    @property
    def psi(self) -> float:
        """Population stability index of the candidate's answers against the champion's."""
        was, now = self.answers
        classes = sorted(set(was) | set(now))
        return index([was.get(k, 0) for k in classes], [now.get(k, 0) for k in classes])

    def figures(self) -> dict[str, float]:
        """For people, and to be reported: counts, rates and ratios."""
        found: dict[str, float] = {"compared": self.n, "given": self.given, "dropped": self.dropped}
        if self.n:
            p50, p99 = (quantile(self.times[1], q) / quantile(self.times[0], q) for q in (0.5, 0.99))
            found |= {"disagreement": self.differs.mean, "p50": p50, "p99": p99, "psi": self.psi}
        if self.labelled:
            found |= {"labels": self.labelled, "error": 2 * self.error.mean - 1}
        return {name: round(value, 4) for name, value in found.items()}


def stopped(seen: Evidence, gates: Gates) -> str:
    """Why the candidate is to be taken back, "" where nothing has been proved."""
    alpha = gates.alpha / 5  # four rates and the drift share the chance to be wrong
    for text, bet, _ in _rates(seen, gates):
        if bet.n >= FEW and bet.wealth >= -math.log(alpha):
            return f"{text}, after {bet.n} requests"
    n = sum(seen.answers[0].values())
    if gates.drift is not None and n >= FEW and n & (n - 1) == 0:
        look = alpha / 2 ** (n.bit_length() - FEW.bit_length() + 1)
        free = max(1, len(set(seen.answers[0]) | set(seen.answers[1])) - 1)
        if seen.psi > gates.drift + 2 / n * _chi_square(free, 1 - look):
            return f"its answers drift by a PSI of {seen.psi:.2f} where {gates.drift:g} is allowed, after {n}"
    return ""


def over(seen: Evidence, gates: Gates) -> str:
    """Which limit is not kept by what was seen so far, "" for none: no proof, but no reason to go on."""
    for text, bet, m in _rates(seen, gates):
        if bet.mean > m:
            return text
    if gates.drift is not None and seen.psi > gates.drift:
        return f"its answers drift by a PSI of {seen.psi:.2f} where {gates.drift:g} is allowed"
    return ""


def _rates(seen: Evidence, gates: Gates) -> list[tuple[str, Bet, float]]:
    """For each rate that has a limit: what is wrong if it is over, its test, and the mean it may have."""
    found = []
    if gates.error is not None:
        text = f"it is wrong more often by {2 * seen.error.mean - 1:.3f} where {gates.error:g} is allowed"
        found.append((text, seen.error, _middle(gates.error)))
    if gates.disagreement is not None:
        text = f"{seen.differs.mean:.1%} of answers differ where {gates.disagreement:.1%} may"
        found.append((text, seen.differs, gates.disagreement))
    if gates.latency is not None:
        text = f"it takes more than {gates.latency:g} times as long"
        found.append((f"{text} at the median", seen.slower, 0.5))
        found.append((f"{text} at the 99th percentile", seen.tail, TAIL))
    return found


def _middle(error: float) -> float:
    """A limit of a difference of rates, from -1 to 1, as a mean from 0 to 1."""
    return (min(error, 0.99) + 1) / 2


def quantile(times: Mapping[int, int], q: float) -> float:
    """Of run times in seconds, to 10 %: the upper end of its class."""
    left = q * sum(times.values())
    for k in sorted(times):
        left -= times[k]
        if left <= 0:
            return math.exp((k + 1) * _STEP)
    return math.exp(_STEP)


def _class(seconds: float) -> int:
    return math.floor(math.log(max(seconds, 1e-7)) / _STEP)


def _counted(
    both: tuple[Mapping[int, int], Mapping[int, int]], one: int, other: int
) -> tuple[Mapping[int, int], Mapping[int, int]]:
    a, b = both
    return {**a, one: a.get(one, 0) + 1}, {**b, other: b.get(other, 0) + 1}


def _chi_square(free: int, p: float) -> float:
    """Its quantile, by Wilson & Hilferty's cube."""
    a = 2 / (9 * free)
    return float(free * (1 - a + NormalDist().inv_cdf(p) * math.sqrt(a)) ** 3)
