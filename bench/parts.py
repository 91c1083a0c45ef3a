"""The parts of a round's work, each done bare: what `bench wire` holds the CPU and the seconds against.

The same bytes as in a round. The server: a model encoded, hashed and synced; of each answer the CRC-32 and
SHA-256, the spool written and synced, the gate's rules, the exact sum; the step at the end. A client: the
model's CRC-32 and SHA-256, its file, read back; its answer encoded, hashed, in a file, read back. What
carrying the bytes costs is measured by carry.py.

As in a round each file is new and all stay until its end: memory that one file gave back a moment ago costs
next to nothing to take, memory that a virtual machine's host has to find costs seven times as much.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from atoll.control.engine.parcels import WHOLE
from atoll.control.gate.gate_worker import Case, Verdict, look
from atoll.control.gate.want import want
from atoll.core.aggregate import Reply, Sum, fold, points
from atoll.core.edge import Answer, Task
from atoll.core.rng import Rng
from atoll.core.update import Update
from atoll.learn.rounds import add
from atoll.wire import body
from atoll.wire.codec import encode
from atoll.wire.plain import payload

from .instant import Instant


class Bare:
    """The work on a model of `size` numbers, to be done again and again."""

    def __init__(self, folder: Path, size: int, clients: int) -> None:
        learner = Instant(size)
        self._folder, self._numbers = folder, itertools.count()
        self._params = Update.of(learner.init(Rng.of(0).generator()))
        at = points(self._params, clients, 2.0**20, {})
        self._rule, self._clients = Sum(at), clients
        task = Task(0, Rng.of(1), (0,), (-1,), self._params, at, tuple(range(clients)))
        self._want = want(task, self._rule, member="c", run="r", request=0, edge=False, bits=None)
        self._answer = Answer((0,), None, {}, 4 * size, ((0, Reply(learner.change, 10.0, {})),))
        self._frames = list(encode(body.answer_message(self._answer, run="r", request=0), WHOLE))
        self._model = list(encode(body.params_message(self._params), WHOLE))

    def clear(self) -> None:
        """Remove the files of a round."""
        for file in self._folder.glob("part*"):
            file.unlink()

    def once(self) -> float:
        """Seconds of CPU for what the server does in one round."""
        began = time.process_time()
        total: Any = None
        self._keep(encode(body.params_message(self._params), WHOLE))
        for _ in range(self._clients):
            head, digest = payload(self._frames[0], 0), sha256()
            for frame in self._frames[1:]:
                digest.update(payload(frame))
            spool = self._keep(payload(frame) for frame in self._frames[1:])
            case = Case(1, self._want, bytes(head), str(spool), 1 << 40)
            total = self._fold(look(case), spool, total)
        add(self._params, self._rule.finish(total, own=True).update)
        return time.process_time() - began

    def member(self) -> float:
        """Seconds of CPU for what one client does in it."""
        began, digest = time.process_time(), sha256()
        for frame in self._model[1:]:
            digest.update(payload(frame))
        model = self._keep(self._model, sync=False)
        np.fromfile(model, np.uint8)
        answer = body.answer_message(self._answer, run="r", request=0)
        np.fromfile(self._keep(encode(answer, WHOLE), sync=False), np.uint8)
        return time.process_time() - began

    def _fold(self, verdict: Verdict, spool: Path, into: Any) -> Any:
        if verdict.values is None:
            raise RuntimeError(f"the gate refuses what the bench made: {verdict.refused}{verdict.failed}")
        checked = body.Checked(verdict.values, verdict.sections, self._params.layout)
        return fold(self._rule, body.answer_of(checked, spool).replies, into)

    def _keep(self, pieces: Iterable[bytes | memoryview], *, sync: bool = True) -> Path:
        path = self._folder / f"part{next(self._numbers)}"
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
            if sync:
                os.fsync(file.fileno())
        return path
