"""Asks as they come: the signed job, the task and the model's file become work to do; answers become files.

An answer is on disk before the first byte of it leaves. It is not synced: whoever finds it after a power
cut looks whether it is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.edge import Answer, Task, wire
from ...core.errors import CodecError, IntegrityError, ProtocolError
from ...core.update import Update
from ...privacy.vault import Vault
from ...wire import body
from ...wire.coded import level
from ...wire.failpoint import declare, hit
from .parcels import keep_frames, read_frames, take_frames
from .spoken import Spoiled
from .work import Work, opened

_WRITTEN = declare("orders.written.before"), declare("orders.written.after")
MANY = 16  # signed jobs remembered


class Asked:
    """One ask as it came: `work` is checked, `task` complete, `names` of clients by id for an edge.

    `deadline`: seconds from when it came, None for as long as it takes. `blob`: the model's. `receipts`:
    of clients' budgets, as they signed them.
    """

    def __init__(self, head: Mapping[str, Any], work: Work, task: Task) -> None:
        self.id = str(head["ask"])
        self.work = work
        self.task = task
        self.blob = str(head["params"])
        self.plan = str(head.get("plan", ""))
        self.job: Mapping[str, Any] = head["job"]
        self.names: Mapping[str, int] = head.get("names", {})
        known = head.get("receipts")
        self.receipts: list[str] = known if isinstance(known, list) else []
        left = float(head.get("left", -1.0))
        self.deadline = None if left < 0 else left

    @property
    def request(self) -> int:
        """The number of the request within its scope."""
        return int(self.id.rpartition(".")[2])


class Orders:
    """Opens asks of one member. `roots`: PEM, what coordinators' signatures must lead to."""

    def __init__(self, roots: bytes, federation: str) -> None:
        self._roots = roots
        self._federation = federation
        self._work: dict[bytes, Work] = {}
        self._models: dict[str, Update] = {}

    def read(self, head: Mapping[str, Any], model: Path, *, sound: bool, now: float) -> Asked:
        """The ask with its model. `sound`: the file was verified as it was written, and need not be again.

        `now`: Unix seconds. Raises ProtocolError unless its job is a coordinator's, Spoiled for a file that
        is damaged.
        """
        work = self._opened(head, now)
        return _asked(head, work, self._model(model, sound=sound))

    def without(self, head: Mapping[str, Any], *, now: float) -> Asked:
        """The ask while its model is not here: with an empty one, and without the binary points that go with
        it. Raises ProtocolError as `read`.
        """
        task = {**head.get("task", {}), "points": None}
        return _asked({**head, "task": task}, self._opened(head, now), Update.of({}))

    def _opened(self, head: Mapping[str, Any], now: float) -> Work:
        """Each job's signature is looked at once."""
        job = head.get("job")
        if not isinstance(job, Mapping):
            raise ProtocolError("an ask without a signed job")
        text = job.get("text")
        if isinstance(text, bytes) and text in self._work:
            return self._work[text]
        work = opened(job, self._roots, self._federation, now=now)
        if len(self._work) > MANY:
            self._work.clear()
        self._work[work.text] = work
        return work

    def _model(self, path: Path, *, sound: bool) -> Update:
        if path.name not in self._models:
            try:
                message = take_frames(path) if sound else read_frames(path)
            except (CodecError, IntegrityError, FileNotFoundError) as error:
                raise Spoiled(f"the model's file cannot be read: {error}") from None
            self._models = {path.name: body.params_of(message)}
        return self._models[path.name]


def _asked(head: Mapping[str, Any], work: Work, params: Update) -> Asked:
    return Asked(head, work, body.task_of(head.get("task", {}), params))


def write(
    asked: Asked, answer: Answer, to: Path, *, most: float | None = None, vault: Vault | None = None
) -> None:
    """The answer as a file of frames, sealed by `vault`. `most`: the most that a weight may be.

    Under a promise of privacy its size does not follow the numbers in it.
    """
    packs = asked.work.job.privacy is None
    made = answer if packs else _level(answer)
    message = body.answer_message(made, run=asked.id, request=asked.request, most=most, packs=packs)
    hit(_WRITTEN[0])
    keep_frames(to, message, vault)
    hit(_WRITTEN[1])


def _level(answer: Answer) -> Answer:
    replies = tuple((client, replace(r, update=level(r.update))) for client, r in answer.replies)
    before, after = (sum(wire(r.update) for _, r in each) for each in (answer.replies, replies))
    return replace(answer, replies=replies, sent=answer.sent + after - before)
