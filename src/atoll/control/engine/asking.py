"""How a drive's questions reach members: tasks out as letters, answers back as values to fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...adapt.plan_table import planned
from ...core.edge import Answer, Task
from ...core.errors import ProtocolError, StateError
from ...core.update import Update
from ...learn.algorithm import Algorithm
from ...learn.thin import thins
from ...privacy import dp
from ...transport.drive import Answered, Drive, Stored
from ...wire import body, checkpoint
from ..gate.want import ring_bits, want
from .asks import Sent
from .host import Host
from .kept import kept_plain
from .parcels import read_frames, write_frames
from .work import Work

LATE = 2  # older models whose files stay: members may be late to fetch them, or hold them already
LONG = 64  # of those that move in few numbers: whoever was not drawn for long is sent what changed since
ROOM = 1 << 30  # bytes that these may take
SMALL = 1 << 16  # bytes of an Update that stands in the checkpoint itself: a file of its own costs more


@dataclass
class Asking:
    """One drive's net: tasks of one run out as letters, answers back as values to fold.

    `scope`: the journal's. `job`: the signed job every letter carries. `names`: of clients, by id.
    `plan`: the blob of its learner's plan, "" for none. `start`: that of the model that the run starts from,
    where members may make it, and be sent what changed since. `before`: files of earlier models, by blob.
    `parcels`: blobs of models, by the identity of the params: encoded once, whoever they are for, and for
    checkpoints too, which name them.
    """

    host: Host
    run: str
    scope: str
    job: Mapping[str, Any]
    algorithm: Algorithm
    names: Mapping[int, str]
    plan: str = ""
    start: str = ""
    before: Mapping[str, Path] = field(default_factory=dict)
    drive: Drive | None = None
    parcels: dict[int, tuple[Update, str]] = field(default_factory=dict)
    _late: list[str] = field(default_factory=list)
    _ring: int | None = field(init=False)
    _more: dict[str, Any] = field(init=False)
    _models: tuple[Any, ...] = ()  # of the last checkpoint
    _made: list[tuple[Update, str]] = field(default_factory=list)  # by checkpoints, off the event loop

    def __post_init__(self) -> None:
        exchange = self.algorithm.exchange
        self._ring = ring_bits(self.algorithm.chain)
        self._more = {"norm": None if exchange.shows == "sum" else dp.longest(self.algorithm.chain)}
        if self.algorithm.private or exchange.shows == "sum":
            self._more["metrics"] = 0  # no noise covers them, or no mask

    async def prepare(self, messages: Mapping[str, Task]) -> Mapping[str, Any]:
        """Each task with the blob of its model."""
        letters = {}
        for peer, task in messages.items():
            letters[peer] = (task, await self._parcel(task.params))
        return letters

    async def _parcel(self, params: Update) -> str:
        while self._made:
            self.keep(*self._made.pop(0))
        blob = self._known(params)
        if not blob:
            blob = await self.host.kept(lambda: self._put(params))
            self.keep(params, blob)
        for key, (other, _) in list(self.parcels.items()):
            if other is not params and not any(other is model for model in self._models):
                self._late.append(self.parcels.pop(key)[1])  # its numbers go, its file a little later
        thin = thins(self.algorithm.chain)
        while len(self._late) > (stay(params) if thin else LATE):
            self.host.asks.release(self._late.pop(0))
        mine = {old for old in (*self._late, self.start) if old not in ("", blob)}
        self.host.asks.bases[blob] = {**self.before, **{old: self.host.store.blobs.path(old) for old in mine}}
        if thin:
            self.host.asks.thin.add(blob)
        return blob

    def _known(self, params: Update) -> str:
        found, blob = self.parcels.get(id(params), (None, ""))
        return blob if found is params else ""

    def _put(self, params: Update) -> str:
        return write_frames(self.host.store, body.params_message(params))

    def dump(self, state: Any, records: checkpoint.Records) -> Stored:
        """A checkpoint on disk. The models in it are written as the parcels that the next round sends."""
        named: list[str] = []
        best = getattr(state, "best", None)
        self._models = models = (getattr(state, "params", None), best and best[2])

        def elsewhere(update: Update) -> str | None:
            if update.buffer.nbytes < SMALL or not any(update is model for model in models):
                return None
            blob = self._known(update)
            if not blob:
                blob = self._put(update)
                self._made.append((update, blob))
            named.append(blob)
            return blob

        return Stored(self.host.store.blobs.put(checkpoint.dump(state, records, elsewhere)), tuple(named))

    def load(self, data: bytes, records: checkpoint.Records) -> Any:
        """From `dump`. Raises StateError where a blob it names is gone or damaged."""

        def elsewhere(blob: str) -> Update:
            try:
                params = body.params_of(read_frames(self.host.store.blobs.path(blob), finite=False))
            except (OSError, ProtocolError) as error:
                raise StateError(f"blob {blob} of a checkpoint: {error}; restore a backup") from None
            self._made.append((params, blob))
            return params

        return checkpoint.load(data, records, elsewhere)

    def keep(self, params: Update, blob: str) -> None:
        """This model is that blob, which stays on disk while somebody may fetch it."""
        if not self._known(params):
            self.host.asks.hold(blob)
            self.parcels[id(params)] = (params, blob)

    def close(self) -> None:
        """The drive is over: nobody fetches its models any more."""
        for _, blob in self.parcels.values():
            self.host.asks.release(blob)
        for blob in self._late:
            self.host.asks.release(blob)
        self.parcels, self._late, self._made, self._models = {}, [], [], ()

    def ask(self, request: int, peer: str, letter: Any, deadline: float | None) -> None:
        """Hand a task over, with all its member needs to know."""
        task, blob = letter
        edge = self.host.roles.get(peer) == "edge"
        head = {"run": self.run, "task": body.ask_head(task), "params": blob, "job": dict(self.job)}
        if self.plan:
            head["plan"] = self.plan
        if self.start:
            head["start"] = self.start
        if edge:
            head["names"] = {self.names[c]: c for c in task.clients}
        if self.algorithm.private:
            self._remind(peer, head)
        rule, own = None, self.algorithm.protocol
        together = edge and own is not None and own.edge is not None
        if task.want == "fit":
            rule = self.algorithm.rule.at(task.points, task.cohort, task.key)
        asked = want(
            task,
            rule,
            member=peer,
            run=self._ask(request),
            request=request,
            edge=edge,
            together=together,
            bits=self.algorithm.exchange.bits_of(self.algorithm, task.points) or self._ring,
            **({} if together or rule is None else self._more),
        )
        assert self.drive is not None  # noqa: S101  set when the drive was made
        sent = Sent(self.drive, request, self.run, until=deadline)
        self.host.sent(self._ask(request), sent, peer, head, asked)

    def _remind(self, peer: str, head: dict[str, Any]) -> None:
        """Tell clients, through their edge where there is one, what they have signed of their budgets."""
        if "names" not in head:
            head["receipts"] = self.host.receipts.of(peer)
            return
        for part in self.host.receipts.untold(peer, head["names"]):
            self.host.asks.send(peer, "spent", {"receipts": part})

    def cancel(self, request: int, peers: Sequence[str]) -> None:
        """They need not answer any more."""
        self.host.asks.withdraw(self._ask(request), peers)

    def body(self, answered: Answered) -> Answer:
        """A recorded answer, its arrays still in the file."""
        checked = kept_plain(str(answered.info["checked"]))
        return body.answer_of(checked, self.host.store.blobs.path(str(answered.blob)))

    def _ask(self, request: int) -> str:
        return f"{self.run}.{self.scope}.{request}"


def stay(params: Update) -> int:
    """How many older models stay where they move in few numbers, so that what changed since can be sent."""
    return max(LATE, min(LONG, ROOM // max(1, params.buffer.nbytes)))


async def begun(host: Host, work: Work) -> str:
    """The blob of the model that a run starts from, held until it is `over`; "" where no member needs it, or
    can make it: plans travel without their first values.
    """
    if work.fits or planned(work.values["table"]) is not None or not thins(work.job.trained.chain):
        return ""
    blob = await host.kept(lambda: write_frames(host.store, body.params_message(work.first())))
    host.asks.hold(blob)
    return blob


def over(host: Host, start: str) -> None:
    """A run that `start` began is over."""
    if start:
        host.asks.release(start)
