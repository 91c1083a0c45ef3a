"""Who takes part in a round.

A cohort is a value with `async pick(p, at) -> ids`; it may ask clients before it chooses. Ids
come back sorted, so a cohort is a set and not an order. `over` asks more clients than are
needed and goes on when enough have answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Protocol

import numpy as np

from ..core.errors import ConfigError
from ..core.registry import part
from ..core.rng import Rng
from ..privacy.accountant import Sampling


@dataclass(frozen=True, slots=True)
class Choice:
    """What a cohort may know: who there is, their sizes in rows (None if unknown), the round's
    random stream, and a way to ask some clients for their loss under the current model.
    """

    clients: Sequence[int]
    sizes: Sequence[int] | None
    key: Rng
    losses: Callable[[Sequence[int]], Awaitable[dict[int, float]]]


class Cohort(Protocol):
    """`pick(choice)`: the ids to ask; `quorum(n)`: how many of the n must answer, None for all.

    Where a cohort is smaller than all, `size(n)` says how many a round needs of n clients.
    """

    async def pick(self, choice: Choice) -> tuple[int, ...]: ...

    def quorum(self, asked: int) -> int | None: ...


@dataclass(frozen=True)
class Everyone:
    """All clients, every round."""

    def drawn(self, population: int | None) -> tuple[float, Sampling]:
        """All, always."""
        return 1.0, "all"

    async def pick(self, choice: Choice) -> tuple[int, ...]:
        """All of them."""
        return tuple(choice.clients)

    def quorum(self, asked: int) -> int | None:
        """All who were asked."""
        return None


@dataclass(frozen=True)
class Sample:
    """A random subset, without replacement; see `sample`."""

    fraction: float | None
    count: int | None
    by: str
    over: float

    def size(self, clients: int) -> int:
        """How many contributions a round needs, of so many clients: at least 1."""
        wanted = self.count if self.count is not None else round((self.fraction or 0.0) * clients)
        if self.count is not None and self.count > clients:
            raise ConfigError(
                f"a cohort of {self.count} cannot come from {clients} clients", "$.cohort.count"
            )
        return max(1, wanted)

    def drawn(self, population: int | None) -> tuple[float, Sampling]:
        """A fixed number of them. Raises ConfigError where clients are not equal, or more are asked."""
        if self.by != "uniform" or self.over != 1:
            raise ConfigError(
                'privacy is accounted for samples by="uniform" without `over`: who is quick, or has many'
                " rows, would be drawn more often",
                "$.cohort",
            )
        if population is None:
            raise ConfigError(
                "what sampling a fixed number hides depends on how many clients there are: give population,"
                " or use poisson(rate)",
                "$.privacy.population",
            )
        return self.size(population) / population, "fixed"

    async def pick(self, choice: Choice) -> tuple[int, ...]:
        """Drawn from the round's own stream."""
        clients = np.array(choice.clients)
        asked = min(len(clients), ceil(round(self.over * self.size(len(clients)), 6)))
        odds = None
        if self.by == "size":
            if choice.sizes is None:
                raise ConfigError(
                    "sampling by size needs all clients' numbers of rows, and who has a budget withholds its"
                    ' own: use by = "uniform"',
                    "$.cohort.by",
                )
            odds = np.asarray(choice.sizes, np.float64)
            odds = odds / odds.sum()
        chosen = choice.key.generator().choice(clients, asked, replace=False, p=odds)
        return tuple(sorted(int(c) for c in chosen))

    def quorum(self, asked: int) -> int | None:
        """Without over-selection all, with it the number that was wanted."""
        if self.over == 1:
            return None
        return min(self.count, asked) if self.count is not None else max(1, int(asked / self.over + 1e-6))


@dataclass(frozen=True)
class PowerOfChoice:
    """Of `candidates` clients drawn by size, the `count` with the highest loss.

    Cho, Wang, Joshi 2022, "Towards understanding biased client selection", §3 (pow-d).
    """

    count: int
    candidates: int
    asks: ClassVar[bool] = True  # for losses

    async def pick(self, choice: Choice) -> tuple[int, ...]:
        """Asks the candidates for their losses, highest first, ties by id; by id alone where none tells."""
        drawn = await Sample(None, min(self.candidates, len(choice.clients)), "size", 1.0).pick(choice)
        losses = await choice.losses(drawn) or dict.fromkeys(drawn, 0.0)
        worst = sorted(losses, key=lambda client: (-losses[client], client))
        return tuple(sorted(worst[: self.count]))

    def size(self, clients: int) -> int:
        """How many a round has, of so many clients."""
        return min(self.count, clients)

    def quorum(self, asked: int) -> int | None:
        """All who were asked."""
        return None


@dataclass(frozen=True)
class Poisson:
    """Each client by a coin of its own; see `poisson`."""

    rate: float

    def drawn(self, population: int | None) -> tuple[float, Sampling]:
        """Each with this probability."""
        return (self.rate, "poisson") if self.rate < 1 else (1.0, "all")

    def size(self, clients: int) -> int:
        """How many a round has on average, of so many clients."""
        return round(self.rate * clients)

    async def pick(self, choice: Choice) -> tuple[int, ...]:
        """Drawn from the round's own stream."""
        heads = choice.key.generator().random(len(choice.clients)) < self.rate
        return tuple(sorted(int(c) for c, head in zip(choice.clients, heads, strict=True) if head))

    def quorum(self, asked: int) -> int | None:
        """All who were asked."""
        return None


@part("cohort")
def everyone() -> Everyone:
    """All clients take part in every round."""
    return Everyone()


@part("cohort")
def sample(
    fraction: float | None = None, count: int | None = None, by: str = "uniform", over: float = 1.0
) -> Sample:
    """A random `fraction` (0, 1] or `count` of the clients, uniformly or by size; at least one.

    `over` >= 1 asks that many times more and takes the first to answer.
    """
    if (fraction is None) == (count is None):
        raise ConfigError("give either fraction or count")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"fraction must be above 0 and at most 1, got {fraction}")
    if count is not None and count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    if by not in ("uniform", "size"):
        raise ConfigError(f'by is "uniform" or "size", got {by!r}')
    if over < 1:
        raise ConfigError(f"over must be at least 1, got {over}")
    return Sample(fraction, count, by, over)


@part("cohort")
def poisson(rate: float) -> Poisson:
    """Each client with probability `rate` (0, 1], whoever else is drawn: what differential privacy gains by
    sampling is known best for this. A round may turn out empty, and changes nothing then.
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"rate must be above 0 and at most 1, got {rate}")
    return Poisson(rate)


@part("cohort")
def power_of_choice(count: int, candidates: int) -> PowerOfChoice:
    """The `count` clients of highest loss among `candidates` drawn by size."""
    if not 1 <= count <= candidates:
        raise ConfigError(f"needs 1 <= count <= candidates, got {count} and {candidates}")
    return PowerOfChoice(count, candidates)
