"""With how many others each member of a secure sum shares, and how many of them must answer.

Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, "Secure single-server aggregation with (poly)logarithmic
overhead", §3: up to FULL members everybody shares with everybody; beyond it each with `degree` others, in
a graph that is random and follows from all keys, so that nobody chooses neighbours.

The degree is the smallest for which, with all but 2**-SAFE, no member has too many corrupt neighbours and
the honest ones stay connected, and with all but 2**-LIVE no member loses too many, whoever drops out.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

from ..core.errors import ConfigError

FULL = 128  # members who all share with each other
SAFE, LIVE = 40, 30  # bits of the chance that privacy, or a round, is lost
CORRUPT, LOST = 0.1, 0.2  # shares of the members that the graph is made for where nobody says others


def threshold(holders: int) -> int:
    """More than two thirds: of two lists of survivors that do not agree, one at most gets so many."""
    return 2 * holders // 3 + 1


def checked(corrupt: float, lost: float) -> None:
    """Raise ConfigError for shares of corrupt members and of drop-outs for which no graph would do."""
    if not (corrupt >= 0 and lost >= 0 and corrupt + lost < 1 / 3):
        raise ConfigError(
            "corrupt members and those who drop out are shares from 0, together less than a third:"
            f" got corrupt = {corrupt}, lost = {lost}"
        )


@lru_cache(maxsize=256)
def degree(n: int, corrupt: float = CORRUPT, lost: float = LOST) -> int:
    """With how many others each of `n` members shares, for shares of corrupt members and of drop-outs.

    Raises ConfigError where no graph would do.
    """
    checked(corrupt, lost)
    if n <= FULL:
        return n - 1
    bad, gone = int(corrupt * n), int(lost * n)
    for k in range(2, n - 1, 2):
        t = threshold(k + 1)
        alone = _tail(n - 1, bad + gone, k, k)  # every neighbour corrupt or gone: nothing masks it
        broken = _tail(n - 1, bad, k, t)
        stuck = _tail(n - 1, gone, k, k + 1 - t + 1)
        if n * (alone + broken) < 2.0**-SAFE and n * stuck < 2.0**-LIVE:
            return k
    return n - 1


def _tail(n: int, marked: int, drawn: int, least: int) -> float:
    """The chance that at least `least` of `drawn` among `n` are `marked`: hypergeometric."""
    ways = sum(comb(marked, i) * comb(n - marked, drawn - i) for i in range(least, min(marked, drawn) + 1))
    return ways / comb(n, drawn)
