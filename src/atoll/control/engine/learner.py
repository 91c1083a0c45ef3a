"""The process that learns: `python -m atoll.control.engine.learner`, which workplace.py starts.

It reads a client's settings from stdin, then orders, and answers each on stdout. It ends when stdin does,
in the midst of its work too: a client that was killed leaves nobody behind who writes into its folder.
Of two that overlap for a moment, the later waits for the lock of the former.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

from ...core.errors import AtollError, Refused
from ...learn.failure import reason
from ...privacy.hazmat.suite import suite_of
from ...privacy.vault import Vault
from ...wire.heap import give_back, leave_code
from ..pipes import framed, records
from ..settings import Client
from .learning import Learning
from .process import alone, logged
from .spoken import Begin, Order, Said

log = logging.getLogger("atoll.client")
CODE = 20 << 20  # bytes that it may hold from one order to the next; to leave it takes ten milliseconds
ENDS = 60.0  # seconds that a killed client's learner has to end
PAUSE = 1.0  # seconds; orders that follow faster work in the same memory


def main() -> None:
    """Follow orders until stdin ends."""
    logged()
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing may print among the answers
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()
    begin = msgspec.msgpack.decode(orders.get(), type=Begin)
    settings = begin.settings
    with ExitStack() as held:
        try:
            held.enter_context(alone(Path(settings.folder) / "runs", ENDS))
            learning = _learning(settings, begin.key)
        except AtollError as error:
            _say(sink, Said.of(error))
            return
        give_back()  # what reading files has taken
        leave_code()
        _say(sink, Said(about=learning.about()))
        decode = msgspec.msgpack.Decoder(Order).decode
        given = 0.0
        while True:
            _say(sink, _followed(learning, decode(orders.get())))
            if time.monotonic() > given + PAUSE:
                give_back()
                leave_code(CODE)  # training does not run what answers are written by
                given = time.monotonic()


def _listen(source: BinaryIO, orders: queue.SimpleQueue[bytes]) -> None:
    for record in records(source):
        orders.put(record)
    os._exit(0)


def _learning(settings: Client, key: bytes) -> Learning:
    if settings.parts:
        from ..config import own_parts

        own_parts(Path(settings.parts))
    return Learning(settings, vault=Vault(key, suite_of(settings.store.crypto)))


def _followed(learning: Learning, order: Order) -> Said:
    try:
        files = [Path(name) for name in order.files]
        if order.tune is not None:
            base, rows, to = files
            whose = {"roots": order.roots, "federation": order.federation}
            return Said(about=learning.tune(base, rows, to, order.tune, **whose))  # type: ignore[arg-type]
        if order.calibrate:
            learning.lighten(files[0], files[1], order.calibrate)
        elif order.head is None:
            from ...transport.delta import restore

            restore(*files)
        elif len(files) == 1:
            learning.begin(order.head, *files, roots=order.roots, federation=order.federation)
        else:
            learning.answer(
                order.head,
                *files,
                sound=order.sound,
                roots=order.roots,
                federation=order.federation,
                rate=order.rate,
            )
    except (AtollError, OSError) as error:
        return Said.of(error)
    except Exception as error:  # noqa: BLE001  a bug reaches the operator with its traceback
        text = reason(error)
        log.warning("%s", text)
        return Said(kind=Refused.__name__, text=text)
    return Said()


def _say(sink: BinaryIO, said: Said) -> None:
    sink.write(framed(msgspec.msgpack.encode(said)))
    sink.flush()


if __name__ == "__main__":
    main()
