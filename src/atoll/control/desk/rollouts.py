"""Roll-outs: what operators order about models, and how far members are. The engine signs and follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...core.errors import MisuseError
from ...core.registry import nearest
from ..settings import rollout as planned
from ..store import Store

Row = dict[str, Any]
SHOWN = 20  # orders


def roll_out(
    store: Store, name: str, version: int | None, plan: Mapping[str, Any], reason: str, actor: str
) -> Row | None:
    """Begin: some members first, then all. None where there is no such version.

    Raises ConfigError for a plan that is none, MisuseError where it makes no sense.
    """
    made = planned(dict(plan), "$.plan")
    found = [m for m in store.models(name) if version in (None, m["version"])]
    if not found or made is None:
        return None
    chosen = found[-1]["version"]
    if not found[-1]["metrics"].get("onnx"):
        raise MisuseError(f"{name} {chosen} has no ONNX form, so members cannot serve it")
    now = _now(store, name)
    if chosen == now:
        raise MisuseError(f"all members are to serve {name} {now} already")
    if chosen < now:
        raise MisuseError(f"{name} {now} is newer: atoll model rollback {name} --to {chosen} goes back")
    known = [node["name"] for node in store.nodes()]
    for node in made.nodes:
        if node not in known:
            raise MisuseError(f"no member is called {node!r}: {nearest(node, known)}")
    store.order_add(name, chosen, "rollout", msgspec.to_builtins(made), actor, reason)
    return stages(store, name)


def promote(store: Store, name: str, reason: str, actor: str) -> Row | None:
    """Have all members serve the version that is being rolled out. None where there is no such model."""
    if not store.models(name):
        return None
    trial = _trial(store, name)
    if not trial:
        raise MisuseError(f"nothing is being rolled out: atoll model rollout {name} VERSION begins")
    store.order_add(name, trial, "promote", {}, actor, reason)
    return stages(store, name)


def roll_back(store: Store, name: str, to: int | None, reason: str, actor: str) -> Row | None:
    """Have all members serve an earlier version: what they served before, or `to`."""
    if not store.models(name):
        return None
    now, trial = _now(store, name), _trial(store, name)
    before = [m["version"] for m in store.everybodys(name)]
    earlier = [v for v in before if v < now]
    target = to if to is not None else now if trial else max(earlier, default=0)
    if not target:
        raise MisuseError(f"{name} {now} is the first that members serve: there is none before it")
    if target not in {m["version"] for m in store.models(name) if m["metrics"].get("onnx")}:
        raise MisuseError(
            f"there is no {name} {target} with an ONNX form: atoll model list {name} shows them"
        )
    if target == now and not trial:
        raise MisuseError(f"all members are to serve {name} {now} already")
    store.order_add(name, target, "rollback", {}, actor, reason)
    return stages(store, name)


def stages(store: Store, name: str) -> Row | None:
    """{name, serves, trial, orders, nodes}: the version for all, the one on trial (0 for none), the newest
    orders first, and how far each member is. None where there is no such model.
    """
    if not store.models(name):
        return None
    kept = ("number", "version", "kind", "plan", "state", "wave", "actor", "reason", "created")
    orders = [{key: order[key] for key in kept} for order in store.orders(name)[::-1][:SHOWN]]
    found = {"name": name, "serves": _now(store, name), "trial": _trial(store, name)}
    return {**found, "orders": orders, "nodes": store.stages(name)}


def served(store: Store) -> dict[str, dict[str, Row]]:
    """By member and name of model: {version, trial, stage}."""
    found: dict[str, dict[str, Row]] = {}
    for s in store.stages():
        here = {key: s[key] for key in ("version", "trial", "stage")}
        found.setdefault(s["node"], {})[s["name"]] = here
    return found


def _now(store: Store, name: str) -> int:
    known = store.everybodys(name)
    return int(known[-1]["version"]) if known else 0


def _trial(store: Store, name: str) -> int:
    return next((int(o["version"]) for o in store.orders(name) if o["state"] == "open"), 0)
