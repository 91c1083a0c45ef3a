"""Protocols: plain `async def` roles that ask, send and receive, and await nothing else.

A role gets a Party and awaits only its methods. Each method yields one operation to whoever
drives it: the simulator's world in virtual time, or sockets and a real clock. Same seed, same
trace. All roles of one protocol stand in one file.

    async def client(p, task):            # answers one ask; an exception becomes a refusal
        return await p.work(train, task)

    async def server(p):                  # asks all, aggregates, goes on
        answers = await p.ask({name: task for name in p.peers}, fold=add)

Mailboxes of `send` and `recv` are first in, first out for each (sender, receiver, name).
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .errors import MisuseError
from .rng import Rng

Fold: TypeAlias = Callable[[Any, str, Any], Any]
Responder: TypeAlias = Callable[["Party", Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask peers, fold their answers as they come; resumes with Answers."""

    messages: Mapping[str, Any]
    quorum: int | None
    deadline: float | None
    fold: Fold | None


@dataclass(frozen=True, slots=True)
class Post:
    """Ask one peer and go on; resumes with a number, the answer comes through Next."""

    peer: str
    body: Any
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Next:
    """The next answer to a Post; resumes with Posted."""


@dataclass(frozen=True, slots=True)
class SendTo:
    """Put a value into a peer's mailbox."""

    peer: str
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Recv:
    """Take the next value of a mailbox, if one comes `within` so many seconds."""

    peer: str
    name: str
    within: float | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Run a heavy function off the event loop; resumes with its result.

    `share`: in virtual time it takes so many times what the device needs for a task.
    """

    run: Callable[[], Any]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Make `state` durable; a restarted role finds it in `p.restored`."""

    state: Any


@dataclass(frozen=True, slots=True)
class Note:
    """Tell whoever watches: one record, mostly of a finished round."""

    record: Any


Op: TypeAlias = Ask | Post | Next | SendTo | Recv | Sleep | Work | Checkpoint | Note


@dataclass(frozen=True, slots=True)
class Answers:
    """What an ask came to. `folded`: the answers folded into one, None without any or without a
    fold. `replied` in order of arrival, `missing` with each reason, `enough`: quorum reached.
    """

    folded: Any
    replied: tuple[str, ...]
    missing: Mapping[str, str]
    enough: bool


@dataclass(frozen=True, slots=True)
class Posted:
    """The answer to the post of that `number`: `body`, or None and the `reason` it failed."""

    number: int
    peer: str
    body: Any
    reason: str = ""


@types.coroutine
def _do(op: Op) -> Generator[Op, Any, Any]:
    return (yield op)


@dataclass(slots=True)
class Party:
    """A role's only window on the world.

    `name`: its own; `names`: of all who take part; `key`: its random stream; `restored`: its last
    checkpoint, None on a first start; `deadline`: absolute seconds by which an answer is due,
    None for no limit; `clock`: reads the driver's time in seconds.

    Inside an answer that has a deadline, whatever the role waits for ends with nine tenths of
    the time left, so that it can still answer.
    """

    name: str
    names: tuple[str, ...]
    key: Rng
    clock: Callable[[], float]
    restored: Any = None
    deadline: float | None = None

    @property
    def now(self) -> float:
        """Seconds on the driver's clock, virtual in a simulation."""
        return self.clock()

    @property
    def peers(self) -> tuple[str, ...]:
        """Everybody else."""
        return tuple(name for name in self.names if name != self.name)

    def _within(self, seconds: float | None) -> float | None:
        if seconds is None and self.deadline is not None:
            return 0.9 * max(self.deadline - self.now, 0.0)
        return seconds

    async def ask(
        self,
        messages: Mapping[str, Any],
        *,
        quorum: int | None = None,
        deadline: float | None = None,
        fold: Fold | None = None,
    ) -> Answers:
        """Ask several peers at once; back when `quorum` (all) answered or `deadline` seconds passed.

        `fold(so_far, peer, body)` joins answers as they arrive; the first `so_far` is None. An
        answer on which it raises an AtollError is set aside and counts as missing.
        """
        answers: Answers = await _do(Ask(messages, quorum, self._within(deadline), fold))
        return answers

    async def post(self, peer: str, body: Any, *, deadline: float | None = None) -> int:
        """Ask one peer without waiting; `next` brings the answer, with the number returned here."""
        number: int = await _do(Post(peer, body, self._within(deadline)))
        return number

    async def next(self) -> Posted:
        """The next answer to any post, in order of arrival."""
        posted: Posted = await _do(Next())
        return posted

    async def send(self, peer: str, name: str, value: Any) -> None:
        """Send a value to the mailbox `name` of a peer; arrives once and in order, or not at all."""
        await _do(SendTo(peer, name, value))

    async def recv(self, peer: str, name: str, *, within: float | None = None) -> Any:
        """The next value that `peer` sent to our mailbox `name`.

        Raises Gone if it left or stopped, or sent nothing `within` so many seconds.
        """
        return await _do(Recv(peer, name, self._within(within)))

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds pass, at least 0."""
        if not seconds >= 0:
            raise MisuseError(f"a role sleeps at least 0 seconds, got {seconds}")
        await _do(Sleep(seconds))

    async def work(self, run: Callable[[], Any], *, share: float = 1.0) -> Any:
        """The result of `run()`, computed where it does not hold up messages.

        In virtual time it takes `share` of the device's time for a task, 0 for nothing.
        """
        return await _do(Work(run, share))

    async def checkpoint(self, state: Any) -> None:
        """Make `state` the point at which a restart of this role begins."""
        await _do(Checkpoint(state))

    async def note(self, record: Any) -> None:
        """Publish a record of progress."""
        await _do(Note(record))
