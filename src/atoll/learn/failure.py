"""What is told of a failure at a client, to who asked it; it needs no numpy, as a client that waits."""

from __future__ import annotations

import traceback

from ..core.errors import AtollError

HELD = "held by its own policy: "  # stands in the reason of who may not work at this time
NOT_LET_IN = "its answer was not let in: "  # begins the reason of who sent what nobody takes


def reason(error: Exception) -> str:
    """What to tell of a failure: our own errors in a line, a bug with its traceback from where it
    leaves this package.
    """
    if isinstance(error, AtollError):
        return f"{type(error).__name__}: {error}"
    first = error.__traceback__
    while first is not None and first.tb_frame.f_globals.get("__name__", "").startswith("atoll."):
        first = first.tb_next
    return "".join(traceback.format_exception(type(error), error, first or error.__traceback__))
