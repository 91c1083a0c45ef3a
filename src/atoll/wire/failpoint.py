"""Named places where a test may end the process, or a file operation, at the worst moment.

    declare("store.answered.before_commit")     once, at import: NAMES lists every place there is
    hit("store.answered.before_commit")         where it happens

Nothing happens unless the environment says so: ATOLL_FAILPOINTS="name:3:kill,other:1:raise" acts on
the third time the first place is reached and the first time the second is. Actions: `kill` ends the
process as SIGKILL does, `raise` is an input/output error (EIO), `full` a full disk (ENOSPC).
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass

from ..core.errors import ConfigError, MisuseError

NAMES: set[str] = set()
ACTIONS = ("kill", "raise", "full")
VARIABLE = "ATOLL_FAILPOINTS"

_KILL = 9  # SIGKILL where there are signals; other systems end the process just as abruptly


@dataclass(slots=True)
class _Armed:
    left: int
    action: str


_armed: dict[str, _Armed] = {}
_lock = threading.Lock()


def declare(name: str) -> str:
    """Give a place its name; returns it. Raises MisuseError if another place has it."""
    if name in NAMES:
        raise MisuseError(f"a failpoint {name!r} is there already: each place has a name of its own")
    NAMES.add(name)
    return name


def hit(name: str) -> None:
    """This place is reached. Does nothing unless armed; then ends the process or raises OSError."""
    if name in _armed:  # one look-up when nothing is armed
        _fire(name)


def arm(text: str) -> None:
    """Arm places as the environment does, in place of what was armed; an empty text disarms all.

    Raises ConfigError for text of another form.
    """
    found = dict(_parsed(part) for part in text.split(",") if part.strip())
    with _lock:
        _armed.clear()
        _armed.update(found)


def _parsed(part: str) -> tuple[str, _Armed]:
    name, _, rest = part.strip().partition(":")
    count, _, action = rest.partition(":")
    if not name or not count.isdecimal() or not int(count) or action not in ACTIONS:
        raise ConfigError(
            f"{VARIABLE}: expected name:count:action with action one of {', '.join(ACTIONS)},"
            f" got {part.strip()!r}"
        )
    return name, _Armed(int(count), action)


def _fire(name: str) -> None:
    with _lock:
        place = _armed.get(name)
        if place is None:
            return
        place.left -= 1
        if place.left:
            return
        del _armed[name]
    if place.action == "kill":
        os.kill(os.getpid(), _KILL)
    number = errno.ENOSPC if place.action == "full" else errno.EIO
    raise OSError(number, f"{os.strerror(number)} (failpoint {name})")


arm(os.environ.get(VARIABLE, ""))
