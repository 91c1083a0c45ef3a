"""Cyclic weight transfer: the model visits the clients one after the other.

Chang, Balachandar, Lam, Yi, Brown, Beers, Rosen, Rubin, Kalpathy-Cramer 2018, "Distributed deep
learning networks among institutions for medical imaging", §2. A round takes the model once
through its cohort; each client goes on from where the one before it stopped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.protocol import Party
from ..core.registry import part
from .algorithm import Algorithm, Roles
from .rounds import Plan, Progress, ask, choose, skip
from .rounds import coordinator as rounds


async def coordinator(p: Party, plan: Plan) -> Progress:
    """Run the rounds; resumes from `p.restored`."""
    return await rounds(p, plan, one_cycle)


async def one_cycle(p: Party, plan: Plan, now: Progress) -> tuple[Progress, dict[str, Any]]:
    """The model from client to client, in an order drawn for this round; and the round's record.

    A client that does not answer is left out. Raises QuorumError as `rounds.one_round` does.
    """
    key = p.key.at("round", now.round)
    cohort = await choose(p, plan, now, key)
    order = key.at("order").generator().permutation(cohort)
    record: dict[str, Any] = {"round": now.round + 1, "cohort": len(cohort), "failed": {}}
    record |= dict.fromkeys(("seconds", "clients", "down", "up"), 0)
    after = now
    for client in map(int, order):
        # empty=-1: that one client is missing says nothing about the round
        before = replace(after, round=now.round, empty=-1)
        after, visit = await ask(p, plan, before, (client,), key.at("visit", client))
        record = joined(record, visit)
    if not record["clients"]:
        return skip(plan, now, record["failed"]), record
    return replace(after, round=now.round + 1, empty=0), record


def joined(record: dict[str, Any], visit: dict[str, Any]) -> dict[str, Any]:
    """A round's record with one more visit in it; `train` is the last client's."""
    sums = {name: record[name] + visit.get(name, 0) for name in ("seconds", "clients", "down", "up")}
    train = {"train": visit["train"]} if "train" in visit else {}
    return {**record, **sums, **train, "failed": {**record["failed"], **visit["failed"]}}


@part("algorithm")
def cyclic() -> Algorithm:
    """Train client after client, each from where the last one stopped (Chang et al. 2018, §2)."""
    return Algorithm("cyclic", protocol=Roles(coordinator, apart=False))
