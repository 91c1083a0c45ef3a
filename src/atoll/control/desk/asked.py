"""The bodies that requests may have, every field named, typed and limited; and JSON as answers have it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from .values import finite

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Body(BaseModel):
    """A JSON object of exactly these fields."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class Submit(Body):
    """A job file's values, as a table of tables; `seed` instead of the job's."""

    job: dict[str, Any]
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None


class Drain(Body):
    """`on`: no new work for this member; false gives it work again."""

    on: bool = True


class NewToken(Body):
    """`role`: client and edge enrol once; viewer, operator and admin use the API. `hours`: how long."""

    role: Literal["client", "edge", "viewer", "operator", "admin"]
    name: Name
    hours: Annotated[float, Field(gt=0, le=24 * 366)] = 24.0


class Prune(Body):
    """Runs that ended more than `keep_days` ago are forgotten, but the newest `keep_runs`."""

    keep_days: Annotated[float, Field(ge=0, le=36500)]
    keep_runs: Annotated[int, Field(ge=0, le=10**6)] = 0


Reason = Annotated[str, Field(max_length=500)]


class RollOut(Body):
    """`version`: the newest without. `plan`: nodes, first, shadow, canary, gates, stay, hold, back."""

    version: Annotated[int | None, Field(ge=1, le=2**53)] = None
    plan: dict[str, Any] = {}
    reason: Reason = ""


class Promote(Body):
    """Why."""

    reason: Reason = ""


class RollBack(Body):
    """`to`: a version, by default the one members served before. `reason`: members and the log hear it."""

    to: Annotated[int | None, Field(ge=1, le=2**53)] = None
    reason: Annotated[str, Field(min_length=1, max_length=500)]


class Nothing(Body):
    """No field at all."""


class Plain(JSONResponse):
    """JSON that every reader takes: no NaN in it. `render(content)` is its bytes."""

    def render(self, content: Any) -> bytes:
        return json.dumps(finite(content), ensure_ascii=False, separators=(",", ":")).encode()
