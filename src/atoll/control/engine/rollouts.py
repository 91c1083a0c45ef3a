"""Roll-outs as the coordinator sees them through: orders are signed, members told, waves followed.

Everything stands in the store: what an operator asked, what members said, how far it is. So a coordinator
that was killed reads it again and goes on. A letter holds a signed manifest; whoever is not among its `nodes`
leaves it alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ...privacy.keys import Identity, sign_model
from ..settings import Rollout
from ..store.store import Store
from . import waves

Letter = dict[str, Any]
_STAGES = ("served", "back", "shadow", "canary", "all")
_FIGURES = 16


def follow(store: Store, identity: Identity) -> None:
    """Sign what is new, and take every open roll-out as far as it has come."""
    for order in store.orders():
        if not order["manifest"]:
            store.order_signed(order["name"], order["number"], lambda o=order: _sign(store, identity, o))  # type: ignore[misc]
    for order in [o for o in store.orders() if o["state"] == "open"]:
        _go_on(store, order)


def due(store: Store) -> bool:
    """Whether there is anything to follow."""
    return any(o["state"] == "open" or not o["manifest"] for o in store.orders())


def letters(store: Store) -> list[Letter]:
    """What members are to be told now: of every name the version for all, and the one on trial for some."""
    found: list[Letter] = []
    for name in dict.fromkeys(model["name"] for model in store.models()):
        known = store.everybodys(name)
        if known:
            found.append(_letter(name, known[-1], known[-1]["number"] or None))
        for order in store.orders(name):
            if order["state"] == "open" and order["manifest"]:
                metrics = store.model(name, order["version"])["metrics"]
                blobs = {"blob": metrics.get("onnx", ""), "tune": metrics.get("tune", "")}
                letter = _letter(name, {**order, **blobs}, order["number"])
                found.append({**letter, "slot": "trial", "nodes": _turn(store, order)})
    return found


def read(said: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """A member's report about one model, (name, what the store keeps); None for what is none."""
    name, stage, figures = said.get("name"), said.get("stage"), said.get("figures", {})
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        return None
    numbers = [said.get(key) for key in ("version", "trial", "order")]
    if stage not in _STAGES or not all(isinstance(n, int) and 0 <= n <= 2**53 for n in numbers):
        return None
    kept = {
        str(key)[:40]: round(float(value), 4)
        for key, value in list(figures.items() if isinstance(figures, Mapping) else ())[:_FIGURES]
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    version, trial, number = numbers
    reason = str(said.get("reason", ""))[:500]
    found = {"version": version, "trial": trial, "stage": stage, "number": number, "reason": reason}
    return name, {**found, "figures": kept}


def _letter(name: str, kept: Mapping[str, Any], number: int | None) -> Letter:
    made = {"name": name, **{key: kept[key] for key in ("version", "manifest", "blob", "tune")}}
    return made if number is None else {**made, "order": number}


def _sign(store: Store, identity: Identity, order: Mapping[str, Any]) -> bytes:
    """The model's own manifest, under this order."""
    model = store.model(order["name"], order["version"])
    plain = json.loads(model["manifest"])["manifest"]
    kept = {key: plain[key] for key in ("federation", "run", "name", "version", "sha256")}
    newest = max(m["version"] for m in store.models(order["name"]))
    back = {"takes_back": newest} if order["kind"] == "rollback" else {}
    signed = {**kept, **back, "created": store.clock(), "order": waves.order_of(order)}
    return sign_model(identity.key, identity.chain, signed)


def _here(store: Store, name: str) -> dict[str, bool]:
    """Members that serve models, and whether they are connected; those in the federation no more are not."""
    said = {stage["node"] for stage in store.stages(name)}
    return {
        n["name"]: n["online"]
        for n in store.nodes()
        if n["role"] == "client" and not n["revoked"] and (n["info"].get("serves") or n["name"] in said)
    }


def _turn(store: Store, order: Mapping[str, Any]) -> list[str] | None:
    if order["wave"] >= waves.LAST:
        return None
    plan = msgspec.convert(order["plan"], Rollout)
    return waves.first(plan, order["name"], order["number"], sorted(_here(store, order["name"])))


def _go_on(store: Store, order: Mapping[str, Any]) -> None:
    name, number, version = order["name"], order["number"], order["version"]
    known = store.everybodys(name)
    if known and known[-1]["version"] > version and known[-1]["created"] > order["created"]:
        store.order_ended(name, number, "replaced", f"version {known[-1]['version']} came for all")
        return
    plan = msgspec.convert(order["plan"], Rollout)
    stages = {stage["node"]: stage for stage in store.stages(name)}
    what, why = waves.decide(plan, order, _here(store, name), stages)
    if what == "wave":
        store.order_wave(name, number, waves.LAST)
    elif what == "done":
        with store.batch():
            store.order_ended(name, number, "done")
            store.order_add(name, version, "promote", {}, "coordinator")
    elif what == "back":
        with store.batch():
            store.order_ended(name, number, "back", why)
            if known:
                store.order_add(name, known[-1]["version"], "rollback", {}, "coordinator", why)
