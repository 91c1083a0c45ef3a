"""Who sits in which bucket of a secure sum: drawn by all members together, so that nobody could choose.

    coordinator   lots -> coins -> the buckets
    client        draws a lot, tells its coin, and looks whether it is asked to sit where it was drawn to

Whoever could choose would put a member among its own. The steps are privacy/lottery.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import PrivacyError, ProtocolError
from ..privacy import lottery
from . import attempts

if TYPE_CHECKING:
    from .local import Local
    from .robust import Buckets
    from .secure import Step


def lot(local: Local, client: int, step: Step) -> bytes:
    """This client's lot for an attempt, the same however often it is asked.

    Raises ProtocolError for an attempt that is over.
    """
    seat, mine = local.seat, attempts.label(local, step)
    before = seat.drawings.get(client)
    if before is None or before.label != mine:
        if before is not None and (before.label.round, before.label.attempt) >= (step.round, step.attempt):
            raise ProtocolError("this drawing is over: a later one has begun")
        seat.drawings[client] = before = lottery.begin(mine, client, seat.draw, seat.sign)
    return lottery.lot_out(before)


def coin(local: Local, client: int, step: Step, everybody: bytes, least: int) -> bytes:
    """This client's coin, once it has seen everybody's lots."""
    seat = local.seat
    seat.drawings[client], told = lottery.told(_kept(local, client, step), everybody, least, seat.check)
    return told


def placed(
    local: Local, client: int, step: Step, buckets: Buckets, group: int, members: Sequence[int]
) -> None:
    """Raise PrivacyError unless this client is asked to sit with those with whom it was drawn to."""
    key, everybody = lottery.drawn(_kept(local, client, step), step.coins)
    place = buckets.dealt(everybody, key)
    if place[client] != group or sorted(members) != [c for c in everybody if place[c] == group]:
        raise PrivacyError("this bucket of a secure sum is not the one that its members have drawn")


def _kept(local: Local, client: int, step: Step) -> Any:
    """The drawing of the step's attempt, which is in memory only: a restart misses one attempt."""
    found = local.seat.drawings.get(client)
    if found is None or found.label != attempts.label(local, step):
        raise ProtocolError("this client has drawn no lot for this attempt, or has forgotten it")
    return found
