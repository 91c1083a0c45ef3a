"""How far a roll-out is in the fleet, and what is to happen next: a function of what members said.

    first members ─► all ─► done: an order to everybody
          └───────────┴───► back: too many took it back, an order to go back

A member that is away is not waited for; what it is to serve reaches it when it comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...privacy.orders import OPEN
from ..settings import Rollout

LAST = 1  # the wave that is everybody


def first(plan: Rollout, name: str, number: int, members: Sequence[str]) -> list[str]:
    """Whose turn is first: as the plan names them, else a part of `members`, by a hash new each time."""
    if plan.nodes:
        return sorted(plan.nodes)
    drawn = sorted(members, key=lambda m: hashlib.sha256(f"{name}\n{number}\n{m}".encode()).digest())
    return sorted(drawn[: max(1, round(plan.first * len(drawn)))])


def decide(
    plan: Rollout, order: Mapping[str, Any], here: Mapping[str, bool], stages: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str]:
    """("wave" | "done" | "back" | "", why) for an open order. `here`: members that serve, and whether they
    are connected. `stages`: what each said last about this name.
    """
    number, version = order["number"], order["version"]
    turn = sorted(here) if order["wave"] >= LAST else first(plan, order["name"], number, sorted(here))
    took, back, waits = [], [], []
    for member in turn:
        said = stages.get(member, {})
        if said.get("number", 0) < number:
            waits += [member] if here.get(member) else []
        elif said["stage"] == "back" and said["trial"] == version:
            back.append(member)
        elif said["stage"] == "served" and said["version"] == version:
            took.append(member)
        else:
            waits.append(member)
    if back and len(back) >= plan.back * len([*took, *back, *waits]):
        return "back", f"{len(back)} of {len(turn)} took it back; {back[0]}: {stages[back[0]]['reason']}"
    if not took or any(here.get(member) for member in waits):
        return "", ""
    return ("done", "") if order["wave"] >= LAST else ("wave", "")


def order_of(order: Mapping[str, Any]) -> dict[str, Any]:
    """What is signed for members of an order in the store."""
    signed = {"number": order["number"], "stage": "all", "reason": order["reason"][:500]}
    if order["kind"] != "rollout":
        return {**signed, "gates": msgspec.to_builtins(OPEN)}
    plan = msgspec.convert(order["plan"], Rollout)
    stage = "shadow" if plan.shadow else "canary" if plan.canary else "all"
    until = "all" if not plan.hold else "canary" if plan.canary else "shadow"
    signed |= {"stage": stage, "until": until, "shadow": plan.shadow, "share": plan.canary}
    return {**signed, "gates": msgspec.to_builtins(plan.gates), "stay": plan.stay, "again": True}
