"""A life of a shelf that can be cut anywhere and goes on: versions come, are tried, served and taken back.

    python -m tests.serve.shelf_life MODELS

Each JSON line has a process forked that lives that life; its exit status, negative for a signal, comes back.

`live` asks the shelf how far it got, as a client's letters do, and repeats whatever it cannot know it did.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import ProtocolError
from atoll.serve.models import Shelf
from atoll.wire import failpoint

MANY = 10**9
WATCHED = {"disagreement": 0.3, "error": None, "latency": None, "drift": None, "least": 40}
TRY = {"stage": "shadow", "shadow": 40, "share": 0.5, "gates": WATCHED}
# (version, takes_back, order): 2 comes through, 3 is bad, 4 is served at once, the operator goes back to 2
STEPS: tuple[tuple[int, int, dict[str, Any] | None], ...] = (
    (1, 0, None),
    (2, 0, {"number": 1, **TRY}),
    (3, 0, {"number": 2, **TRY}),
    (4, 0, None),
    (2, 4, {"number": 3, "stage": "all", "reason": "four is worse"}),
)
SLOPES = {1: 1.0, 2: 1.0, 3: -1.0, 4: 2.0}


def signed(data: bytes, version: int, takes_back: int = 0, order: Any = None) -> bytes:
    fields = {"name": "m", "version": version, "sha256": hashlib.sha256(data).hexdigest(), "by": "us"}
    return json.dumps({**fields, "takes_back": takes_back, **({"order": order} if order else {})}).encode()


def opened(manifest: bytes, above: int | None) -> Any:
    """What privacy/models.py promises, without its cryptography."""
    fields = json.loads(manifest)
    if fields["by"] != "us":
        raise ProtocolError("not signed by a coordinator of this federation")
    again = "order" in fields and fields["version"] == above
    if above is not None and not (fields["version"] > above or above <= fields.get("takes_back", 0) or again):
        raise ProtocolError(f"model {fields['name']} is at {above} here: it only rises")
    return fields


def ask(shelf: Shelf, n: int) -> tuple[int, float]:
    """One request, answered: by which version, and what."""
    ticket = f"t{n}"
    served = shelf.pick("m", ticket)
    assert served is not None, "a request was not answered"
    rows = np.array([[1.0 + n % 5]], np.float32)
    served, found = shelf.answer(served, rows)
    shelf.seen(served, ticket, rows)
    shelf.settle()
    return served.version, float(found["y"][0, 0]) / (1.0 + n % 5)


def live(folder: Path, models: Path, told: Callable[[str], None]) -> None:
    shelf = Shelf(folder, opened)
    for number, (version, takes_back, order) in enumerate(STEPS):
        line = shelf.line("m")
        over = 0 if line is None else max(line.newest, takes_back)
        with suppress(ProtocolError):  # it was, in an earlier life
            if order is not None or line is None or version > over:
                data = (models / f"{version}.onnx").read_bytes()
                shelf.take(signed(data, version, takes_back, order), data)
        told(f"took {number}")
        for n in range(400):
            line = shelf.line("m")
            if line is None or line.candidate is None:
                break
            at, slope = ask(shelf, n)
            assert slope == SLOPES[at], "an answer of one model under another's version"
        told(f"settled {number}")
    shelf.close()


def _child(task: dict[str, Any], models: Path) -> None:
    folder = Path(task["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    failpoint.arm(task["arm"])
    with (folder / "told.txt").open("ab", buffering=0) as out:
        live(folder / "shelf", models, lambda line: out.write(f"{line}\n".encode()))
    if task.get("count"):
        left = {name: MANY - place.left for name, place in failpoint._armed.items()}
        (folder / "hits.json").write_text(json.dumps(left))


def main(models: Path) -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                _child(json.loads(line), models)
            except BaseException:  # noqa: BLE001  a child never goes on with its parent's work
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
