"""Plans on their way: the file that somebody submitted becomes a blob, and the blob a plan again.

submitted (first values too) ─► coordinator ─► without them, as frames ─► members that the job asks
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...adapt.plan import Plan
from ...adapt.plan_table import planned
from ...core.errors import AtollError, CodecError, ConfigError, ProtocolError, Refused
from ...wire.codec import Message
from ..settings import Policy
from .parcels import read_frames, write_frames

if TYPE_CHECKING:
    from ..store.store import Store  # a client has none


def sent(store: Store, table: Mapping[str, Any]) -> tuple[Plan | None, str]:
    """The job's plan with its first values, and the blob that members fetch; (None, "") without one.

    Raises ConfigError where the file is not here, or is not the plan that the job names.
    """
    learner = planned(table)
    if learner is None:
        return None, ""
    blob = str(learner.get("blob", ""))
    if len(blob) != 64 or not store.blobs.exists(blob):
        raise ConfigError("the job's plan is not here: submit it again", "$.learner.blob")
    plan = Plan.read(store.blobs.read(blob))
    if plan.sha256 != learner.get("sha256"):
        raise ConfigError("the job names another plan than was sent with it", "$.learner.sha256")
    return plan, write_frames(store, Message("plan", {}, {"plan": carried(plan)}))


def taken(path: Path, sha256: str, policy: Policy) -> Plan:
    """The plan in a fetched blob, within this site's limits. Raises Refused with the reason for any other."""
    try:
        return held(read_frames(path, finite=False), sha256, policy)
    except Refused:
        raise
    except (AtollError, OSError) as error:
        path.unlink(missing_ok=True)
        raise Refused(f"the job's plan could not be read, and is fetched again: {error}") from None


def carried(plan: Plan) -> Any:
    """A plan as an array of a message, without its first values."""
    return np.frombuffer(plan.bare().dump(), np.uint8)


def held(message: Message, sha256: str, policy: Policy) -> Plan:
    """The plan in a message, within this site's limits.

    Raises Refused where they do not allow it, or the job named another; CodecError where there is none.
    """
    data = message.arrays.get("plan")
    if not isinstance(data, np.ndarray):
        raise CodecError("expected a plan beside the job that names it")
    try:
        plan = Plan.read(
            np.asarray(data, np.uint8).tobytes(), memory=policy.plan_mb << 20, seconds=policy.plan_seconds
        )
    except ProtocolError as error:
        raise Refused(f"this site does not run the job's plan: {error}") from None
    if plan.sha256 != sha256:
        raise Refused("the job's signature names another plan than came with it")
    return plan
