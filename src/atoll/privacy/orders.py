"""What a coordinator may order about a model: where a version begins, how far it may go, and what stops it.

    shadow ─► canary ─► all ─► served          `number` rises with every order about a name
       └─────────┴────────┴──► back            a node that saw number 7 obeys no 6, whoever shows it

An order is part of a signed manifest (models.py), so it holds for those bytes and that federation only.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

Stage: TypeAlias = Literal["shadow", "canary", "all"]
STAGES: tuple[Stage, ...] = ("shadow", "canary", "all")

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Limit = Annotated[float, msgspec.Meta(ge=0, le=1000)]
_Many = Annotated[int, msgspec.Meta(ge=0, le=10**9)]


class Gates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits a candidate must keep, each against the champion on the same rows; None: not looked at.

    `error`: how much more often it may be wrong, where labels come, as a difference of rates; of numbers, how
    much more often it is further off than the champion. `disagreement`: share of answers that may differ.
    `latency`: how many times as long it may take, at the median and at the 99th percentile. `drift`:
    population stability index of its answers. `least`: requests compared before a stage is passed.
    `labels`: rows with labels needed as well. `alpha`: chance that a good model is stopped by a gate.
    """

    error: _Limit | None = 0.02
    disagreement: _Share | None = 0.3
    latency: _Limit | None = 2.0
    drift: _Limit | None = 0.5
    least: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 100
    labels: _Many = 0
    alpha: Annotated[float, msgspec.Meta(gt=0, lt=0.5)] = 0.01

    @property
    def open(self) -> bool:
        """Whether nothing is looked at."""
        return self.labels == 0 and not any(
            limit is not None for limit in (self.error, self.disagreement, self.latency, self.drift)
        )


OPEN = Gates(None, None, None, None)


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stage`: where the version begins; "held": registered, and served nowhere yet. `until`: how far a node
    takes it by itself; served is beyond "all". `shadow`: requests compared before it answers any. `share`: of
    requests it answers as a canary. `stay`: seconds at least in each stage. `again`: also where it was taken
    back. `reason`: for people.
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    stage: Stage | Literal["held"] = "all"
    until: Stage = "all"
    shadow: _Many = 0
    share: _Share = 0.1
    gates: Gates = OPEN
    stay: Annotated[float, msgspec.Meta(ge=0, le=366 * 86400.0)] = 0.0
    again: bool = False
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
