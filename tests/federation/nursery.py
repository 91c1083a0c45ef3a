"""A process that forks members: each is a real process, without the seconds a fresh interpreter takes.

It reads one JSON object a line, {command, settings, log, env, hits}, and answers with the pid of a
child that runs the command as `python -m atoll` does. `hits`: a file for how often each failpoint was
reached, written when the child ends in order. Children die with it, and it with whoever began it.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import atoll.control.cli_serve
import atoll.control.desk.api
import atoll.control.desk.listen
import atoll.control.desk.office
import atoll.control.engine.agent
import atoll.control.engine.asking
import atoll.control.engine.coordinator
import atoll.control.engine.edge
import atoll.control.engine.founding
import atoll.control.engine.ways
import atoll.transport.enrol
import atoll.transport.entry
import atoll.transport.grpc
import atoll.transport.https
import atoll.transport.ws  # noqa: F401
from atoll.control.cli import main as command_line
from atoll.control.engine import workplace
from atoll.control.store import Store
from atoll.wire import failpoint
from tests.federation.learner import MANY, reached
from tests.store import script

DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def _child(task: dict[str, Any], parent: int) -> int:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(task["env"])
    hits = task["hits"]
    if hits:
        workplace.COMMAND = (sys.executable, "-m", "tests.federation.learner", f"{hits}.learner")
    armed = ",".join(f"{name}:{MANY}:kill" for name in failpoint.NAMES) if hits else ""
    failpoint.arm(task["env"].get("ATOLL_FAILPOINTS", armed))
    code = command_line([task["command"], "--config", task["settings"], *task["words"]])
    if hits:
        Path(hits).write_text(json.dumps(reached()))
    return code


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Store.open("", Path(folder)) as store:
        script.live(store, 0, lambda _: None)  # what the first statements load is loaded once
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children: they are seen to end
    parent = os.getpid()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _child(json.loads(line), parent)
                sys.stdout.flush()
            finally:
                os._exit(code)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
