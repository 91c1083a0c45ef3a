"""Exchanges: how a round's updates become one sum at the coordinator, and who sees what of them.

`plain_sum()` sends each update as it left its client's chain: whoever receives it sees it. `secure_sum()`
(secure.py) sends integers under masks that only their sum is free of, `encrypted_sum()` (encrypted.py)
ciphertexts that anybody adds and two clients open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ..core.aggregate import Aggregator, Points
from ..core.edge import Answer, Task
from ..core.errors import ProtocolError
from ..core.protocol import Party
from ..core.registry import part

if TYPE_CHECKING:
    from .algorithm import Algorithm
    from .local import Local
    from .rounds import Plan


class Exchange(Protocol):
    """How updates are summed. `shows`: single updates, or their sum only. `bits_of`: of the ring in which
    answers to a task with these points travel, None where they travel as their chain leaves them. `blind`:
    whether it takes many members' help to see a single update.
    """

    @property
    def shows(self) -> Literal["sum", "each"]: ...

    def bits_of(self, algorithm: Algorithm, points: Points | None) -> int | None: ...

    def integers(self, algorithm: Algorithm, members: int, size: int) -> str:
        """For people: of how many bits a sum of so many members is, and why; "" where it is of real ones."""

    @property
    def blind(self) -> bool: ...

    async def collect(
        self, p: Party, plan: Plan, task: Task, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> tuple[Answer, Aggregator]:
        """At the coordinator: the cohort's answer to a task to train, and what finishes its partial."""

    def outgoing(self, local: Local, task: Task, answer: Answer) -> Answer:
        """At the clients: the replies as they leave them."""

    def reply(self, local: Local, task: Task) -> Answer:
        """At the clients: the answer to a step of the exchange (`want="note"`)."""


@dataclass(frozen=True)
class Plain:
    """Every update as it is."""

    shows: ClassVar[Literal["sum", "each"]] = "each"
    blind: ClassVar[bool] = False

    def bits_of(self, algorithm: Algorithm, points: Points | None) -> int | None:
        """Real numbers."""
        return None

    def integers(self, algorithm: Algorithm, members: int, size: int) -> str:
        """None."""
        return ""

    async def collect(
        self, p: Party, plan: Plan, task: Task, rule: Callable[[Task], Aggregator], quorum: int | None
    ) -> tuple[Answer, Aggregator]:
        """One question, one answer."""
        aggregator = rule(task)
        return await plan.relay(p, task, aggregator, quorum), aggregator

    def outgoing(self, local: Local, task: Task, answer: Answer) -> Answer:
        """As they are."""
        return answer

    def reply(self, local: Local, task: Task) -> Answer:
        """There is no such step. Raises ProtocolError."""
        raise ProtocolError("this job sums updates in the open: it has no steps of a secure sum")


@part("exchange")
def plain_sum() -> Plain:
    """Each update as it left its client: the coordinator, and edges on the way, see it."""
    return Plain()


@dataclass
class Seat:
    """Where a client sits in sums that are secure: its signing key, its memory and its entropy.

    `run`: federation and run, which everything is bound to. `draw(n)`: n bytes; a real client's are the
    system's. `sign(text)`: a signature and the certificates to it; `check(keys, text)`: the name of who
    signed (privacy/roster.py). Without them nobody's keys are proven: the coordinator is trusted not to
    invent members. `least`: the fewest members of a sum. `save`: what makes `secrets` last beyond this
    process. `drawings`: by client, what it keeps of drawing buckets (privacy/lottery.py). `coins`: 32 bytes
    that a run's rows are drawn by, the same after a restart. `vouch(update, members)`: raises PrivacyError
    where the update of this name was in a sum of others.
    """

    draw: Callable[[int], bytes]
    run: tuple[str, str] = ("", "")
    sign: Callable[[bytes], tuple[bytes, bytes]] | None = None
    check: Callable[[Any, bytes], str] | None = None
    least: int = 2
    save: Callable[[bytes], None] | None = None
    secrets: dict[int, Any] = field(default_factory=dict)
    drawings: dict[int, Any] = field(default_factory=dict)
    coins: bytes = b""
    vouch: Callable[[bytes, Sequence[str]], None] | None = None

    def keep(self, client: int, secret: Any) -> None:
        """What a client keeps of its attempt, on disk when this returns."""
        self.secrets[client] = secret
        if self.save is not None:
            from ..privacy.secure_sum import dump

            self.save(dump(self.secrets))


class _Table:
    """Merges tables by client; every client stands in one of them only."""

    sees = "sum"

    def merge(self, a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
        return a | b


TABLE: Any = _Table()
