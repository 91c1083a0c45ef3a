"""A process that forks processes to be killed: each lives in its own, without the cost of starting one.

It reads one JSON object a line and answers each with the exit status of the child that did it:
negative for the signal that ended it, as `subprocess` has it.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import alembic.operations  # loaded once, here, and not in every child
import alembic.runtime.migration
import alembic.script  # noqa: F401

from atoll.control.store import Store
from atoll.control.store.engine import connect
from atoll.control.store.migrate import VERSIONS, migrate
from atoll.core.errors import StateError
from atoll.wire import failpoint
from tests.store import script
from tests.store.warm import warm

MANY = 10**9


def live(task: dict[str, Any], told: script.Told) -> None:
    with Store.open(task["url"], Path(task["folder"])) as store:
        script.live(store, task["seed"], told)


def backup(task: dict[str, Any], told: script.Told) -> None:
    folder = Path(task["folder"])
    if not (folder / "backup.tar").exists():
        with Store.open("", folder / "first") as store:
            script.live(store, task["seed"], lambda _: None)
            (store.folder / "pki").mkdir(exist_ok=True)
            (store.folder / "pki" / "root.pem").write_bytes(b"root")
            store.backup(folder / "backup.tar")
    told("backed up")
    try:
        Store.restore(folder / "backup.tar", task["url"], folder / "second").close()
    except StateError as error:
        if "already" not in str(error):  # restored before the cut
            raise
    told("restored")


def upgrade(task: dict[str, Any], told: script.Told) -> None:
    engine = connect(task["url"], Path(task["folder"]))
    told(f"from {migrate(engine, to='9999', versions=[*VERSIONS, Path(task['versions'])])}")


def _child(task: dict[str, Any]) -> None:
    with (Path(task["folder"]) / "told.txt").open("ab", buffering=0) as out:
        failpoint.arm(task["arm"])
        {"live": live, "backup": backup, "migrate": upgrade}[task["mode"]](
            task, lambda line: out.write(f"{line}\n".encode())
        )
        if task.get("count"):
            left = {name: MANY - place.left for name, place in failpoint._armed.items()}
            (Path(task["folder"]) / "hits.json").write_text(json.dumps(left))


def main() -> None:
    with warm(), tempfile.TemporaryDirectory() as folder:
        with Store.open("", Path(folder)) as store:  # the children begin with every statement compiled
            script.live(store, 0, lambda _: None)
        _serve()


def _serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                _child(json.loads(line))
                os._exit(0)
            except BaseException:  # noqa: BLE001  a child that fails says so, and ends
                traceback.print_exc()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
